from __future__ import annotations

import dataclasses

import pytest
import torch

from thrifty.claims import dmm as claim
from thrifty.claims.dmm import CLAIM, Known
from thrifty.claims.harness import measure
from thrifty.forget.ensemble_problem import Sizes, alike_digits, best, contest, first_component
from thrifty.forget.retraining import outputs

SIZES = Sizes(training=60, held_out=20, forgotten=4, models=3, choosing=2, datamodels=8, epochs=1)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    return contest(0, tmp_path_factory.mktemp("contest"), SIZES)


def test_what_is_forgotten_is_alike_and_disjoint_from_what_is_kept(problem):
    assert problem.forget_set.y.unique().tolist() == [3]
    assert len(problem.forget_set) + len(problem.retain_set) == SIZES.training
    assert len(problem.points) == 80
    other = alike_digits(1, SIZES)
    assert other.y[:4].unique().tolist() == [5]


def test_the_first_component_is_the_direction_of_most_difference():
    place = torch.tensor([-1.0, 0.0, 4.0, -3.0])
    x = torch.outer(place, torch.tensor([0.6, -0.8])) + 5
    torch.testing.assert_close(first_component(x), place, atol=1e-4, rtol=0)


def test_choosing_sees_neither_the_final_models_nor_the_final_pictures(problem):
    said = outputs(problem.choosing, problem.points)
    merit = problem.merit(said)
    changed = said.clone()
    changed[:, SIZES.training + 10 :] += torch.arange(10.0)
    assert problem.merit(changed) == merit
    assert problem.scores(changed)["test_klom"] != problem.scores(said)["test_klom"]
    assert dataclasses.replace(problem, oracles=problem.oracles + torch.arange(10.0)).merit(said) == merit
    far = said + 50 * torch.arange(10.0)
    for settings in ([far, said], [said, far]):
        assert best(settings, lambda setting: setting, problem) is said


def test_every_condition_can_be_judged_on_what_the_arms_return(problem, tmp_path, monkeypatch):
    for rates in ("_RATES", "_ASCENT_RATES", "_DESCENT_RATES", "_SCRUB_RATES"):
        monkeypatch.setattr(claim, rates, (1e-3,))
    monkeypatch.setattr(claim, "_STEPS", 2)
    monkeypatch.setitem(claim._POOL, "epochs", 1)
    found = measure(lambda *_: problem, CLAIM.arms, [0], tmp_path, quick=True)
    assert next(iter(found.values)) == "dmm"
    for condition in CLAIM.conditions:
        assert condition.metric in found.values[condition.left]
        assert condition.right in found.values
    for arm in found.values.values():
        assert {name.lstrip("-") for name in CLAIM.metrics} <= set(arm)


def test_all_arms_choose_among_equally_many_settings():
    grids = (claim._RATES, claim._ASCENT_RATES, claim._DESCENT_RATES, claim._SCRUB_RATES)
    assert {len(set(grid)) for grid in grids} == {4}


def test_known_effects_are_those_of_the_pool():
    effects = torch.randn(2, 6, 3)
    assert torch.equal(Known(effects).attribute(own=torch.tensor([4, 1])), effects[:, [4, 1]])
