from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from thrifty.core.errors import InputError
from thrifty.report.along import along_plot, curves
from thrifty.report.claim import claim_section


def arm(*means: float | None) -> dict[str, Any]:
    points = {
        f"accuracy@{place}": {"mean": mean, "low": None if mean is None else mean - 0.01, "high": mean, "values": []}
        for place, mean in enumerate(means, 1)
    }
    return {"metrics": {"final": points[f"accuracy@{len(means)}"]} | points, "seconds": 1.0}


@pytest.fixture
def comparison() -> dict[str, Any]:
    return {
        "says": "a comparison",
        "quick": False,
        "metrics": ["final"],
        "baselines": ["joint"],
        "arms": {"nmc": arm(0.9, 0.8, 0.7), "teen": arm(0.9, None, 0.6), "joint": arm(*[0.9] * 11)},
        "seeds": [0, 1],
    }


def test_curves_are_metrics_with_a_place_in_order(comparison: dict[str, Any]) -> None:
    found = curves(comparison)
    assert list(found) == ["accuracy"]
    assert [place for place, *_ in found["accuracy"]["joint"]] == list(range(1, 12))
    assert found["accuracy"]["teen"] == [(1, 0.9, 0.89, 0.9), (3, 0.6, 0.59, 0.6)]


def test_every_arm_is_in_the_legend(comparison: dict[str, Any], tmp_path: Path) -> None:
    path = along_plot(comparison, "accuracy", tmp_path / "a.svg")
    texts = {"".join(e.itertext()).strip() for e in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")}
    assert {"nmc", "teen", "joint", "session", "accuracy"} <= texts
    assert path.read_bytes() == along_plot(comparison, "accuracy", tmp_path / "b.svg").read_bytes()


def test_a_missing_curve_is_named(comparison: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no arm has a curve 'loss'"):
        along_plot(comparison, "loss", tmp_path / "a.svg")


def test_the_page_of_a_comparison_shows_it_where_there_is_one(comparison: dict[str, Any]) -> None:
    assert "accuracy of nmc, teen, joint after each session" in claim_section(comparison)
    for measured in comparison["arms"].values():
        measured["metrics"] = {"final": measured["metrics"]["final"]}
    assert "after each session" not in claim_section(comparison)
