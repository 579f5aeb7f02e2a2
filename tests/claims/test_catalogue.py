"""Every claim names arms that it has: a slip would show only after minutes of measuring."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import pytest

from thrifty import claims
from thrifty.claims.harness import Claim
from thrifty.core import index


def all_claims() -> dict[str, Claim]:
    modules = [
        importlib.import_module(f"thrifty.claims.{found.name}") for found in pkgutil.iter_modules(claims.__path__)
    ]
    return {module.CLAIM.paper_id: module.CLAIM for module in modules if hasattr(module, "CLAIM")}


CLAIMS = all_claims()


def test_every_implemented_paper_has_a_claim() -> None:
    assert set(CLAIMS) == {paper.id for paper in index.papers().values() if index.implemented(paper)}


@pytest.mark.parametrize("paper_id", CLAIMS)
def test_conditions_are_on_arms_that_are_there(paper_id: str) -> None:
    claim = CLAIMS[paper_id]
    for condition in claim.conditions:
        assert condition.left in claim.arms
        assert isinstance(condition.right, int | float) or condition.right in claim.arms
    assert len(claim.arms) >= 2
    assert claim.seeds >= 3


@pytest.mark.parametrize("paper_id", ["light-r1", "pure", "reward-clip-delta"])
def test_small_settings_measure_what_their_conditions_name(paper_id: str, tmp_path: Path) -> None:
    """One arm of each setting that is measured in seconds, at its quick size."""
    claim = CLAIMS[paper_id]
    problem = claim.prepare(0, True, tmp_path)
    measured = claim.arms[claim.conditions[-1].left](problem)
    assert {condition.metric for condition in claim.conditions} <= set(measured)
    assert 0 < measured.get("accuracy", measured.get("solve rate", 0.0)) <= 1
