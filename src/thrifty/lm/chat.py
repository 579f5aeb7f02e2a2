"""Conversations as tokens, exactly as the model would see them and speak them."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.core.errors import InputError

log = logging.getLogger("thrifty")

Message = Mapping[str, str]
Prompt = str | Sequence[Message] | Sequence[int]

_said: weakref.WeakSet[Any] = weakref.WeakSet()


def prompt_ids(tokenizer: Any, prompt: Prompt) -> list[int]:
    """Tokens of a prompt, up to where the model's answer begins.

    Parameters
    ----------
    tokenizer
        With a chat template; without one, turns are written as "User: ..." and "Assistant: ..." (said
        once in the log).
    prompt
        A string (one user turn), chat messages (``role``, ``content``), or token ids, which stay as they
        are. Messages that end with the assistant's turn are an answer to be continued.

    Raises
    ------
    InputError
        If the prompt is empty or of another kind, or strings are given without a tokenizer.
    """
    if not isinstance(prompt, str) and prompt and isinstance(prompt[0], int):
        return [int(token) for token in prompt]  # type: ignore[arg-type]
    if tokenizer is None:
        raise InputError("prompts of text need a tokenizer; without one give token ids")
    ids = _encode(tokenizer, render_prompt(tokenizer, prompt), first=True)
    if not ids:
        raise InputError(f"the prompt {prompt!r} gives no tokens: the first answer token needs at least one before it")
    return ids


def render_prompt(tokenizer: Any, prompt: Prompt) -> str:
    """Text of a prompt, with the opening of the assistant's turn at its end."""
    messages = as_messages(prompt)
    goes_on = messages[-1]["role"] == "assistant"
    if not _has_template(tokenizer):
        text = "".join(_plain_turn(message) for message in messages)
        return text.rstrip("\n") if goes_on else text + "Assistant:"
    text = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=not goes_on, continue_final_message=goes_on
    )
    return str(text)


def answer_ids(tokenizer: Any, prompt: Sequence[Message], answer: str) -> list[int]:
    """Tokens that the model would generate to say ``answer`` after ``prompt``, its end-of-turn token included.

    The answer is what the template writes between the opening of the assistant's turn and the turn's
    end; what it writes after the end-of-turn token (often a newline) is not the model's to say.

    Raises
    ------
    InputError
        If the template writes the prompt differently once an answer follows, so that no answer's tokens
        can be told from the prompt's.
    """
    opening = render_prompt(tokenizer, prompt)
    if _has_template(tokenizer):
        whole = tokenizer.apply_chat_template(
            [*as_messages(prompt), {"role": "assistant", "content": answer}], tokenize=False
        )
        if not whole.startswith(opening):
            raise InputError(
                "the tokenizer's chat template writes the prompt differently once an answer follows it: "
                "give token ids (prompt_ids, completion_ids) instead of text"
            )
        text = whole[len(opening) :]
    else:
        text = " " + answer.strip()
    return ended(tokenizer, _encode(tokenizer, text, first=False))


def ended(tokenizer: Any, ids: list[int]) -> list[int]:
    """Ids of one answer, up to its end-of-sequence token, which is added where there is none."""
    end = tokenizer.eos_token_id
    if end is None:
        return ids
    return ids[: ids.index(end) + 1] if end in ids else [*ids, end]


def conversation_ids(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
    """Tokens of a whole conversation and which of them the assistant speaks (each turn's end included)."""
    turns = as_messages(messages)
    spoken = [number for number, message in enumerate(turns) if message["role"] == "assistant"]
    if not spoken or spoken[0] == 0:
        raise InputError("a conversation needs a message before the assistant's first turn, and at least one such turn")
    ids: list[int] = []
    mask: list[bool] = []
    written = ""
    for number in spoken:
        opening = render_prompt(tokenizer, turns[:number])
        if not opening.startswith(written):
            raise InputError(
                "the tokenizer's chat template rewrites earlier turns as the conversation goes on: "
                "give the last turn only, as prompt and completion"
            )
        between = _encode(tokenizer, opening[len(written) :], first=not ids)
        answer = answer_ids(tokenizer, turns[:number], turns[number]["content"])
        ids += between + answer
        mask += [False] * len(between) + [True] * len(answer)
        written = opening + _spoken_text(tokenizer, turns, number, opening)
    return ids, mask


def _spoken_text(tokenizer: Any, turns: list[dict[str, str]], number: int, opening: str) -> str:
    """What the assistant's turn is as text, up to its end-of-sequence token."""
    if not _has_template(tokenizer):
        return " " + turns[number]["content"].strip()
    whole = tokenizer.apply_chat_template(turns[: number + 1], tokenize=False)
    text = str(whole)[len(opening) :]
    end = tokenizer.eos_token
    return text[: text.index(end) + len(end)] if end and end in text else text


def as_messages(prompt: Prompt) -> list[dict[str, str]]:
    """A prompt as chat messages; a string is one user turn."""
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    messages = [dict(message) if isinstance(message, Mapping) else {} for message in prompt]
    if not messages or any("role" not in message or "content" not in message for message in messages):
        raise InputError(
            f"a prompt is a string, token ids, or messages with 'role' and 'content'; got {str(prompt)[:120]!r}"
        )
    return messages


def _plain_turn(message: Mapping[str, str]) -> str:
    names = {"user": "User: ", "assistant": "Assistant: ", "system": ""}
    return f"{names.get(message['role'], message['role'].capitalize() + ': ')}{message['content'].strip()}\n"


def _has_template(tokenizer: Any) -> bool:
    if getattr(tokenizer, "chat_template", None):
        return True
    if tokenizer not in _said:
        _said.add(tokenizer)
        log.warning(
            "%s has no chat template: turns are written as 'User: ...' and 'Assistant: ...'",
            getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__,
        )
    return False


def _encode(tokenizer: Any, text: str, *, first: bool) -> list[int]:
    """Token ids of a piece of text; special tokens are added only in front of the first, by tokenizers that do so."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id
    if first and start is not None and not _has_template(tokenizer):
        with_special = tokenizer(text)["input_ids"]
        if with_special[:1] == [start] and ids[:1] != [start]:
            return [start, *ids]
    return ids


def raw_ids(tokenizer: Any, text: str, *, first: bool) -> list[int]:
    """Token ids of text as it stands, outside any conversation."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = tokenizer.bos_token_id
    # The first token of a text is predicted from something only where a beginning token stands before it.
    return [start, *ids] if first and start is not None and ids[:1] != [start] else ids
