"""Conversations of named sources as sequences: each under its condition, each token with its weight."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from thrifty.align.conditioned import ConditionedTemplate
from thrifty.align.nll import Level
from thrifty.core.errors import InputError
from thrifty.lm.chat import as_messages
from thrifty.lm.sequences import Sequences, from_rows

_log = logging.getLogger("thrifty")


class Said(NamedTuple):
    """What a record's source decides: its condition, its weight, and whether it is an expert."""

    condition: str
    weight: float
    expert: bool


def weighted_sequences(
    records: Sequence[Mapping[str, Any]],
    template: ConditionedTemplate,
    sources: Sequence[Said],
    *,
    level: Level = "token",
    unwanted: str = "",
    max_length: int | None = None,
) -> Sequences:
    """Conversations as sequences of which only tokens with a weight are learnt; those without any are left out.

    Parameters
    ----------
    records
        With ``messages``, or ``prompt`` and ``completion``. An assistant's message may have ``use_loss`` (false: read,
        not learnt) or ``weight`` (times that of the source); so may a record with a completion.
    template
        Of the model's tokenizer.
    sources
        Of each record.
    level
        ``token``: every token of a message has its weight; ``sequence``: they share it.
    unwanted
        Phrases separated by ``|``: assistant's messages that hold one are read and not learnt.
    max_length
        Tokens after which a conversation is cut.

    Returns
    -------
    Sequences
        With ``weight [N, T]`` and ``expert [N]``.

    Raises
    ------
    InputError
        When a record is no conversation, or nothing is to be learnt.
    """
    phrases = [phrase.strip().lower() for phrase in unwanted.split("|") if phrase.strip()]
    rows, weights, expert, cut = [], [], [], 0
    for number, (record, source) in enumerate(zip(records, sources, strict=True), start=1):
        try:
            messages = [_without(phrases, message) for message in conversation(record)]
            ids, shares = template.render(messages, source.condition, per_sequence=level == "sequence")
        except InputError as error:
            raise InputError(f"record {number}: {error}") from None
        if max_length is not None and len(ids) > max_length:
            ids, shares, cut = ids[:max_length], shares[:max_length], cut + 1
        scaled = [share * source.weight for share in shares]
        if any(scaled):
            rows.append((ids, [weight != 0 for weight in scaled]))
            weights.append([weight for weight in scaled if weight])
            expert.append(source.expert)
    if cut:
        _log.warning(
            "%d of %d conversations are longer than %s tokens: cut at their end", cut, len(records), max_length
        )
    if not rows:
        raise InputError("nothing is to be learnt: every message has the weight 0 or is switched off")
    if len(rows) < len(records):
        _log.info("%d of %d conversations have nothing to learn: left out", len(records) - len(rows), len(records))
    tokenizer = template.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return from_rows(rows, pad_id=pad or 0, row_columns={"expert": expert}, token_columns={"weight": weights})


def _without(phrases: Sequence[str], message: dict[str, Any]) -> dict[str, Any]:
    unwanted = any(phrase in str(message["content"]).lower() for phrase in phrases)
    return {**message, "use_loss": False} if unwanted else message


def parse_weights(text: str) -> dict[str, float]:
    """``gpt-4=1,forum=0.02`` as a mapping.

    Raises
    ------
    InputError
        When a part is not a name and a number from 0 on.
    """
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, number = part.rpartition("=")
        try:
            found[name.strip()] = float(number)
        except ValueError:
            equals = ""
        if not equals or not 0 <= found[name.strip()] < math.inf:
            raise InputError(f"source_weights has {part!r}: write NAME=WEIGHT with a weight from 0 on")
    return found


def conversation(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A record's messages: its ``messages``, or its prompt with the completion as the assistant's answer.

    Raises
    ------
    InputError
        When it has neither.
    """
    if "messages" in record:
        return [*as_messages(record["messages"])]
    if "prompt" not in record or "completion" not in record:
        raise InputError(f"expected messages, or prompt and completion; it has {', '.join(sorted(record))}")
    said = record["completion"]
    answer = {"role": "assistant", "content": said} if isinstance(said, str) else as_messages(said)[-1]
    own = {name: record[name] for name in ("use_loss", "weight") if record.get(name) is not None}
    return [*as_messages(record["prompt"]), {**answer, **own}]


def source_of(record: Mapping[str, Any], number: int) -> str:
    """The source of a record, of which ``number`` is the number that errors name.

    Raises
    ------
    InputError
        When it has none.
    """
    source = record.get("source")
    if not isinstance(source, str) or not source:
        raise InputError(f"record {number} has the source {source!r}: expected a name in the column 'source'")
    return source
