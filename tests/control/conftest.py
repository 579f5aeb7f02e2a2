"""A run, and a fixed seed, for the tests of this room."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from thrifty.core.run import Run

# The first example of a test pays for what it imports.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def run(tmp_path):
    with Run(tmp_path / "run", device="cpu", config={}) as run:
        yield run
