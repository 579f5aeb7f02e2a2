from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from thrifty.core.errors import InputError
from thrifty.report.plots import arms_plot, bars_plot, curve_names, curves_plot, scatter_plot
from thrifty.report.smoothing import extremes, is_noisy, smoothed


def _texts(path) -> list[str]:
    return ["".join(element.itertext()).strip() for element in ET.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_the_claims_plot_names_every_arm_and_metric(result, tmp_path) -> None:
    texts = _texts(arms_plot(result(), tmp_path / "arms.svg"))
    assert texts.count("fine-tuned") == 2
    assert {"ssd", "accuracy ↑", "forgotten ↓"} <= set(texts)


def test_the_same_claim_gives_the_same_bytes(result, tmp_path) -> None:
    first, second = (arms_plot(result(), tmp_path / f"{name}.svg").read_bytes() for name in "ab")
    assert first == second


def test_a_single_seed_without_interval_is_drawn(result, tmp_path) -> None:
    one = result()
    for arm in one["arms"].values():
        for values in arm["metrics"].values():
            values.update(low=None, high=None, values=values["values"][:1])
    one["arms"]["ssd"]["metrics"]["accuracy"].update(mean=None, values=[math.nan])
    del one["arms"]["fine-tuned"]["metrics"]["forgotten"]
    assert "fine-tuned" in _texts(arms_plot(one, tmp_path / "arms.svg"))


def test_png_has_150_dots_per_inch(result, tmp_path) -> None:
    with Image.open(arms_plot(result(), tmp_path / "arms.png")) as image:
        assert image.width == 720
        assert image.info["dpi"][0] == pytest.approx(150, abs=0.1)


def test_svg_turns_with_the_theme_and_keeps_text_as_text(result, tmp_path) -> None:
    text = arms_plot(result(), tmp_path / "arms.svg").read_text()
    assert "@media(prefers-color-scheme:dark)" in text
    assert "#1b2126" not in text.split("</style>", 1)[1]


def test_another_ending_is_refused(result, tmp_path) -> None:
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        arms_plot(result(), tmp_path / "arms.pdf")
    assert not list(tmp_path.iterdir())


def test_dollars_in_names_are_no_mathematics(tmp_path) -> None:
    rows = [{"n": r"a $\bad{ $", "cost ($)": 1.0, "gain ($)": 2.0}, {"n": "b", "cost ($)": 3.0, "gain ($)": 1.0}]
    texts = _texts(scatter_plot(rows, "cost ($)", "gain ($)", "n", tmp_path / "s.svg"))
    assert {r"a $\bad{ $", "cost ($)", "gain ($)"} <= set(texts)


def test_curves_leave_out_what_cannot_be_drawn() -> None:
    rows = [
        {"step": 0, "loss": 1.0, "note": "x", "once": 1.0, "nan": math.nan, "gap": None},
        {"step": 1, "loss": 0.5, "gap": 2.0, "nan": math.inf},
        {"loss": 3.0},
        {"step": 2, "gap": 3.0},
    ]
    assert curve_names(rows) == ["loss", "gap"]


def test_curves_have_a_panel_a_metric(tmp_path) -> None:
    generator = np.random.default_rng(0)
    noisy = generator.normal(size=900)
    rows = [{"step": step, "loss": float(noisy[step]), "rate": 10.0 ** (-step / 100)} for step in range(900)]
    path = curves_plot(rows, tmp_path / "c.svg")
    assert {"loss", "rate", "step"} <= set(_texts(path))
    assert path.stat().st_size < 150_000


def test_one_short_curve_is_drawn(tmp_path) -> None:
    assert curves_plot([{"step": 0, "x": 1}, {"step": 5, "x": 2}], tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    "plot",
    [
        lambda path: curves_plot([{"step": 1, "loss": None}], path),
        lambda path: scatter_plot([{"a": 1.0, "b": None}], "a", "b", "n", path),
        lambda path: bars_plot([{"a": math.nan}], "n", "a", path),
    ],
)
def test_nothing_to_plot_is_an_input_error(plot, tmp_path) -> None:
    with pytest.raises(InputError, match="finite"):
        plot(tmp_path / "x.svg")


def test_bars_name_their_rows(tmp_path) -> None:
    rows = [{"n": "ours", "x": 1.5, "l": 1.2, "h": 1.8}, {"n": "theirs", "x": 1.0}, {"n": "failed", "x": None}]
    texts = _texts(bars_plot(rows, "n", "x", tmp_path / "b.svg", low="l", high="h", reference=1.0))
    assert {"ours", "theirs", "x"} <= set(texts)
    assert "failed" not in texts


def test_wide_ranges_are_logarithmic(tmp_path) -> None:
    rows = [{"n": "a", "x": 1.0, "y": 1.0}, {"n": "b", "x": 1e4, "y": 2.0}]
    texts = ["".join(text.split()) for text in _texts(scatter_plot(rows, "x", "y", "n", tmp_path / "s.svg"))]
    assert {"100", "102", "104", "1.0", "2.0"} <= set(texts)  # powers of ten along x, plain numbers along y


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.floats(1.0, 50.0))
def test_smoothing_stays_within_the_values_and_keeps_constants(values: list[float], window: float) -> None:
    smooth = smoothed(np.array(values), window)
    assert len(smooth) == len(values)
    assert smooth.min() >= min(values) - 1e-6
    assert smooth.max() <= max(values) + 1e-6
    assert smoothed(np.full(len(values), 2.5), window) == pytest.approx(2.5)


def test_smoothing_does_not_lag() -> None:
    line = np.arange(400.0)
    assert smoothed(line, 10.0)[200] == pytest.approx(200.0, abs=1e-6)


def test_a_window_of_one_changes_nothing() -> None:
    assert smoothed(np.array([1.0, 5.0, 2.0]), 1.0) == pytest.approx([1.0, 5.0, 2.0])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(2, 40))
def test_fewer_points_keep_ends_and_extremes(values: list[float], points: int) -> None:
    steps, kept = extremes(np.arange(float(len(values))), np.array(values), points)
    assert kept.min() == min(values)
    assert kept.max() == max(values)
    assert (steps[0], steps[-1]) == (0, len(values) - 1)
    assert len(kept) <= points + 2
    assert (np.diff(steps) > 0).all()


def test_only_curves_that_turn_often_are_noisy() -> None:
    assert is_noisy(np.random.default_rng(0).normal(size=100))
    assert not is_noisy(np.linspace(0, 1, 100))
    assert not is_noisy(np.array([1.0, 0.0] * 5))
