from __future__ import annotations

import dataclasses
import functools

import pytest

from thrifty.claims import laf as claim
from thrifty.claims.harness import measure
from thrifty.claims.laf import CLAIM
from thrifty.core import index
from thrifty.forget.baselines import Retrain
from thrifty.forget.laf import LAF
from thrifty.forget.picture_problems import class_problem
from thrifty.forget.tasks import TASKS


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    directory = tmp_path_factory.mktemp("problem")
    return class_problem("digits", 3, 0, directory, train=300, valid=100, test=150, epochs=6)


def test_every_condition_can_be_judged_on_what_the_arms_return(problem, tmp_path, monkeypatch):
    monkeypatch.setattr(claim, "_STEPS", 6)
    monkeypatch.setattr(claim, "_PACES", (20.0,))
    monkeypatch.setattr(claim, "_REPAIR_EPOCHS", 1.0)
    for name in ("_FINE_TUNE_RATES", "_ASCENT_RATES", "_TEACHER_RATES", "_RETRAIN_RATES"):
        monkeypatch.setattr(claim, name, getattr(claim, name)[:1])
    asked = []
    forget = LAF.forget

    @functools.wraps(forget)  # whose signature says that it takes a run
    def noted(self, *given, **sets):
        asked.append(self)
        return forget(self, *given, **sets)

    monkeypatch.setattr(LAF, "forget", noted)
    trained = []
    train = Retrain.train
    monkeypatch.setattr(Retrain, "train", lambda self, data, to: trained.append(len(data)) or train(self, data, to))
    found = measure(lambda *_: problem, CLAIM.arms, [0], tmp_path, quick=True)
    assert next(iter(found.values)) == "laf"
    for condition in CLAIM.conditions:
        assert condition.metric in found.values[condition.left]
        assert not isinstance(condition.right, str) or condition.metric in found.values[condition.right]
    for arm in found.values.values():
        assert {name.lstrip("-") for name in CLAIM.metrics} <= set(arm)
    # LAF and the ablations choose, LAF+R takes LAF's setting; it alone sees labels: of a tenth.
    assert [method.needs_labels for method in asked] == [False, False, True, False, False, False, False]
    assert asked[2].repair_share == 0.1
    assert [method.alignment_rate for method in asked[3:5]] == [0, 0]
    assert [method.unlearning_rate for method in asked[5:]] == [0, 0]
    kept = len(problem.sets["retain_set"])
    assert trained == [round(kept / 10)] * 2


def test_all_arms_choose_among_equally_many_settings():
    grids = (
        claim._PACES,
        claim._FINE_TUNE_RATES,
        claim._ASCENT_RATES,
        claim._TEACHER_RATES,
        claim._RETRAIN_RATES,
    )
    assert {len(set(grid)) for grid in grids} == {3}


def test_the_setting_is_chosen_once_a_problem_and_not_on_the_final_sets(problem, monkeypatch):
    chosen = []
    monkeypatch.setattr(claim, "choose", lambda candidates, given: chosen.append(given) or candidates[1])
    blind = dataclasses.replace(problem, judged={})
    assert claim._laf(blind) is claim._laf(blind)
    assert claim._laf(blind).steps == claim._STEPS
    assert chosen == [blind]


@pytest.mark.parametrize("name", ["digits-class", "fashion-mnist-random", "fashion-mnist-class-vit"])
def test_tasks_give_what_the_method_needs(name):
    assert set(index.paper("laf").needs) <= TASKS[name].gives
    assert TASKS[name].variants["laf+r"]().needs_labels
