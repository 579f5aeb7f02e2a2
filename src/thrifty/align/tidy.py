"""Answers as a reader wants them: cut where the next turn begins, and marked where they are not fit to be learnt."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from thrifty.align.reference import column_of_logps
from thrifty.core.errors import InputError
from thrifty.lm.backbone import evaluating
from thrifty.lm.chat import Prompt
from thrifty.lm.logps import token_logps
from thrifty.lm.sampler import Request, Sampler
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class Tidiness:
    """Where answers are cut, and which are discarded.

    Parameters
    ----------
    turn_marker
        A text at which an answer ends, such as the beginning of the other side's next turn; ``None`` cuts nothing.
    discard_marker
        Answers that hold this text (after the cut) are discarded.
    shortest
        So are those of fewer characters, spaces around them left out.
    """

    turn_marker: str | None = None
    discard_marker: str | None = None
    shortest: int = 1

    def __post_init__(self) -> None:
        for name in ("turn_marker", "discard_marker"):
            if getattr(self, name) == "":
                raise InputError(f"{name} must not be empty: every text holds it")

    def applied(self, answers: Sequences, tokenizer: Any) -> Sequences:
        """Answers cut, with a column ``discarded [N]``."""
        if self.turn_marker is not None:
            answers, _ = cut_at(answers, tokenizer, self.turn_marker)
        return answers.with_columns(discarded=self.discarded(answers.texts(tokenizer)))

    def discarded(self, texts: Sequence[str]) -> Bool[Tensor, " N"]:
        """Which texts are not to be learnt."""
        return torch.tensor(
            [
                len(text.strip()) < self.shortest or (self.discard_marker is not None and self.discard_marker in text)
                for text in texts
            ],
            dtype=torch.bool,
        )


@dataclass(frozen=True)
class Tidied:
    """A sampler whose answers are cut and marked before they are scored.

    Parameters
    ----------
    sampler
        What samples.
    model
        The policy: gives the end that a cut answer gets its log-probability.
    tokenizer
        Of the model.
    tidiness
        The rules.
    """

    sampler: Sampler
    model: Any
    tokenizer: Any
    tidiness: Tidiness

    def sample(self, prompts: Sequence[Prompt], request: Request) -> Sequences:
        """See :class:`thrifty.lm.sampler.Sampler`; with a column ``discarded [N]``."""
        answers = self.sampler.sample(prompts, request)
        if self.tidiness.turn_marker is not None:
            answers = self._cut(answers, self.tidiness.turn_marker, request.draw.temperature)
        discarded = self.tidiness.discarded(answers.texts(self.tokenizer))
        return answers.with_columns(discarded=discarded.to(answers.device))

    def refresh(self, model: Any) -> None:
        """See :class:`thrifty.lm.sampler.Sampler`."""
        self.sampler.refresh(model)

    def _cut(self, answers: Sequences, marker: str, temperature: float) -> Sequences:
        answers, cut = cut_at(answers, self.tokenizer, marker)
        if not bool(cut.any()):
            return answers
        with evaluating(self.model):
            logps = column_of_logps(
                lambda part: token_logps(self.model, part, temperature=temperature), answers.select(cut), answers.device
            )
        behaviour = answers["behaviour_logps"].clone()
        behaviour[cut] = logps.to(behaviour)
        return answers.with_columns(behaviour_logps=behaviour, finished=answers["finished"] | cut)


def cut_at(answers: Sequences, tokenizer: Any, marker: str) -> tuple[Sequences, Bool[Tensor, " N"]]:
    """Ends each answer where a marker begins, with the tokenizer's end-of-sequence token in its place.

    Parameters
    ----------
    answers
        Sequences whose response is the end of the row.
    tokenizer
        Of the model.
    marker
        The text; spaces before it are cut too.

    Returns
    -------
    tuple
        The answers, and which of them were cut. What a column said of single tokens is 0 from the cut on.

    Raises
    ------
    InputError
        When the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token to end an answer with at the marker")
    ids, real, spoke = answers.input_ids.clone(), answers.attention_mask.clone(), answers.response_mask.clone()
    cut = torch.zeros(len(answers), dtype=torch.bool, device=answers.device)
    for row, text in enumerate(answers.texts(tokenizer)):
        at = text.find(marker)
        if at < 0:
            continue
        places = spoke[row].nonzero()[:, 0]
        wanted = len(text[:at].rstrip())
        said = ids[row, places].tolist()

        def length(tokens: int, said: list[int] = said) -> int:
            return len(tokenizer.decode(said[:tokens], skip_special_tokens=True))

        end = int(places[bisect_right(range(len(said)), wanted, key=length) - 1])
        ids[row, end] = tokenizer.eos_token_id
        real[row, end + 1 :] = False
        spoke[row, end + 1 :] = False
        cut[row] = True
    gone = cut[:, None] & (answers.response_mask.cumsum(1) >= spoke.sum(1, keepdim=True)) & answers.response_mask
    columns = {
        name: column.masked_fill(gone, 0) if column.shape == gone.shape else column
        for name, column in answers.columns.items()
    }
    return Sequences(ids, real, spoke, columns), cut
