"""How a process reward model reads a response: its tokens, step after step, and where each score is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import InputError
from thrifty.lm.chat import as_messages, raw_ids, render_prompt
from thrifty.reward.base import Text, text_of
from thrifty.reward.steps import BLANK_LINE

log = logging.getLogger("thrifty")


@dataclass(frozen=True)
class StepRow:
    """One prompt with its steps as tokens.

    Parameters
    ----------
    ids
        All tokens.
    reads
        Where the score of each step is read: the last token of its separator.
    ends
        The same, counted from the first token of the response.
    """

    ids: list[int]
    reads: list[int]
    ends: list[int]


@dataclass(frozen=True)
class StepFormat:
    """How a process reward model reads steps.

    Parameters
    ----------
    separator
        What ends a step of a response.
    step_token
        The model's own separator, which takes the place of the response's and is where the score is read; None keeps
        the response's.
    good, bad
        Words whose probabilities a causal language model is asked for after each step, one token each.
    chat
        Whether the prompt is put by the chat template. Without it, the prompt's tokens come first and the steps after
        them, as TRL trains process reward models.
    """

    separator: str = BLANK_LINE
    step_token: str | None = None
    good: str = "+"
    bad: str = "-"
    chat: bool = False

    def separator_ids(self, tokenizer: Any) -> list[int]:
        """What the model reads at the end of each step.

        Raises
        ------
        InputError
            When its tokenizer has nothing for it.
        """
        ids = list(tokenizer(self.step_token or self.separator, add_special_tokens=False)["input_ids"])
        if not ids:
            raise InputError("the model's tokenizer has no token for the separator of steps: give step_token")
        return ids

    def words(self, tokenizer: Any) -> list[int]:
        """The tokens for bad and for good.

        Raises
        ------
        InputError
            When one of them is not one token.
        """
        found = []
        for word in (self.bad, self.good):
            ids = tokenizer(word, add_special_tokens=False)["input_ids"]
            if len(ids) != 1 or ids[0] == getattr(tokenizer, "unk_token_id", None):
                raise InputError(
                    f"{word!r} is not one token of the model's tokenizer: give words for good and bad that are"
                )
            found.append(int(ids[0]))
        return found

    def row(self, tokenizer: Any, prompt: Text, steps: Sequence[str], most: int | None = None) -> StepRow:
        """The tokens of a prompt and its steps.

        Parameters
        ----------
        tokenizer
            Of the model.
        prompt
            Text or messages.
        steps
            Texts without separators.
        most
            Most tokens that the model reads; a longer row loses the beginning of its prompt, which is said in the log.

        Raises
        ------
        InputError
            When the steps alone are longer.
        """
        if self.chat:
            text = render_prompt(tokenizer, as_messages(prompt))
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        else:
            ids = raw_ids(tokenizer, text_of(prompt), first=True)
        start, reads, separator = len(ids), [], self.separator_ids(tokenizer)
        for step in steps:
            ids += [*tokenizer(step, add_special_tokens=False)["input_ids"], *separator]
            reads.append(len(ids) - 1)
        ends = [read - start for read in reads]
        gone = max(0, len(ids) - (most or len(ids)))
        if gone > start:
            raise InputError(
                f"a response of {len(ids) - start} tokens is longer than the {most} that the reward model reads"
            )
        if gone:
            log.warning(
                "a text of %d tokens loses the first %d of its prompt: the model reads %s", len(ids), gone, most
            )
        return StepRow(ids[gone:], [read - gone for read in reads], ends)
