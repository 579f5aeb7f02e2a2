from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.utils.estimator_checks import parametrize_with_checks

from thrifty.adapt.baselines import LinearHead, StreamingLDA, distillation, fisher_diagonal, pulled_back
from thrifty.core.errors import InputError

X = np.random.default_rng(0).normal(size=(60, 4)) + np.repeat(np.eye(4)[:3] * 3, 20, axis=0)
Y = np.repeat([0, 1, 2], 20)


@parametrize_with_checks([LinearHead(epochs=30, normalize=False, learning_rate=0.1), StreamingLDA(normalize=False)])
def test_scikit_learn_conventions(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def test_distillation_is_zero_at_the_old_head_and_its_gradient_too() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    loss = distillation(logits, logits.detach())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-6
    assert distillation(logits, logits.detach() + torch.eye(5)[:, :3]).item() > 0.01


def test_fisher_is_the_mean_squared_gradient() -> None:
    weight, z, codes = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    by_hand = torch.zeros(3, 4)
    for row, code in zip(z, codes, strict=True):
        w = weight.clone().requires_grad_()
        torch.nn.functional.cross_entropy((w @ row)[None], code[None]).backward()
        assert w.grad is not None
        by_hand += w.grad.square() / 6
    torch.testing.assert_close(fisher_diagonal(weight, z, codes), by_hand)


def test_pulling_back_ends_between_the_two_and_where_a_small_step_points() -> None:
    weight, before = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(pulled_back(weight, before, torch.zeros(3, 4)), weight)
    torch.testing.assert_close(pulled_back(weight, before, torch.full((3, 4), 1e9)), before)
    step = pulled_back(weight, before, torch.full((3, 4), 1e-3)) - weight
    torch.testing.assert_close(step, 1e-3 * (before - weight), rtol=2e-3, atol=1e-6)


def test_linear_head_learns_and_forgets() -> None:
    head = LinearHead().partial_fit(X[:40], Y[:40])
    assert head.score(X[:40], Y[:40]) > 0.9
    head.partial_fit(X[40:], Y[40:])
    assert head.score(X[:40], Y[:40]) < 0.6


@pytest.mark.parametrize("remedy", [{"replay": 12}, {"distill": 1.0}, {"ewc": 1e4}])
def test_each_remedy_forgets_less(remedy: dict[str, Any]) -> None:
    plain, better = LinearHead(learning_rate=1.0), LinearHead(learning_rate=1.0, **remedy)
    for head in (plain, better):
        head.partial_fit(X[:40], Y[:40]).partial_fit(X[40:], Y[40:])
    assert better.score(X[:40], Y[:40]) > plain.score(X[:40], Y[:40])


def test_reservoir_keeps_no_more_than_asked_and_from_all_sessions() -> None:
    head = LinearHead(replay=15, epochs=1)
    for part in np.array_split(np.arange(60), 3):
        head.partial_fit(X[part], Y[part])
    assert len(head.stored_labels_) == len(head.stored_) == 15
    assert set(head.stored_labels_) == {0, 1, 2}


def test_same_seed_same_weights_and_saving_goes_on_equally(tmp_path: Path) -> None:
    first = LinearHead(replay=10, ewc=1.0, epochs=2).partial_fit(X[:40], Y[:40])
    first.save(tmp_path / "head.safetensors")
    second = LinearHead.load(tmp_path / "head.safetensors")
    for head in (first, second):
        head.partial_fit(X[40:], Y[40:])
    assert torch.equal(first.weight_, second.weight_)
    assert first.stored_labels_ == second.stored_labels_


def test_announced_classes_are_not_predicted() -> None:
    for head in (LinearHead(epochs=1), StreamingLDA()):
        head.partial_fit(X[:40], Y[:40], classes=[0, 1, 2])
        assert 2 not in head.predict(X)


def test_replay_with_distillation_is_refused() -> None:
    with pytest.raises(InputError, match="exclude each other"):
        LinearHead(replay=5, distill=1.0).fit(X, Y)


def test_streaming_lda_is_lda_at_any_partition(tmp_path: Path) -> None:
    head = StreamingLDA(shrinkage=0.1, normalize=False)
    for part in np.array_split(np.random.default_rng(1).permutation(60), 4):
        head.partial_fit(X[part], Y[part])
    # Equal priors: with equally many examples a class they don't matter.
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(X, Y)
    queries = np.random.default_rng(2).normal(size=(200, 4)) * 2
    assert np.mean(head.predict(queries) == reference.predict(queries)) > 0.99
    head.save(tmp_path / "lda.safetensors")
    again = StreamingLDA.load(tmp_path / "lda.safetensors")
    assert np.array_equal(again.predict(queries), head.predict(queries))
