from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thrifty.claims.harness import reproduce
from thrifty.claims.nmc import CLAIM


def test_choosing_never_sees_a_test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    problem = CLAIM.prepare(0, True, tmp_path)
    tested = {row.tobytes() for row in problem.stream.test_x}
    seen = {row.tobytes() for part in (problem.choosing.train_x, problem.choosing.test_x) for row in part}
    assert not tested & seen
    trained = {row.tobytes() for row in problem.stream.train_x}
    assert seen <= trained
    assert set(np.unique(problem.stream.test_y)) == set(np.unique(problem.stream.train_y))
    assert [set(problem.stream.train_y[rows]) for rows in problem.stream.sessions] == [
        set(problem.choosing.train_y[rows]) for rows in problem.choosing.sessions
    ]


@pytest.mark.slow
def test_quick_claim_measures_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    result = reproduce(CLAIM, tmp_path / "run", quick=True)
    assert result["arms"].keys() == CLAIM.arms.keys()
    nmc, joint = (result["arms"][arm]["metrics"] for arm in ("nmc", "joint"))
    assert nmc["order_changes"]["mean"] == 0
    assert joint["final_accuracy"]["mean"] > result["arms"]["sequential"]["metrics"]["final_accuracy"]["mean"]
