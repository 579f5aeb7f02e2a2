"""How an outcome reward model reads prompt and completion: as a conversation, as one text, or as a pair of texts."""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args

from thrifty.core.errors import InputError, nearest
from thrifty.lm.chat import as_messages
from thrifty.reward.base import Text, shown, text_of

log = logging.getLogger("thrifty")

Form = Literal["auto", "chat", "text", "pair"]


def check_form(form: str) -> None:
    """Raises an :class:`InputError` for an unknown form."""
    if form not in get_args(Form):
        raise InputError(f"form is {form!r}: {nearest(form, get_args(Form))}")


def response_ids(
    tokenizer: Any, prompt: Text, completion: Text, form: Form = "auto", most: int | None = None
) -> list[int]:
    """The tokens of a prompt with its completion.

    Parameters
    ----------
    tokenizer
        Of the model.
    prompt, completion
        Text or messages.
    form
        ``chat`` (by the template), ``text`` (the completion right after the prompt), ``pair`` (encoders that were
        trained on two texts), or ``auto``: the template where there is one, else one text.
    most
        Most tokens that the model reads. A longer text loses the beginning of the prompt, but for the first token;
        that is said in the log.

    Raises
    ------
    InputError
        When there are no tokens.
    """
    said = text_of(completion)
    if form == "chat" or (form == "auto" and getattr(tokenizer, "chat_template", None)):
        turns = [*as_messages(prompt), {"role": "assistant", "content": said}]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    elif form == "pair":
        ids = list(tokenizer(text_of(prompt), said)["input_ids"])
    else:
        ids = list(tokenizer(text_of(prompt) + said)["input_ids"])
    if not ids:
        raise InputError(f"the prompt {shown(text_of(prompt))} and its completion give no tokens")
    if most is not None and len(ids) > most:
        log.warning("a text of %d tokens is cut to the %d that the reward model reads", len(ids), most)
        ids = [ids[0], *ids[len(ids) - most + 1 :]]
    return ids
