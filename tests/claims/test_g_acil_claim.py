from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thrifty.adapt.g_acil import GACIL
from thrifty.claims.g_acil import CLAIM, JointRidge
from thrifty.claims.harness import reproduce


def test_choosing_never_sees_a_test_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    problem = CLAIM.prepare(0, True, tmp_path)
    tested = {row.tobytes() for row in problem.stream.test_x}
    seen = {row.tobytes() for part in (problem.choosing.train_x, problem.choosing.test_x) for row in part}
    assert not tested & seen
    assert seen <= {row.tobytes() for row in problem.stream.train_x}
    assert len(problem.stream.sessions) == len(problem.choosing.sessions) == 5


def test_the_joint_arm_solves_what_the_recursion_does() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 4)), random.integers(0, 3, 50)
    head = GACIL(ridge=0.5, buffer_size=20).partial_fit(x[:20], y[:20]).partial_fit(x[20:], y[20:])
    joint = JointRidge(head).partial_fit(x[:30], y[:30]).partial_fit(x[30:], y[30:])
    weights, classes = joint.weights()
    assert classes.tolist() == [0, 1, 2]
    np.testing.assert_allclose(weights, head.weights_, atol=1e-9)
    assert np.array_equal(joint.predict(x), head.predict(x))


@pytest.mark.slow
def test_quick_claim_measures_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    result = reproduce(CLAIM, tmp_path / "run", quick=True)
    assert result["arms"].keys() == CLAIM.arms.keys()
    ours, joint = (result["arms"][arm]["metrics"] for arm in ("g-acil", "joint ridge"))
    assert ours["weight_gap"]["mean"] < 1e-8
    for name in ("final_accuracy", "anytime_accuracy"):
        assert ours[name]["mean"] == pytest.approx(joint[name]["mean"], abs=0.005)
