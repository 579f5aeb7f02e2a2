from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from thrifty.core.errors import InputError
from thrifty.report.canvas import figure
from thrifty.report.claim import claim_section
from thrifty.report.labels import name_points
from thrifty.report.tradeoff import tradeoff_plot


def arm(x: float | None, y: float | None, spread: float | None = 0.01):
    def measured(mean):
        known = mean is not None and spread is not None
        low, high = (mean - spread, mean + spread) if known else (None, None)
        return {"mean": mean, "values": [], "low": low, "high": high}

    return {"metrics": {"forgotten": measured(x), "kept": measured(y)}, "seconds": 1.0}


@pytest.fixture
def comparison():
    return {
        "says": "a comparison",
        "quick": False,
        "metrics": ["-forgotten", "kept"],
        "axes": ["-forgotten", "kept"],
        "baselines": ["original"],
        "arms": {"laf": arm(0.0, 0.9), "laf+r": arm(0.0, 0.9), "original": arm(0.95, 0.91), "broken": arm(None, 0.5)},
        "seeds": [0, 1],
    }


def texts(path: Path) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_every_arm_with_both_metrics_is_a_named_point(comparison, tmp_path: Path) -> None:
    path = tradeoff_plot(comparison, tmp_path / "t.svg")
    found = texts(path)
    assert {"laf", "laf+r", "original", "forgotten ↓", "kept ↑"} <= set(found)
    assert "broken" not in found
    assert path.read_bytes() == tradeoff_plot(comparison, tmp_path / "u.svg").read_bytes()


def test_one_seed_has_no_interval(comparison, tmp_path: Path) -> None:
    lines = tradeoff_plot(comparison, tmp_path / "t.svg").read_text().count("stroke-opacity: 0.5")
    comparison["arms"] = {name: arm(0.1, 0.2, None) for name in comparison["arms"]}
    assert lines == 6
    assert tradeoff_plot(comparison, tmp_path / "u.svg").read_text().count("stroke-opacity: 0.5") == 0


def test_no_point_at_all_is_an_input_error(comparison, tmp_path: Path) -> None:
    comparison["axes"] = ["-speed", "kept"]
    with pytest.raises(InputError, match="no arm has finite means of both 'speed' and 'kept'"):
        tradeoff_plot(comparison, tmp_path / "t.svg")


def test_the_page_of_a_comparison_shows_it(comparison) -> None:
    assert "kept against forgotten: a point for each of laf, laf+r" in claim_section(comparison)
    assert "against" not in claim_section(comparison | {"axes": None})
    assert "against" not in claim_section({name: value for name, value in comparison.items() if name != "axes"})


def test_names_of_points_in_one_place_do_not_cover_each_other() -> None:
    points = [(0.5, 0.5, f"arm number {number}") for number in range(6)] + [(0.0, 0.0, "low"), (1.0, 1.0, "high")]
    with figure(4.0) as plot:
        axes = plot.add_subplot()
        axes.scatter([x for x, _, _ in points], [y for _, y, _ in points])
        axes.margins(0.3)
        name_points(axes, points)
        boxes = [text.get_window_extent() for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [name for _, _, name in points]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
