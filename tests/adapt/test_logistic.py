from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from thrifty.adapt.logistic import fit_logistic


def problem(seed: int, count: int, classes: int, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), random.integers(0, classes, count - classes)])
    return random.normal(size=(count, dimension)) * 3 + random.normal(size=(classes, dimension))[y], y


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(3, 6), st.integers(1, 12), st.sampled_from([0.1, 1.0, 30.0]))
def test_it_is_scikit_learns(seed: int, classes: int, dimension: int, strength: float) -> None:
    x, y = problem(seed, classes + 5, classes, dimension)
    theirs = LogisticRegression(C=strength, tol=1e-10, max_iter=100_000).fit(x, y)
    targets = torch.nn.functional.one_hot(torch.from_numpy(y), classes).double()
    mine = fit_logistic(torch.from_numpy(x), targets, strength, tolerance=1e-12)
    np.testing.assert_allclose(mine.weight.numpy(), theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(
        (mine.bias - mine.bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_point_of_each_class_in_many_dimensions(dtype: torch.dtype) -> None:
    """As BECLR uses it: standardised vectors of 640 numbers, whose logits are large from the first step on."""
    x = torch.randn(20, 5, 640, generator=torch.Generator().manual_seed(0)).to(dtype)
    mine = fit_logistic(x, torch.eye(5, dtype=dtype).expand(20, 5, 5))
    q = torch.randn(20, 30, 640, generator=torch.Generator().manual_seed(1)).to(dtype)
    for index in range(20):
        theirs = LogisticRegression(C=1.0, tol=1e-8, max_iter=10_000).fit(x[index].double().numpy(), np.arange(5))
        logits = mine(q)[index].double().numpy()
        expected = theirs.decision_function(q[index].double().numpy())
        np.testing.assert_allclose(
            logits - logits.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=2e-2
        )


def test_problems_are_solved_apart() -> None:
    pairs = [problem(seed, 9, 3, 4) for seed in range(4)]
    x = torch.stack([torch.from_numpy(x) for x, _ in pairs])
    y = torch.stack([torch.nn.functional.one_hot(torch.from_numpy(y), 3) for _, y in pairs]).double()
    together = fit_logistic(x.reshape(2, 2, 9, 4), y.reshape(2, 2, 9, 3), tolerance=1e-12)
    assert together.weight.shape == (2, 2, 3, 4)
    alone = fit_logistic(x[3], y[3], tolerance=1e-12)
    torch.testing.assert_close(together.weight[1, 1], alone.weight, atol=1e-6, rtol=0)


def test_shares_count_like_repeated_examples() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    soft = fit_logistic(x, torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64), 2.0, tolerance=1e-12)
    hard = fit_logistic(
        x[[0, 0, 1, 1]], torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]], dtype=torch.float64), 1.0, tolerance=1e-12
    )
    torch.testing.assert_close(soft.weight, hard.weight, atol=1e-6, rtol=0)
