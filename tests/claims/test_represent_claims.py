from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.claims import directpred, sla
from thrifty.claims.harness import measure
from thrifty.represent import problems
from thrifty.represent.problems import picture_problem

TINY = {
    "directpred": {"two-views": {"epochs": 0.4}},
    "sla": {"labelled-pictures": {"epochs": 1.0}},
}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(directpred, "_SIZE", 8)

    def make(name: str):
        sizes = {"train": 150, "valid": 40, "test": 60, "labels_per_class": 3, "width": 2}
        return picture_problem("digits", 0, tmp_path, size=None, **sizes, settings=TINY[name])

    return make


@pytest.mark.parametrize("module", [directpred, sla])
def test_every_condition_can_be_judged_on_what_the_arms_return(module, tiny, tmp_path: Path) -> None:
    claim = module.CLAIM
    problem = tiny(claim.paper_id)
    found = measure(lambda *_: problem, claim.arms, [0], tmp_path, quick=True).values
    assert next(iter(found)).startswith(claim.paper_id)
    for condition in claim.conditions:
        assert condition.metric in found[condition.left]
        assert not isinstance(condition.right, str) or condition.metric in found[condition.right]
    shown = {name.lstrip("-") for name in claim.metrics}
    assert all(shown >= set(arm) for arm in found.values())
    assert shown == set(found[claim.conditions[0].left])


def test_arms_that_differ_by_inference_share_a_training_and_all_try_as_many_rates(tiny, monkeypatch) -> None:
    trained = []
    train = problems.train_classifier

    def noted(method, problem):
        trained.append(method)
        return train(method, problem)

    monkeypatch.setattr(sla, "train_classifier", noted)
    problem = tiny("sla")
    for arm in sla.CLAIM.arms.values():
        arm(problem)
    assert len(trained) == 6 * len(sla._RATES)
    kinds = {(type(method).__name__, getattr(method, "distill", None), method.epochs) for method in trained}
    assert len(kinds) == 6
    assert {method.epochs for method in trained} == {1.0, 4.0}


def test_settings_are_chosen_on_pictures_that_no_final_number_sees(tiny) -> None:
    problem = tiny("sla")
    parts = [{picture.numpy().tobytes() for picture in part.x} for part in (problem.train, problem.valid, problem.test)]
    assert not parts[0] & parts[1]
    assert not parts[2] & (parts[0] | parts[1])


def test_the_rate_with_the_best_validation_accuracy_is_taken(tiny, monkeypatch) -> None:
    valid = iter([0.4, 0.6])

    def scored(method, problem, augment):
        del problem, augment
        return {"accuracy": next(valid)}, {"accuracy": method.learning_rate}

    monkeypatch.setattr(directpred, "train_two_views", scored)
    assert directpred.CLAIM.arms["directpred"](tiny("directpred")) == {"accuracy": directpred._RATES[1]}
