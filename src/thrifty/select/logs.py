"""Histories read from files: saved ones, and the logs of online runs with a row for each sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from thrifty.core.errors import InputError
from thrifty.data.readers import read, require_columns
from thrifty.data.records import Records
from thrifty.select.history import AccuracyHistory, in_unit, normalised

_log = logging.getLogger("thrifty")


def read_history(path: str | Path, *, steps_per_epoch: int = 8) -> AccuracyHistory:
    """A history from what :meth:`AccuracyHistory.save` wrote, or from the log of an online run.

    Parameters
    ----------
    path
        A file that :func:`thrifty.data.readers.read` reads. With a column ``accuracies`` it is a saved history; else a
        log, see :func:`history_of`.
    steps_per_epoch
        For a log that has ``step`` and no ``epoch``.

    Raises
    ------
    InputError
        For a file that is empty or broken, a missing column, or a value out of range: the row is named.
    """
    records = read(path)
    if "accuracies" in records.columns:
        return AccuracyHistory.load(path)
    return history_of(records, steps_per_epoch=steps_per_epoch)


def history_of(records: Records, *, steps_per_epoch: int = 8) -> AccuracyHistory:
    """A history from the rows of a log: one for each sample, several for each prompt.

    Parameters
    ----------
    records
        With the columns ``id`` or ``prompt``; ``epoch`` or ``step``; and ``success`` or ``accuracy`` (in [0, 1]) or
        ``reward`` (any number: only a reward of 1 counts as right, as in the paper).
    steps_per_epoch
        How many steps make an epoch. A last epoch of fewer is left out, as all that it lacks would count as missing.

    Raises
    ------
    InputError
        For a missing column or a value out of range: the row is named.
    """
    source = records.source
    key = _either(records, ("id", "prompt"))
    value = _either(records, ("success", "accuracy", "reward"))
    time = _either(records, ("epoch", "step"))
    require_columns(records, [key, time, value], source)
    times = [_whole(row[time], f"{source}: {time} of row {at}") for at, row in enumerate(records, start=1)]
    epochs = times if time == "epoch" else epochs_of_steps(times, steps_per_epoch)
    rows: dict[int, tuple[list[str], list[float], list[str]]] = {}
    for at, (row, epoch) in enumerate(zip(records, epochs, strict=True), start=1):
        if epoch < 0:
            continue
        name = normalised(row[key], f"{source}: {key} of row {at}")
        names, right, texts = rows.setdefault(epoch, ([], [], []))
        names.append(name)
        right.append(_right(row[value], value, f"{source}: {value} of row {at}"))
        texts.append(str(row.get("prompt", name)))
    history = AccuracyHistory()
    for epoch, (names, right, texts) in sorted(rows.items()):
        history.update(names, torch.tensor(right, dtype=torch.float64), epoch, prompts=texts)
    return history


def epochs_of_steps(steps: Sequence[int], steps_per_epoch: int) -> list[int]:
    """The epoch of each step, from 0; -1 for the steps of a last epoch that is not whole.

    Parameters
    ----------
    steps
        Counted from 1, or from 0 where a step 0 occurs.
    steps_per_epoch
        At least 1.

    Raises
    ------
    InputError
        When it is below 1, or there is no whole epoch.
    """
    if steps_per_epoch < 1:
        raise InputError(f"steps_per_epoch must be at least 1, not {steps_per_epoch}")
    first = 0 if min(steps) == 0 else 1
    whole = (max(steps) + 1 - first) // steps_per_epoch
    if not whole:
        raise InputError(
            f"the log's {max(steps) + 1 - first} steps make no whole epoch of {steps_per_epoch}: give a smaller "
            "steps-per-epoch"
        )
    epochs = [(step - first) // steps_per_epoch for step in steps]
    rest = max(steps) + 1 - first - whole * steps_per_epoch
    if rest:
        _log.warning("the last %d step(s) make no whole epoch of %d and are left out", rest, steps_per_epoch)
    return [epoch if epoch < whole else -1 for epoch in epochs]


def _either(records: Records, names: Sequence[str]) -> str:
    for name in names:
        if name in records.columns:
            return name
    there = ", ".join(records.columns)
    raise InputError(f"{records.source} has none of the columns {', '.join(names)}: it has {there}")


def _right(value: Any, column: str, what: str) -> float:
    if column != "reward":
        return in_unit(value, what)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{what} is {value!r}: give a finite number, or leave the row out")
    return float(value == 1)


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1 or value < 0:
        raise InputError(f"{what} is {value!r}: give a whole number from 0")
    return int(value)
