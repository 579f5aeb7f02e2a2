from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty.adapt.episodes import Episodes
from thrifty.adapt.teen import TEEN
from thrifty.claims.harness import reproduce
from thrifty.claims.teen import CLAIM, episode_accuracy


def test_episodes_lean_on_the_base_classes_by_hand() -> None:
    """The support of the first class is off; its base relative pulls it back to where the query is."""
    base = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).double()
    support = torch.tensor([[[0.8, 0.0, 0.6], [0.0, 0.3, 0.95]]]).double()
    query = torch.tensor([[[0.6, 0.45, 0.6], [0.1, 0.3, 0.9]]]).double()
    episodes = Episodes(support, torch.tensor([[0, 1]]), query, torch.tensor([[0, 1]]), 2)
    assert episode_accuracy(episodes, base, TEEN(base_weight=0.0)) == 1.0
    # Leaning fully, both become base means: the second query is then nearer to the second class's relative.
    assert episode_accuracy(episodes, base, TEEN(base_weight=1.0, tau=100.0)) == 1.0
    swapped = Episodes(support, torch.tensor([[0, 1]]), query, torch.tensor([[1, 0]]), 2)
    assert episode_accuracy(swapped, base, TEEN(base_weight=0.0)) == 0.0


@pytest.mark.slow
@pytest.mark.network
def test_quick_claim_measures_every_arm(tmp_path: Path) -> None:
    result = reproduce(CLAIM, tmp_path / "run", quick=True)
    assert result["arms"].keys() == CLAIM.arms.keys()
    plain = result["arms"]["plain means"]["metrics"]
    assert {"1_shot_accuracy", "5_shot_accuracy", "harmonic_mean", "accuracy@1"} <= plain.keys()


@pytest.mark.slow
@pytest.mark.network
def test_choosing_sees_other_new_letters(tmp_path: Path) -> None:
    problem = CLAIM.prepare(0, True, tmp_path)
    base = problem.stream.base_classes
    assert np.array_equal(base, problem.choosing.base_classes)
    ours, others = (
        set(stream.train_y[np.concatenate(stream.sessions[1:])]) for stream in (problem.stream, problem.choosing)
    )
    assert ours
    assert ours.isdisjoint(others)
