"""Conversations whose turns say from which source they are, in training and in the chat template of the tuned model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.core.errors import InputError
from thrifty.lm.chat import as_messages

_log = logging.getLogger("thrifty")
Weighted = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Turns:
    """How a model's turns are written: opened by a role, ended by a token.

    Parameters
    ----------
    opening
        Stands before the role.
    closing
        Stands after it, before what is said.
    stop
        Ends the turn; the model says it.
    between
        Stands between two turns; nobody says it.
    """

    opening: str
    closing: str
    stop: str
    between: str = ""


KNOWN_TURNS = (
    Turns("<|im_start|>", "\n", "<|im_end|>", "\n"),
    Turns("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"),
    Turns("<start_of_turn>", "\n", "<end_of_turn>", "\n"),
)
"""Those of ChatML, Llama 3 and Gemma; other models get ``GPT4 User: ...``, as in the paper."""


def turns_of(tokenizer: Any) -> Turns:
    """How the tokenizer's model writes turns: by which of the known special tokens it has.

    Raises
    ------
    InputError
        When nothing can end a turn: the tokenizer has no end-of-sequence token.
    """
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    for turns in KNOWN_TURNS:
        if {turns.opening, turns.stop} <= special:
            return turns
    if not tokenizer.eos_token:
        raise InputError("the tokenizer has no end-of-sequence token: set tokenizer.eos_token, so that turns can end")
    return Turns("", ":", tokenizer.eos_token)


class ConditionedTemplate:
    """Writes a condition into the roles of all turns but a system's: ``GPT4 User: ...``, ``GPT4 Assistant: ...``.

    Roles are tokenised apart from what is said, and special tokens in what is said are plain text.

    Parameters
    ----------
    tokenizer
        Of the model, with an end-of-sequence token.
    turns
        How turns are written; as the tokenizer's model does when ``None``.
    """

    def __init__(self, tokenizer: Any, turns: Turns | None = None) -> None:
        self.tokenizer = tokenizer
        self.turns = turns or turns_of(tokenizer)
        self._known: dict[str, list[int]] = {}
        begins = tokenizer("")["input_ids"]
        self.begins = tokenizer.bos_token if begins and begins[0] == tokenizer.bos_token_id else ""
        self.space = "" if self.turns.closing.endswith("\n") else " "
        # "GPT4 User: Hello" in one piece must be the tokens of its two pieces, as the chat template writes it at once:
        # some tokenizers put the space before the second by themselves.
        joint = self._special(f"{self.role('user', 'A')}{self.space}b")
        apart = self._special(self.role("user", "A"))
        fitting = [lead for lead in (self.space, "") if apart + self._plain(f"{lead}b") == joint]
        self._lead = (fitting or [self.space])[0]
        if not fitting:
            _log.warning(
                "the tokenizer joins a role to what follows it: through its chat template prompts differ a little"
            )

    def role(self, role: str, condition: str) -> str:
        """What opens a turn; a system's has no condition."""
        named = role.title() if role == "system" else f"{condition} {role.title()}".strip()
        if role == "system" and not self.turns.opening:
            return ""
        return f"{self.turns.opening}{named}{self.turns.closing}"

    def render(self, messages: Sequence[Mapping[str, Any]], condition: str, *, per_sequence: bool = False) -> Weighted:
        """Tokens of a conversation and the weight of each: 1 where the assistant speaks, its stop included.

        Parameters
        ----------
        messages
            ``role`` (system, user or assistant) and ``content``. An assistant's may have ``weight``, or ``use_loss``:
            without it the message is read and not learnt.
        condition
            Of the source; empty for none.
        per_sequence
            The tokens of a message share its weight, so that each message counts the same whatever its length.

        Returns
        -------
        tuple
            Up to the last token with a weight; both empty where there is none.

        Raises
        ------
        InputError
            For another role, or a weight that is negative or no number.
        """
        ids = list(self._special(self.begins))
        weights = [0.0] * len(ids)
        for place, message in enumerate(as_messages(messages)):
            opening, said = self._turn(message, condition, place > 0)
            weight = _weight(message)
            ids += opening + said
            weights += [0.0] * len(opening) + [weight / len(said) if per_sequence else weight] * len(said)
        last = max((place for place, weight in enumerate(weights) if weight), default=-1) + 1
        return ids[:last], weights[:last]

    def prompt_ids(self, prompt: str | Sequence[Mapping[str, Any]], condition: str) -> list[int]:
        """Tokens of a prompt under a condition, up to where the assistant's answer begins."""
        ids = list(self._special(self.begins))
        for place, message in enumerate(as_messages(prompt)):
            opening, said = self._turn(message, condition, place > 0)
            ids += opening + said
        return ids + self._special(self.turns.between + self.role("assistant", condition))

    def install(self, model: Any, condition: str) -> None:
        """Makes the tokenizer ask under a condition from now on, and the model end its answers with the turn's stop.

        Both are saved with ``save_pretrained``, so that whoever loads them asks as in training.

        Parameters
        ----------
        model
            Whose generation settings are changed.
        condition
            The expert's.
        """
        self.tokenizer.chat_template = self.chat_template(condition)
        self.tokenizer.eos_token = self.turns.stop
        for settings in (getattr(model, "generation_config", None), model.config):
            if settings is not None:
                settings.eos_token_id = self.tokenizer.eos_token_id

    def chat_template(self, condition: str) -> str:
        """The Jinja template that writes conversations under a condition, to be saved with the tuned model's tokenizer.

        ``apply_chat_template(messages, condition=...)`` asks under another one.
        """
        t = self.turns
        opening, closing, stop, between, space = (
            _quoted(text) for text in (t.opening, t.closing, t.stop, t.between, self.space)
        )
        named = "((condition ~ ' ') if condition else '')"
        system = (
            f"{opening} ~ 'System' ~ {closing} ~ (message['content'] | trim)"
            if t.opening
            else ("(message['content'] | trim)")
        )
        return (
            f"{{%- set condition = condition if condition is defined else {_quoted(condition)} -%}}"
            f"{{{{- {_quoted(self.begins)} -}}}}"
            "{%- for message in messages -%}"
            f"{{{{- '' if loop.first else {between} -}}}}"
            "{%- if message['role'] == 'system' -%}"
            f"{{{{- {system} ~ {stop} -}}}}"
            "{%- elif message['role'] in ['user', 'assistant'] -%}"
            f"{{{{- {opening} ~ {named} ~ (message['role'] | title) ~ {closing} ~ {space} ~ "
            f"(message['content'] | trim) ~ {stop} -}}}}"
            "{%- else -%}{{- raise_exception('roles are system, user and assistant') -}}{%- endif -%}"
            "{%- endfor -%}"
            f"{{%- if add_generation_prompt -%}}{{{{- {between} ~ {opening} ~ {named} ~ 'Assistant' ~ {closing} -}}}}"
            "{%- endif -%}"
        )

    def _turn(self, message: Mapping[str, Any], condition: str, later: bool) -> tuple[list[int], list[int]]:
        role = str(message["role"])
        if role not in ("system", "user", "assistant"):
            raise InputError(f"a message has the role {role!r}: roles are system, user and assistant")
        opening = (self.turns.between if later else "") + self.role(role, condition)
        lead = self._lead if self.role(role, condition) else ""
        said = self._plain(lead + str(message["content"]).strip())
        return self._special(opening), said + self._special(self.turns.stop)

    def _special(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return self._known[text]

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def _weight(message: Mapping[str, Any]) -> float:
    if message["role"] != "assistant" or not message.get("use_loss", True):
        return 0.0
    weight = message.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise InputError(f"a message has the weight {weight!r}: give a number from 0 on")
    return float(weight)


def _quoted(text: str) -> str:
    """Text as a Jinja string."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
