"""Heads on streams, beside LAMDA-PILOT's and beside the released recursion, on random features of a ViT's size."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.adapt.g_acil import GACIL
from thrifty.adapt.nmc import NMC
from thrifty.bench._adapt_plain import BATCH, PlainRanPAC, PlainRecursion, PlainSimpleCIL
from thrifty.bench._measure import paired, row

DIMENSION, CLASSES, SESSIONS, EACH = 768, 100, 10, 50  # 10 sessions of 10 classes with 50 examples each
SIZE = 2000  # of the random expansion
RIDGE = 1.0
STEP = 64  # rows of an online batch
BEFORE = 10_000  # examples that came before, where a late step is compared with an early one
LEAST = 5.0


def stream_rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measures whole streams, single steps, and whether a step slows down, in one thread.

    Parameters
    ----------
    quick
        One pair of runs instead of five.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    pairs = 1 if quick else 5
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        sessions = _sessions()
        means = paired(lambda: _our_means(sessions), lambda: _pilot_means(sessions), pairs)
        ridge = paired(lambda: _our_ridge(sessions), lambda: _pilot_ridge(sessions), pairs)
        step = paired(_our_steps, _released_steps, pairs)
        early_and_late = [_early_and_late() for _ in range(pairs)]
        return [
            row("NMC, 10 sessions / LAMDA-PILOT's SimpleCIL head, time", means, "s", least=LEAST, inverse=True),
            row(
                "G-ACIL, 10 sessions / LAMDA-PILOT's RanPAC head with its ridge search, time",
                ridge,
                "s",
                least=LEAST,
                inverse=True,
            ),
            row("G-ACIL, a step of 64 / the released recursion, time", step, "s/step", least=LEAST, inverse=True),
            row(f"G-ACIL, a step after {BEFORE:,} examples / the first ones, time", early_and_late, "s/step", most=1.1),
        ]
    finally:
        torch.set_num_threads(threads)


def _sessions() -> list[tuple[Tensor, Tensor, Tensor]]:
    """Features, labels and test features of each session."""
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, DIMENSION, generator=draw)
    found = []
    for labels in torch.arange(CLASSES).chunk(SESSIONS):
        y = labels.repeat(EACH)
        x = centres[y] + torch.randn(len(y), DIMENSION, generator=draw)
        found.append((x, y, centres[labels].repeat(10, 1) + torch.randn(10 * len(labels), DIMENSION, generator=draw)))
    return found


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ours(head: Any, sessions: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    def work() -> None:
        tests: list[Tensor] = []
        for x, y, test in sessions:
            head.partial_fit(x, y)
            tests.append(test)
            head.predict(torch.cat(tests))

    return _seconds(work)


def _our_means(sessions: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    return _ours(NMC(normalize=False, metric="cosine"), sessions)


def _our_ridge(sessions: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    return _ours(GACIL(ridge=RIDGE, buffer_size=SIZE, solver="gram"), sessions)


def _pilot_means(sessions: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    head = PlainSimpleCIL(DIMENSION)

    def work() -> None:
        tests: list[Tensor] = []
        for x, y, test in sessions:
            head.session(list(zip(x.split(BATCH), y.split(BATCH), strict=True)))
            tests.append(test)
            head.predict([*torch.cat(tests).split(BATCH)])

    return _seconds(work)


def _pilot_ridge(sessions: list[tuple[Tensor, Tensor, Tensor]]) -> float:
    head = PlainRanPAC(DIMENSION, SIZE, CLASSES)

    def work() -> None:
        tests: list[Tensor] = []
        for x, y, test in sessions:
            head.session(list(zip(x.split(BATCH), y.split(BATCH), strict=True)))
            tests.append(test)
            head.predict([*torch.cat(tests).split(BATCH)])

    return _seconds(work)


def _steps(count: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    draw = torch.Generator().manual_seed(1)
    batches = [
        (torch.randn(STEP, DIMENSION, generator=draw), torch.randint(CLASSES, (STEP,), generator=draw))
        for _ in range(count)
    ]
    return batches, torch.randn(SIZE, DIMENSION, generator=draw, dtype=torch.float64) / DIMENSION**0.5


def _our_steps(count: int = 4) -> float:
    batches, _ = _steps(count + 1)
    head = GACIL(ridge=RIDGE, buffer_size=SIZE).partial_fit(*batches[0], classes=range(CLASSES))
    return _seconds(lambda: [head.partial_fit(x, y) for x, y in batches[1:]]) / count


def _released_steps(count: int = 4) -> float:
    batches, directions = _steps(count + 1)
    head = PlainRecursion(SIZE, RIDGE)

    def learn(x: Tensor, y: Tensor) -> None:
        hidden = (x.double() @ directions.T).relu()
        head.fit(hidden, nn.functional.one_hot(y, CLASSES))

    def work() -> None:
        for x, y in batches[1:]:
            learn(x, y)

    learn(*batches[0])
    return _seconds(work) / count


def _early_and_late() -> tuple[float, float]:
    """Seconds a step after many examples, and at the beginning."""
    window, between = 10, BEFORE // STEP
    batches, _ = _steps(20)
    head = GACIL(ridge=RIDGE, buffer_size=SIZE).partial_fit(*batches[0], classes=range(CLASSES))

    def some(count: int) -> float:
        chosen = [batches[number % len(batches)] for number in range(count)]
        return _seconds(lambda: [head.partial_fit(x, y) for x, y in chosen]) / count

    early = some(window)
    some(between)
    return some(window), early
