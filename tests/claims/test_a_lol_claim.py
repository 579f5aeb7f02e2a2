"""The claim of A-LoL is well formed, its log is as mixed as it says, and its arms run."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from thrifty.align.settings import addition
from thrifty.claims import a_lol
from thrifty.claims.harness import reproduce


def test_conditions_name_arms_and_metrics_that_exist() -> None:
    for condition in a_lol.CLAIM.conditions:
        assert condition.left in a_lol.CLAIM.arms
        assert condition.right in a_lol.CLAIM.arms
    assert next(iter(a_lol.CLAIM.arms)) == "a-lol"
    assert a_lol.CLAIM.seeds >= 3


def test_the_log_is_a_tenth_good_and_otherwise_mostly_wrong() -> None:
    known = [(a, b) for a in range(20) for b in range(1, 20)]
    log = a_lol._log(known, torch.Generator().manual_seed(0))
    right, invalid = addition.judge(known, log)
    share = right.view(-1, a_lol.ANSWERS).float().mean(0)
    # The difference is right by chance where the first number is 0 (b - 0 is 0 + b): 19 of these 380 sums.
    assert share[: a_lol.EXPERTS].mean() == pytest.approx(0.9, abs=0.03)
    assert share[a_lol.EXPERTS :].mean() == pytest.approx(0.3 + 0.7 * 19 / 380, abs=0.03)
    assert not invalid.any()
    assert float(log["reward"][right].mean()) == pytest.approx(0.9, abs=0.02)
    assert float(log["reward"][~right].mean()) == pytest.approx(0.1, abs=0.02)
    assert 0 <= float(log["reward"].min()) <= float(log["reward"].max()) <= 1


def test_all_arms_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addition, "LEARNING_RATES", (1e-3,))
    monkeypatch.setattr(addition, "SAMPLES", 2)
    monkeypatch.setattr(a_lol, "ANSWERS", 3)
    result = reproduce(dataclasses.replace(a_lol.CLAIM), tmp_path, quick=True)
    assert set(result["arms"]) == set(a_lol.CLAIM.arms)
    assert all(math.isfinite(arm["metrics"]["accuracy"]["mean"]) for arm in result["arms"].values())
