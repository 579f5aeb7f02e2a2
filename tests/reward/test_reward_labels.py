"""Labels from rollouts and the losses of reward models, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from thrifty.reward.labels import outcome_loss, process_loss, rollout_labels


def test_labels_of_rollouts() -> None:
    right = torch.tensor([[[True, False, False, True], [False] * 4, [True] * 4]])
    mask = torch.tensor([[True, True, False]])
    assert rollout_labels(right, mask).tolist() == [[1, 0, 0]]
    assert rollout_labels(right, mask, "soft").tolist() == [[0.5, 0, 0]]


def test_losses_are_cross_entropies_over_what_is_there() -> None:
    good = 1 / (1 + math.exp(-2))
    expected = -(math.log(good) + math.log(1 - good)) / 2
    one, two = torch.tensor([[2.0], [2.0]]), torch.tensor([[1.0, 3.0], [-2.0, 0.0]])
    for logits in (one, two):
        assert float(outcome_loss(logits, torch.tensor([1.0, 0.0]))) == pytest.approx(expected, abs=1e-6)
        steps = torch.cat([logits, torch.full_like(logits[:1], 9.0)])[None]
        mask = torch.tensor([[True, True, False]])
        found = process_loss(steps, torch.tensor([[1.0, 0.0, 0.0]]), mask)
        assert float(found) == pytest.approx(expected, abs=1e-6)
    soft = float(process_loss(one[None], torch.tensor([[0.25, 0.25]]), torch.tensor([[True, True]])))
    assert soft == pytest.approx(-(0.25 * math.log(good) + 0.75 * math.log(1 - good)), abs=1e-6)
