"""A measured claim and a small catalogue, made up so that every status and every awkward character occurs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from thrifty.claims.harness import Condition, Measured, judge, summarise
from thrifty.core.index import ROOMS, Paper
from thrifty.report.catalogue import Catalogue, Entry

MARKUP = "<b>&\"'"


def make_result(paper: str = "ssd", verdict: str = "", **changes: Any) -> dict[str, Any]:
    """A result as ``thrifty reproduce`` computes it, of three seeds."""
    values = {
        paper: {"accuracy": [0.90, 0.92, 0.91], "forgotten": [0.1, 0.12, 0.11]},
        "fine-tuned": {"accuracy": [0.85, 0.84, 0.86], "forgotten": [0.05, 0.04, 0.06]},
    }
    measured = Measured(values, {paper: [1.0, 1.2, 1.1], "fine-tuned": [3.0, 3.1, 3.2]})
    computed, conditions = judge([Condition("accuracy", paper, "fine-tuned")], measured)
    return {
        "paper": paper,
        "says": f"It says {MARKUP}",
        "setting": "A small network on digits.",
        "tried": "",
        "verdict": verdict or computed,
        "quick": False,
        "metric": "accuracy",
        "metrics": ["accuracy", "-forgotten"],
        "arms": summarise(measured),
        "conditions": conditions,
        "seeds": [0, 1, 2],
        "seconds": 12.3,
        "date": "2026-11-20",
        "versions": {"thrifty": "0.1.0", "torch": "2.13.0"},
        "code": "0123456789abcdef",
    } | changes


@pytest.fixture
def result() -> Callable[..., dict[str, Any]]:
    return make_result


def _paper(id: str, room: str, needs: tuple[str, ...], summary: str) -> Paper:
    return Paper(id, f"The paper on {id}", id.upper(), "2308.07707", 2023, room, summary, "a = b\nc = " + "d " * 90,
                 needs, ("model",), "someone/code", "none")  # fmt: skip


@pytest.fixture
def catalogue() -> Catalogue:
    """Six papers in three rooms, one of each status."""
    statuses = {
        "alpha": ("forget", ("model", "forget-set"), "holds"),
        "beta": ("forget", ("classifier",), "does not hold"),
        "gamma": ("shrink", ("model",), "inconclusive"),
        "delta": ("shrink", ("language-model", "text"), "stale"),
        "epsilon": ("tune", ("model", "text"), "not measured"),
        "zeta": ("tune", ("text",), "planned"),
    }
    entries = []
    for day, (id, (room, needs, status)) in enumerate(statuses.items(), start=1):
        verdict = "holds" if status == "stale" else status
        measured = status not in {"not measured", "planned"}
        stored = make_result(id, verdict, status=status, date=f"2026-11-{day:02d}") if measured else None
        summary = f"Does {id} as Poincaré would: {MARKUP}"
        entries.append(Entry(_paper(id, room, needs, summary), status != "planned", stored))
    words = ("model", "language-model", "classifier", "text", "forget-set", "samples")
    vocabulary = {word: f"what {word} means" for word in words}
    return Catalogue(tuple(entries), ROOMS, vocabulary, {"language-model": ("model",), "classifier": ("model",)})
