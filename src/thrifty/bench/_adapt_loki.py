"""Loki over 100,000 leaves of a tree: a prediction batch against the clock."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from thrifty.adapt.class_tree import Tree
from thrifty.bench._measure import row

LEAVES, BATCH = 100_000, 256
MOST_SECONDS = 1.0


def loki_rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measures a batch of 256 on a binary tree of 100,000 leaves, which are the classes; all of them are observed.

    The released product needs the matrix of squared distances, 40 GB in float32: the clock is all there is to compare
    with.

    Parameters
    ----------
    quick
        One run instead of five.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``; the peer is one second.
    """
    nodes = np.arange(1, 2 * LEAVES - 1)
    tree = Tree(np.stack([(nodes - 1) // 2, nodes], 1), labels="leaves")
    rule = tree.rule(torch.arange(LEAVES))
    logits = torch.randn(BATCH, LEAVES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probs = (4 * logits).softmax(1)
    rule.nearest(probs[:2])  # what is done once in a process
    seconds = []
    for _ in range(1 if quick else 5):
        started = time.perf_counter()
        rule.nearest(probs)
        seconds.append((time.perf_counter() - started, MOST_SECONDS))
    return [row("Loki, a batch of 256 over 100,000 leaves / one second, time", seconds, "s", most=1.0)]
