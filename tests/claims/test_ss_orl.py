"""The claim of SS-ORL is well formed and its arms run."""

from __future__ import annotations

import dataclasses
import math

import pytest

from thrifty.claims.harness import reproduce
from thrifty.claims.ss_orl import CLAIM
from thrifty.control.baselines import Problem


def test_conditions_name_arms_and_metrics_that_exist():
    for condition in CLAIM.conditions:
        assert condition.left in CLAIM.arms
        assert condition.right in CLAIM.arms
    assert next(iter(CLAIM.arms)) == "ss-orl"
    assert CLAIM.seeds >= 3


def test_three_times_less_is_a_margin_of_the_logarithm():
    condition = CLAIM.conditions[2]
    values = {"ss-orl": {"log10_label_mse": [math.log10(0.01)]}, "ss-orl k=0": {"log10_label_mse": [math.log10(0.03)]}}
    assert condition.difference(values).mean == pytest.approx(condition.margin)


def test_within_ten_points_of_the_oracle():
    assert str(CLAIM.conditions[1]) == "return: ss-orl > oracle - 10"


def test_the_arms_differ_in_what_they_are_named_after(tmp_path, monkeypatch):
    small = {"idm_width": 16, "idm_steps": 5, "agent_steps": 3, "agent_batch_size": 8, "agent_width": 16}
    seen = []

    def sized(_self, method):
        seen.append(method.k)
        return dataclasses.replace(method, idm_batch_size=16, **small)

    monkeypatch.setattr(Problem, "sized", sized)
    result = reproduce(CLAIM, tmp_path, quick=True)
    assert seen[:2] == [1, 0]
    assert result["verdict"] == "inconclusive"
    assert set(result["arms"]) == set(CLAIM.arms)
    assert all(math.isfinite(arm["metrics"]["return"]["mean"]) for arm in result["arms"].values())
