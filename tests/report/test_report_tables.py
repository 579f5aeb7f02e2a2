from __future__ import annotations

import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from thrifty.report.tables import (
    Best,
    claim_table,
    columns,
    condition_table,
    interval,
    number,
    print_table,
    text_of,
    to_markdown,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.833333, "0.8333"),
        (12345.6, "12346"),
        (0.5, "0.5"),
        (7, "7"),
        (1234567, "1234567"),
        (0.0, "0"),
        (3.14159e-7, "3.14e-07"),
        (2.5e12, "2.50e+12"),
        (True, "yes"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_have_sensible_digits(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_a_formatted_number_is_within_a_hundredth_of_the_value(value: float) -> None:
    assert float(number(value)) == pytest.approx(value, rel=6e-3)


def test_digits_follow_the_width_of_the_interval() -> None:
    assert interval(0.83333, 0.81021, 0.85645) == "0.833 [0.810, 0.856]"
    assert interval(1234.567, 1134.5, 1334.6) == "1235 [1134, 1335]"
    assert interval(1e-9, 0.9e-9, 1.1e-9) == "1e-09 [9e-10, 1.1e-09]"


def test_without_ends_the_mean_stands_alone() -> None:
    assert interval(0.5, None, None) == "0.5"
    assert interval(None, None, None) == "\N{EN DASH}"
    assert interval(0.5, 0.5, 0.5) == "0.5 [0.5, 0.5]"


def test_columns_are_the_union_in_order_of_appearance() -> None:
    assert columns([{"b": 1}, {"a": 2, "b": 3}, {"c": 4}]) == ["b", "a", "c"]


def test_the_best_of_each_metric_is_marked_by_its_direction(result) -> None:
    first, second = claim_table(result())
    assert first["arm"] == "ssd"
    assert isinstance(first["accuracy ↑"], Best)
    assert not isinstance(second["accuracy ↑"], Best)
    assert isinstance(second["forgotten ↓"], Best)
    assert first["accuracy ↑"] == "0.910 [0.885, 0.935]"
    assert first["seconds"] == 1.1


def test_equal_arms_have_no_best_and_missing_metrics_show_nothing(result) -> None:
    measured = result()
    measured["arms"]["fine-tuned"]["metrics"] = {"accuracy": measured["arms"]["ssd"]["metrics"]["accuracy"]}
    first, second = claim_table(measured)
    assert not isinstance(first["accuracy ↑"], Best)
    assert second["forgotten ↓"] == "\N{EN DASH}"


def test_conditions_show_difference_margin_and_verdict(result) -> None:
    (row,) = condition_table(result())
    assert row["condition"] == "accuracy: ssd > fine-tuned"
    # Differences 0.05, 0.08, 0.05: their standard error is 0.01, Student's t of 2 degrees of freedom 4.303.
    assert row["difference [95% interval]"] == "0.060 [0.017, 0.103]"
    assert row["verdict"] == "holds"


def test_markdown_aligns_numbers_and_escapes_bars() -> None:
    text = to_markdown([{"name": "a|b", "value": 0.25}, {"name": "c\nd", "value": None}])
    assert text.splitlines() == ["| name | value |", "|---|---:|", "| a\\|b | 0.25 |", "| c d | \N{EN DASH} |"]


def test_markdown_emphasises_the_best_and_is_empty_without_rows() -> None:
    assert "| **1** |" in to_markdown([{"x": Best("1")}])
    assert to_markdown([]) == ""


def _printed(*args: object, width: int = 200) -> str:
    stream = io.StringIO()
    print_table(*args, Console(file=stream, width=width))  # type: ignore[arg-type]
    return stream.getvalue()


def test_printed_cells_are_no_markup() -> None:
    text = _printed([{"[red]name": "[bold]x[/bold]", "value": 1.5}], "a [title]")
    assert "[bold]x[/bold]" in text
    assert "[red]name" in text
    assert "a [title]" in text


def test_a_narrow_terminal_folds_and_loses_nothing() -> None:
    text = _printed([{"name": "abcdefghij" * 5}], "", width=24)
    assert "".join(character for character in text if character in "abcdefghij").count("abcdefghij") == 5


def test_no_rows_are_said_to_be_none() -> None:
    assert _printed([], "papers") == "papers: nothing to show\n"
    assert _printed([], "") == "nothing to show\n"


def test_nested_values_are_json() -> None:
    assert text_of({"a": [1, "é"]}) == '{"a": [1, "é"]}'
    assert text_of("") == "\N{EN DASH}"
    assert text_of({1, 2}) == "{1, 2}"
