from __future__ import annotations

import dataclasses

import pytest
import torch

from thrifty.claims import ssd as claim
from thrifty.claims.harness import measure
from thrifty.claims.ssd import CLAIM
from thrifty.core.errors import InputError
from thrifty.forget.baselines import FineTune, GradientAscent
from thrifty.forget.picture_problems import class_problem
from thrifty.forget.problems import choose, run_method
from thrifty.forget.ssd import SSD
from thrifty.forget.tasks import TASKS


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    directory = tmp_path_factory.mktemp("problem")
    return class_problem("digits", 3, 0, directory, train=500, valid=200, test=200, epochs=6)


def test_the_problem_is_a_trained_model_and_disjoint_sets(problem):
    gone, kept, full = (problem.sets[name] for name in ("forget_set", "retain_set", "full_set"))
    assert len(gone) + len(kept) == len(full)
    assert set(gone.y.tolist()) == {3}
    assert 3 not in kept.y
    held_out = torch.cat([problem.valid["forget"].x, problem.valid["retain"].x])
    # Some digits were drawn the same way twice; a held-out set cut from training would be among them wholly.
    among = (held_out.flatten(1)[:, None] == full.x.flatten(1)[None]).all(2).any(1)
    assert among.float().mean() < 0.05
    original = run_method(GradientAscent(learning_rate=1e-12), problem)
    assert original["test_retain_accuracy"] > 0.85
    assert original["test_forget_accuracy"] > 0.7


def test_trained_networks_are_kept(tmp_path, monkeypatch):
    sizes = {"train": 100, "valid": 30, "test": 50, "epochs": 1}
    first = class_problem("digits", 3, 0, tmp_path, **sizes)
    monkeypatch.setattr("thrifty.forget.baselines.Retrain.train", lambda *_: pytest.fail("trained again"))
    again = class_problem("digits", 3, 0, tmp_path, **sizes)
    assert again.retrain_seconds == first.retrain_seconds
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))
    with pytest.raises(InputError, match="classes 0 to 9, not 12"):
        class_problem("digits", 12, 0, tmp_path, **sizes)


def test_every_condition_can_be_judged_on_what_the_arms_return(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_SELECTIONS", (20.0, 50.0))
    monkeypatch.setattr(claim, "_LABEL_FREE_SELECTIONS", (10.0,))
    monkeypatch.setattr(claim, "_FINE_TUNE", ((0.1, 1),))
    monkeypatch.setattr(claim, "_ASCENT_RATES", (0.1,))
    monkeypatch.setattr(claim, "_TEACHER_RATES", (1e-3,))
    found = measure(lambda *_: problem, CLAIM.arms, [0], tmp_path, quick=True)
    assert next(iter(found.values)) == "ssd"
    for condition in CLAIM.conditions:
        assert condition.metric in found.values[condition.left]
    for arm in found.values.values():
        assert {name.lstrip("-") for name in CLAIM.metrics} <= set(arm)
    ssd, original = found.values["ssd"], found.values["original"]
    assert ssd["test_forget_accuracy"][0] < 0.3 < original["test_forget_accuracy"][0]
    assert found.values["retrain"]["mia_gap"] == [0.0]
    assert found.values["retrain"]["seconds_ratio"] == [1.0]


def test_all_arms_choose_among_equally_many_settings():
    grids = (
        claim._SELECTIONS,
        claim._LABEL_FREE_SELECTIONS,
        claim._FINE_TUNE,
        claim._ASCENT_RATES,
        claim._TEACHER_RATES,
    )
    assert {len(set(grid)) for grid in grids} == {6}


def test_settings_are_chosen_on_held_out_training_data_only(problem):
    blind = dataclasses.replace(problem, judged={})
    candidates = [SSD(1e9), SSD(30.0), SSD(1.0)]
    assert choose(candidates, blind) is candidates[1]
    stored = candidates[0].importance(problem.model, problem.sets["full_set"])
    assert choose(candidates, blind, full_set=stored) is candidates[1]


def test_a_method_gets_the_sets_it_needs_and_no_others(problem):
    blind = dataclasses.replace(problem, sets={"retain_set": problem.sets["retain_set"]})
    assert run_method(FineTune(epochs=0.1), blind)["seconds"] > 0
    with pytest.raises(KeyError):
        run_method(SSD(), blind)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_give_what_the_method_needs(name):
    from thrifty.core import index

    assert set(index.paper("ssd").needs) <= TASKS[name].gives
    if "images" in TASKS[name].gives:
        assert isinstance(TASKS[name].variants["lfssd"](), SSD)
