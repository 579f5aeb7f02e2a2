"""From the ecosystem's usual records to sequences: prompt and completion, messages, chosen and rejected."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from thrifty.core.errors import InputError, nearest
from thrifty.lm.chat import answer_ids, as_messages, conversation_ids, ended, prompt_ids, raw_ids
from thrifty.lm.sequences import Sequences, from_rows

log = logging.getLogger("thrifty")

Record = Mapping[str, Any]
Truncation = Literal["response", "prompt", "drop", "error"]

PAIR = ("chosen", "rejected")

_Row = tuple[list[int], list[bool]]


def from_records(
    records: Iterable[Record],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    truncation: Truncation = "response",
    columns: Sequence[str] = (),
    chat: bool = True,
    answers: Sequence[str] = PAIR,
) -> Sequences:
    """Tokenise records, each in whichever of these forms it comes.

    ========================= ==========================================================================
    columns                   what becomes of them
    ========================= ==========================================================================
    prompt, completion        strings or chat messages; the completion is the response
    messages                  a conversation; every assistant turn is a response
    prompt, chosen, rejected  two rows, chosen first, with columns ``group`` (the record) and ``chosen``; a
                              pair whose two answers are the same is left out, and that is said
    chosen, rejected          the same, for whole conversations that share their beginning
    ========================= ==========================================================================

    ``answers`` names the columns where a record holds more answers to its prompt: ``("reference", "chosen",
    "rejected")`` makes three rows of each.

    ``prompt_ids`` and ``completion_ids`` (token ids as a sampler logged them) take the place of the text,
    so that nothing changes by tokenising it again. ``behaviour_logps`` (one number per response token)
    becomes a per-token column.

    Parameters
    ----------
    records
        Dictionaries, a list or a data set of them.
    tokenizer
        Of the model.
    max_length
        Tokens a row may have; None for any.
    truncation
        What to do with longer rows, said in the log: "response" cuts the end of the response, "prompt"
        the beginning of the prompt, "drop" leaves the record out, "error" raises.
    columns
        Further columns to keep: numbers or booleans, one per record.
    chat
        Whether strings are turns of a conversation, rendered by the chat template (as
        :func:`thrifty.lm.sample.sample` does); False takes them as they are, which is TRL's standard format.
    answers
        Of preference records, the columns of the answers, in the order of their rows; ``chosen`` and ``rejected`` are
        among them.

    Raises
    ------
    InputError
        If a column is missing or of the wrong kind (named with the record's number), nothing is left,
        or a row is too long under "error".
    """
    if truncation not in ("response", "prompt", "drop", "error"):
        raise InputError(f"truncation must be 'response', 'prompt', 'drop' or 'error', got {truncation!r}")
    builder = _Builder(tokenizer, max_length, truncation, tuple(columns), chat, tuple(answers))
    for number, record in enumerate(records):
        builder.add(number, record)
    return builder.result()


def pairs_from_records(
    records: Iterable[Record],
    tokenizer: Any,
    *,
    max_length: int | None = None,
    truncation: Truncation = "response",
    columns: Sequence[str] = (),
    chat: bool = True,
) -> tuple[Sequences, Sequences]:
    """The chosen and the rejected rows of preference records, in the same order.

    Parameters are those of :func:`from_records`. A pair of which one row is dropped is dropped whole.

    Raises
    ------
    InputError
        As :func:`from_records`, and if a record has no pair.
    """
    listed = list(records)
    for number, record in enumerate(listed):
        for name in ("chosen", "rejected"):
            if name not in record:
                raise _missing(number, record, name)
    both = from_records(listed, tokenizer, max_length=max_length, truncation=truncation, columns=columns, chat=chat)
    return both.select(slice(0, None, 2)), both.select(slice(1, None, 2))


class _Builder:
    """Collects rows and their columns, record by record."""

    def __init__(
        self,
        tokenizer: Any,
        max_length: int | None,
        truncation: Truncation,
        columns: tuple[str, ...],
        chat: bool,
        answers: tuple[str, ...],
    ) -> None:
        self.tokenizer, self.max_length, self.truncation = tokenizer, max_length, truncation
        self.names, self.chat, self.answers = columns, chat, answers
        self.rows: list[_Row] = []
        self.row_columns: dict[str, list[float]] = {name: [] for name in columns}
        self.logps: list[list[float]] = []
        self.with_logps: bool | None = None
        self.paired: bool | None = None
        self.seen = self.cut = self.alike = 0

    def add(self, number: int, record: Record) -> None:
        self.seen += 1
        paired = "chosen" in record or "rejected" in record
        if self.paired not in (None, paired):
            raise InputError(
                f"record {number} {'is' if paired else 'is not'} a preference pair, unlike those before it"
            )
        self.paired = paired
        values = {name: _number(number, record, name) for name in self.names}
        if paired:
            rows = [self._preference_row(number, record, name) for name in self.answers]
            if rows[self.answers.index("chosen")] == rows[self.answers.index("rejected")]:
                self.alike += 1
                return
            logps: list[list[float] | None] = [None] * len(rows)
            values["group"] = number
        else:
            rows, logps = [self._row(number, record)], [_logps(number, record)]
        if (logps[0] is None) == bool(self.with_logps) and self.with_logps is not None:
            raise InputError(f"record {number}: behaviour_logps must be in all records or in none")
        self.with_logps = logps[0] is not None
        fitted = [self._fit(number, row, known) for row, known in zip(rows, logps, strict=True)]
        if any(part is None for part in fitted):
            return
        for place, part in enumerate(fitted):
            assert part is not None
            self.rows.append(part[0])
            self.logps.append(part[1] or [])
            for name, value in values.items():
                self.row_columns.setdefault(name, []).append(value)
            if paired:
                self.row_columns.setdefault("chosen", []).append(self.answers[place] == "chosen")

    def result(self) -> Sequences:
        if not self.seen:
            raise InputError("there are no records: the data set is empty")
        if self.cut:
            done = {"response": "cut at their end", "prompt": "cut at their beginning"}.get(self.truncation, "left out")
            log.warning("%d of %d records are longer than %s tokens: %s", self.cut, self.seen, self.max_length, done)
        if self.alike:
            log.warning(
                "%d of %d pairs have the same answer as chosen and as rejected: left out", self.alike, self.seen
            )
            if self.alike == self.seen:
                raise InputError(f"in all {self.seen} pairs the chosen answer is the rejected one: none is better")
        if not self.rows:
            raise InputError(f"none of {self.seen} records fits into max_length={self.max_length} tokens")
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.tokenizer.eos_token_id
        token_columns = {"behaviour_logps": self.logps} if self.with_logps else {}
        return from_rows(self.rows, pad_id=pad or 0, row_columns=self.row_columns, token_columns=token_columns)

    def _row(self, number: int, record: Record) -> _Row:
        if "completion_ids" in record:
            prompt = record["prompt_ids"] if "prompt_ids" in record else self._prompt(number, record)
            return _joined(list(prompt), list(record["completion_ids"]))
        if "messages" in record:
            try:
                return conversation_ids(self.tokenizer, record["messages"])
            except InputError as error:
                raise InputError(f"record {number}: {error}") from None
        if "completion" not in record:
            raise _missing(number, record, "completion", "messages")
        return _joined(self._prompt(number, record), self._answer(number, record, "completion"))

    def _preference_row(self, number: int, record: Record, name: str) -> _Row:
        if name not in record:
            raise _missing(number, record, name)
        if "prompt" not in record:
            record = _with_shared_prompt(number, record)
        return _joined(self._prompt(number, record), self._answer(number, record, name))

    def _prompt(self, number: int, record: Record) -> list[int]:
        if "prompt" not in record:
            raise _missing(number, record, "prompt")
        prompt = record["prompt"]
        try:
            if isinstance(prompt, str) and not self.chat:
                return raw_ids(self.tokenizer, prompt, first=True)
            return prompt_ids(self.tokenizer, prompt)
        except InputError as error:
            raise InputError(f"record {number}: column 'prompt': {error}") from None

    def _answer(self, number: int, record: Record, name: str) -> list[int]:
        answer = record[name]
        if not isinstance(answer, str):
            turns = as_messages(answer) if isinstance(answer, Sequence) else []
            if len(turns) != 1 or turns[0]["role"] != "assistant":
                raise InputError(
                    f"record {number}: column {name!r} must be a string or one assistant message, got {str(answer)[:80]!r}"  # noqa: E501
                )
            answer = turns[0]["content"]
        if isinstance(record["prompt"], str) and not self.chat:
            return ended(self.tokenizer, raw_ids(self.tokenizer, answer, first=False))
        try:
            return answer_ids(self.tokenizer, as_messages(record["prompt"]), answer)
        except InputError as error:
            raise InputError(f"record {number}: {error}") from None

    def _fit(self, number: int, row: _Row, logps: list[float] | None) -> tuple[_Row, list[float] | None] | None:
        ids, spoken = row
        if logps is not None and len(logps) != sum(spoken):
            raise InputError(
                f"record {number}: behaviour_logps has {len(logps)} numbers for {sum(spoken)} response tokens: "
                f"give completion_ids too, as the sampler logged them"
            )
        limit = self.max_length
        if limit is None or len(ids) <= limit:
            return row, logps
        self.cut += 1
        if self.truncation == "error":
            raise InputError(f"record {number} has {len(ids)} tokens, more than max_length={limit}")
        part = slice(len(ids) - limit, None) if self.truncation == "prompt" else slice(0, limit)
        first_spoken = spoken.index(True) if True in spoken else len(ids)
        if self.truncation == "drop" or not any(spoken[part]) or (part.start or 0) >= first_spoken:
            return None
        kept = sum(spoken[part])
        return (ids[part], spoken[part]), logps[:kept] if logps is not None else None


def _joined(prompt: list[int], answer: list[int]) -> _Row:
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _with_shared_prompt(number: int, record: Record) -> Record:
    """Preference pairs of whole conversations: what they share is the prompt."""
    chosen, rejected = as_messages(record["chosen"]), as_messages(record["rejected"])
    if isinstance(record["chosen"], str) or chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise InputError(
            f"record {number}: without a column 'prompt', 'chosen' and 'rejected' must be conversations "
            f"that differ in their last turn only"
        )
    return {**record, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def _missing(number: int, record: Record, *wanted: str) -> InputError:
    there = ", ".join(sorted(map(str, record)))
    return InputError(
        f"record {number} has no column {' or '.join(map(repr, wanted))} (it has: {there or 'nothing'}); "
        f"{nearest(wanted[0], map(str, record)) or 'see from_records for the forms that are read'}"
    )


def _number(number: int, record: Record, name: str) -> float:
    if name not in record:
        raise _missing(number, record, name)
    value = record[name]
    if not isinstance(value, (bool, int, float)):
        raise InputError(f"record {number}: column {name!r} must be a number or a boolean, got {str(value)[:60]!r}")
    return value


def _logps(number: int, record: Record) -> list[float] | None:
    if record.get("behaviour_logps") is None:
        return None
    try:
        return [float(value) for value in record["behaviour_logps"]]
    except (TypeError, ValueError):
        raise InputError(
            f"record {number}: behaviour_logps must be a list of numbers, one per response token"
        ) from None
