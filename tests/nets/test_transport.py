from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.nets import transport
from thrifty.nets.transport import barycentric, sinkhorn, squared_distances

P = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
Q = torch.tensor([[0.5, 1.0], [0.7, 1.0], [1.2, 1.0], [2.5, 1.0]], dtype=torch.float64)


def costs(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_worked_example() -> None:
    cost = squared_distances(P, Q)
    found = sinkhorn(cost / cost.max(), 0.05)
    expected = [[0.248388, 0.236075, 0.015939, 0], [0.001612, 0.013926, 0.234061, 0.25]]
    np.testing.assert_allclose(found.plan.numpy(), expected, atol=1e-6)
    assert int(found.iterations) == 27


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(1, 8), st.sampled_from([0.02, 0.05, 0.5]), st.integers(0, 99))
def test_sums_are_the_marginals(rows: int, columns: int, epsilon: float, seed: int) -> None:
    a = costs(seed, rows) + 0.1
    b = costs(seed + 1, columns) + 0.1
    a, b = a / a.sum(), b / b.sum()
    plan = sinkhorn(costs(seed + 2, rows, columns), epsilon, a, b, tolerance=1e-9, max_iterations=20_000).plan
    torch.testing.assert_close(plan.sum(0), b, atol=1e-12, rtol=0)
    torch.testing.assert_close(plan.sum(1), a, atol=1e-6, rtol=0)


@pytest.mark.parametrize("epsilon", [0.02, 0.05, 1.0])
def test_plan_is_that_of_pot(epsilon: float) -> None:
    ot = pytest.importorskip("ot")
    cost = costs(0, 5, 30)
    a, b = np.full(5, 1 / 5), np.full(30, 1 / 30)
    mine = sinkhorn(cost, epsilon, tolerance=1e-12, max_iterations=100_000).plan
    theirs = ot.sinkhorn(a, b, cost.numpy(), epsilon, method="sinkhorn_log", stopThr=1e-12, numItermax=100_000)
    np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-8)


def test_default_tolerance_is_near_pot() -> None:
    ot = pytest.importorskip("ot")
    cost = costs(1, 5, 75)
    mine = sinkhorn(cost / cost.max(), 0.05).plan.numpy()
    theirs = ot.sinkhorn(np.full(5, 0.2), np.full(75, 1 / 75), (cost / cost.max()).numpy(), 0.05)
    np.testing.assert_allclose(mine, theirs, atol=1e-4)


def test_relaxed_rows_are_those_of_pot() -> None:
    ot = pytest.importorskip("ot")
    cost = costs(2, 4, 9)
    a, b = np.full(4, 1 / 4), np.full(9, 1 / 9)
    mine = sinkhorn(cost, 0.1, row_penalty=0.5, column_penalty=2.0, tolerance=1e-13, max_iterations=10_000).plan
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost.numpy(), 0.1, (0.5, 2.0), reg_type="entropy", numItermax=10_000, stopThr=1e-13
    )
    np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-8)


def test_relaxed_rows_follow_the_mass_and_columns_stay() -> None:
    cost = torch.tensor([[0.0] * 9 + [1.0], [1.0] * 9 + [0.0]], dtype=torch.float64)
    plan = sinkhorn(cost, 0.05, row_penalty=0.01, tolerance=1e-10).plan
    torch.testing.assert_close(plan.sum(0), torch.full((10,), 0.1, dtype=torch.float64))
    assert plan[0].sum() > 0.85


def test_logarithms_and_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = costs(3, 7, 5, 20)
    fast = sinkhorn(cost, 0.05)
    monkeypatch.setattr(transport, "LARGEST_EXPONENT", 0.0)
    slow = sinkhorn(cost, 0.05)
    assert torch.equal(fast.iterations, slow.iterations)
    torch.testing.assert_close(fast.plan, slow.plan, atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(fast.row_potential, slow.row_potential)


def test_an_epsilon_that_overflows_exp_does_no_harm() -> None:
    plan = sinkhorn(squared_distances(P, Q).float(), 1e-5, max_iterations=10, tolerance=0.0).plan
    assert torch.isfinite(plan).all()
    assert plan.argmax(0).tolist() == [0, 0, 1, 1]


@settings(max_examples=20)
@given(st.integers(0, 99))
def test_a_problem_does_not_depend_on_its_neighbours(seed: int) -> None:
    # Of very different hardness, so that they end after different numbers of iterations.
    cost = costs(seed, 9, 3, 8) * torch.logspace(-1, 0.3, 9, dtype=torch.float64).view(-1, 1, 1)
    together = sinkhorn(cost, 0.05)
    assert len(together.iterations.unique()) > 1
    for index in range(9):
        alone = sinkhorn(cost[index], 0.05)
        assert int(alone.iterations) == int(together.iterations[index])
        torch.testing.assert_close(alone.plan, together.plan[index], atol=1e-12, rtol=0)


def test_potentials_give_the_plan_and_batches_keep_their_shape() -> None:
    cost = costs(5, 2, 3, 4, 6)
    found = sinkhorn(cost, 0.1)
    rebuilt = ((found.row_potential[..., None] + found.column_potential[..., None, :] - cost) / 0.1).exp()
    torch.testing.assert_close(found.plan, rebuilt)
    assert found.iterations.shape == (2, 3)


@pytest.mark.parametrize("epsilon", [0.05, 0.001])
def test_rows_without_mass_get_none(epsilon: float) -> None:
    plan = sinkhorn(costs(6, 3, 5), epsilon, torch.tensor([0.5, 0.0, 0.5])).plan
    assert torch.isfinite(plan).all()
    assert plan[1].sum() == 0
    assert barycentric(plan, costs(7, 5, 2))[1].tolist() == [0, 0]


def test_gradients_are_those_of_differences() -> None:
    cost = costs(8, 3, 4).requires_grad_()

    def value(c: torch.Tensor) -> torch.Tensor:
        return (sinkhorn(c, 0.2, max_iterations=30, tolerance=0.0).plan * torch.arange(12.0).view(3, 4)).sum()

    assert torch.autograd.gradcheck(value, cost)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epsilon": 0.0}, "must be positive, not 0"),
        ({"epsilon": math.nan}, "must be positive"),
        ({"row_penalty": -1.0}, "must be positive"),
        ({"max_iterations": 0}, "and 0"),
        ({"rows": torch.ones(3)}, r"a row marginal must be 2 non-negative masses, not of shape \[3\]"),
        ({"columns": torch.tensor([1.0, -1.0, 1.0, 1.0])}, "a column marginal must be 4 non-negative"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        sinkhorn(squared_distances(P, Q), **({"epsilon": 0.1} | change))  # type: ignore[arg-type]
