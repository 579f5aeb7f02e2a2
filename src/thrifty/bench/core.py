"""What resumability costs: the same training with a checkpoint every 50 steps and with none."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.loop import fit
from thrifty.core.run import Run

TARGET = 1.03  # time with checkpoints over time without


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Trains a network of 4 million weights with AdamW, in pairs of runs whose order alternates.

    Parameters
    ----------
    quick
        Fewer steps and pairs.

    Returns
    -------
    list of dict
        One row: ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``; seconds a step with and
        without checkpoints, and their ratio in each pair.
    """
    pairs, steps = (1, 60) if quick else (5, 200)
    ratios, ours, peer = [], [], []
    for pair in range(pairs):
        order = (50, steps) if pair % 2 == 0 else (steps, 50)
        seconds = {save_every: _train(steps, save_every) for save_every in order}
        ours.append(seconds[50] / steps)
        peer.append(seconds[steps] / steps)
        ratios.append(seconds[50] / seconds[steps])
    median = statistics.median(ratios)
    return [
        {
            "name": "checkpoint every 50 steps / none, time",
            "ratio": median,
            "ours": statistics.median(ours),
            "peer": statistics.median(peer),
            "unit": "s/step",
            "runs": ratios,
            "min": min(ratios),
            "median": median,
            "max": max(ratios),
            "target": f"<= {TARGET}",
            "ok": median <= TARGET,
        }
    ]


def _train(steps: int, save_every: int) -> float:
    width, batch = 1024, 256
    model = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(4)])
    x, y = torch.randn(batch, width), torch.randn(batch, width)
    with tempfile.TemporaryDirectory() as directory, Run(Path(directory) / "run", device="cpu") as job:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
        started = time.perf_counter()
        fit(
            lambda net, _: nn.functional.mse_loss(net(x), y),
            model,
            lambda step: step,
            optimizer,
            job,
            steps,
            save_every=save_every,
        )
        return time.perf_counter() - started
