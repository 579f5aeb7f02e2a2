"""Tiny pictures whose class is where they are bright, and runs for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from thrifty.core.run import Run


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with Run(tmp_path / "run", device="cpu") as job:
        yield job


def bars(count: int = 80, classes: int = 4, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noisy 8x8 pictures in which the class is a bright row."""
    draw = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = draw.integers(0, 90, (count, 8, 8))
    x[np.arange(count), y * 2] += 150
    return x.astype(np.uint8), y
