"""Few-shot episodes beside the released scripts or the same written plainly: one at a time, or a thousand together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod
from thrifty.adapt.generalised_em import paddle
from thrifty.adapt.transductive_clustering import TransductiveClustering
from thrifty.adapt.unem import UNEM
from thrifty.bench._adapt_plain_episodes import Solve, plain_paddle, plain_slk, plain_unem, released
from thrifty.bench._measure import paired, row

WAYS, QUERIES, DIMENSION, TOGETHER = 5, 75, 640, 1000
LEAST_ALONE, LEAST_TOGETHER = 5.0, 50.0
_SPREAD = 1.4  # of examples around class means of a like length: prototypes are right for four queries in five


def episode_rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measures 5-way episodes of 1 and 5 shots with 75 queries of 640 features, in one thread.

    Parameters
    ----------
    quick
        One pair of runs and 100 episodes together instead of 1,000.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    pairs, together, alone = (1, 100, 5) if quick else (3, TOGETHER, 20)
    slk, em = released("SLK"), released("PADDLE")
    # As the released scripts have it: support rows may be relabelled, and sigma is that of five neighbours.
    clustering = TransductiveClustering(normalization="unit", clamp_support=False, bandwidth_scale=0.4**0.5)
    methods: Mapping[str, tuple[FewShotMethod, Solve, str]] = {
        "SLK-MS": (clustering, slk or plain_slk, "written plainly" if slk is None else "as released"),
        "PADDLE": (
            paddle(normalization="unit"),
            em or plain_paddle,
            "written plainly" if em is None else "as released",
        ),
        "UNEM": (UNEM(normalization="unit"), plain_unem, "written plainly"),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for shots in (1, 5):
            tasks = episodes(shots, together)
            for name, (ours, peer, how) in methods.items():
                for label, size, least in (
                    ("one at a time", 1, LEAST_ALONE),
                    (f"{together:,} together", 0, LEAST_TOGETHER),
                ):
                    found = paired(_ours(ours, tasks, size, alone), _peers(peer, tasks, alone), pairs)
                    title = f"{name}, {shots}-shot, {label} / {how}, times as fast"
                    rows.append(row(title, found, "s/episode", least=least, inverse=True))
        return rows
    finally:
        torch.set_num_threads(threads)


def episodes(shots: int, count: int) -> Episodes:
    """Random episodes whose classes overlap as those of a benchmark do."""
    draw = torch.Generator().manual_seed(shots)
    means = torch.randn(count, WAYS, DIMENSION, generator=draw) / DIMENSION**0.5

    def some(labels: Tensor) -> Tensor:
        noise = torch.randn(count, labels.shape[1], DIMENSION, generator=draw) / DIMENSION**0.5
        return means.gather(1, labels[..., None].expand(-1, -1, DIMENSION)) + _SPREAD * noise

    given = torch.arange(WAYS).repeat_interleave(shots).expand(count, -1)
    truth = torch.arange(QUERIES).remainder(WAYS).expand(count, -1)
    return Episodes(some(given), given, some(truth), truth, WAYS)


def _ours(method: FewShotMethod, tasks: Episodes, size: int, alone: int) -> Callable[[], float]:
    parts = [tasks] if not size else list(tasks.take(slice(0, alone)).parts(size))

    def run() -> float:
        started = time.perf_counter()
        for part in parts:
            method.solve(part)
        return (time.perf_counter() - started) / sum(map(len, parts))

    return run


def _peers(solve: Solve, tasks: Episodes, alone: int) -> Callable[[], float]:
    def run() -> float:
        started = time.perf_counter()
        for at in range(alone):
            solve(tasks.support[at], tasks.support_labels[at], tasks.query[at])
        return (time.perf_counter() - started) / alone

    return run
