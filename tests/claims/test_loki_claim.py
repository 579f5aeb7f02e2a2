"""The claim's arms at their quick size: same classifier, same test drawings, another decision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thrifty.claims.loki import CLAIM, OBSERVED, prepare
from thrifty.core.errors import InputError


def test_arms_differ_in_the_decision_alone(tmp_path: Path) -> None:
    try:
        problem = prepare(0, True, tmp_path)
    except InputError:
        pytest.skip("the letters can't be fetched")
    letters = len(problem.tree)
    for split in problem.splits.values():
        assert len(split.observed) == round(OBSERVED * letters)
        assert split.probs.shape == (2 * letters, len(split.observed))
    # Every letter is tested, as often as any other.
    assert set(np.unique(problem.true, return_counts=True)[1].tolist()) == {2}
    measured = {name: arm(problem) for name, arm in CLAIM.arms.items()}
    for values in measured.values():
        assert set(values) == {metric.lstrip("-") for metric in CLAIM.metrics}
    assert measured["loki"]["squared distance"] < measured["argmax"]["squared distance"]
    assert measured["loki, active classes"]["locus"] > measured["loki"]["locus"]
    # The argmax knows the observed letters only.
    assert measured["argmax"]["letters predicted"] <= round(OBSERVED * letters)
