from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.adapt.virtual_outliers import (
    boundary_points,
    energy,
    energy_quantiles,
    kth_distances,
    synthesize_outliers,
    vor_loss,
)
from thrifty.core.errors import InputError

ID = torch.tensor([[16.0, 0.0], [14.0, 1.0]])
OOD = torch.tensor([[0.0, 1.0], [4.0, 2.0]])


def test_worked_example() -> None:
    torch.testing.assert_close(energy(ID), torch.tensor([-16.000000, -14.000002]))
    torch.testing.assert_close(energy(OOD), torch.tensor([-1.313262, -4.126928]))
    assert float(vor_loss(ID, OOD)) == pytest.approx(0.056346, abs=1e-6)
    assert float(vor_loss(ID, OOD, huber=False)) == pytest.approx(0.113498, abs=1e-6)
    assert float(vor_loss(ID, OOD, weight=1.0)) == pytest.approx(0.249999 + 0.313464, abs=1e-6)


@given(st.floats(15.1, 40), st.floats(-40, -0.5))
def test_nothing_is_asked_of_energies_on_their_sides(high: float, low: float) -> None:
    assert float(vor_loss(torch.tensor([[high, high]]), torch.tensor([[low, low]]))) == 0


def test_neighbours_worked_example() -> None:
    points = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(kth_distances(points, points, 2), torch.tensor([0.4, 0.4, 0.8, 2.0]))
    assert boundary_points(5 * points, 2, 1).tolist() == [3]


def cloud(seed: int = 0) -> torch.Tensor:
    return torch.tensor([4.0, 0.0, 0.0]) + torch.randn(60, 3, generator=torch.Generator().manual_seed(seed))


def test_paper_outliers_lie_about_boundary_points_and_far_from_the_examples() -> None:
    x = cloud()
    made = synthesize_outliers(
        x, 40, k=10, n_boundary=5, n_offsets=30, sigma=0.3, generator=torch.Generator().manual_seed(1)
    )
    nearest = torch.cdist(made, x[boundary_points(x, 10, 5)]).min(1).values
    assert nearest.max() < 0.3 * 4
    unit = torch.nn.functional.normalize(x, dim=1)
    apart = kth_distances(torch.nn.functional.normalize(made, dim=1), unit, 10)
    assert apart.min() > kth_distances(unit, unit, 10).quantile(0.9)
    assert len(made.unique(dim=0)) == 40


def test_released_outliers_are_few_points_about_the_origin() -> None:
    made = synthesize_outliers(cloud(), 20, k=10, n_boundary=5, n_offsets=30, sigma=0.1, center="origin")
    assert made.norm(dim=1).max() < 1
    assert len(made.unique(dim=0)) == 4


def test_distances_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from thrifty.adapt import virtual_outliers

    whole = kth_distances(cloud(1), cloud(2), 7)
    monkeypatch.setattr(virtual_outliers, "_DISTANCES", 100)
    torch.testing.assert_close(kth_distances(cloud(1), cloud(2), 7), whole)


def test_quantiles() -> None:
    low, high = energy_quantiles(torch.arange(101.0), 0.1, 0.8)
    assert (low, high) == (pytest.approx(10), pytest.approx(80))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"k": 61}, "60 examples can't be the 61th"),
        ({"n": 151}, "151 outliers can't be chosen from 150"),
        ({"center": "origins"}, "center 'origins' is unknown: did you mean 'origin'"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        synthesize_outliers(cloud(), **({"n": 10, "k": 5, "n_boundary": 5, "n_offsets": 30} | change))
