"""Candidate networks of a search: each with initial weights of its own, and what is found out about all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from thrifty.core.atomic import write_json
from thrifty.core.seeding import derive_seed


def initialised(make: Callable[[], nn.Module], seed: int, *names: str | int) -> nn.Module:
    """A network with weights that depend on the seed and the names only.

    Parameters
    ----------
    make
        Builds it on the CPU.
    seed
        Of the weights.
    names
        What tells it from the others, such as its architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "initial weights", *names))
        return make()


def kept(path: Path, make: Callable[[], Float[np.ndarray, "n m"]]) -> Float[np.ndarray, "n m"]:
    """A table of numbers from a file that an earlier life of a run wrote, or made and written there."""
    if path.exists():
        return np.array(json.loads(path.read_text(encoding="utf-8")), dtype=np.float64)
    values = make()
    write_json(path, values.tolist())
    return values
