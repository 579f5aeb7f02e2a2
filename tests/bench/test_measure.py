"""What a bench's rows say, and that the peers' absence is told in one line."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from tests.lm.conftest import make_model

from thrifty.bench import load_bench, names
from thrifty.bench._measure import paired, peak_in_fresh_process, row
from thrifty.bench.align import model_flops
from thrifty.core.errors import InputError
from thrifty.lm.sequences import from_rows


def test_a_row_compares_with_its_target() -> None:
    faster = row("a", [(1.0, 4.0), (2.0, 6.0), (1.0, 5.0)], "s", least=4.0, inverse=True)
    assert (faster["runs"], faster["ratio"], faster["min"], faster["max"]) == ([4.0, 3.0, 5.0], 4.0, 3.0, 5.0)
    assert (faster["ours"], faster["peer"], faster["target"], faster["ok"]) == (1.0, 5.0, ">= 4", True)
    smaller = row("b", [(1.0, 2.0)], "GB", most=0.4)
    assert (smaller["ratio"], smaller["target"], smaller["ok"]) == (0.5, "<= 0.4", False)
    assert row("c", [(0.6, 1.0)], "GFLOP/s", least=0.5)["ok"], "a target below 1 may be one to reach"


def test_pairs_alternate() -> None:
    ran: list[str] = []

    def way(name: str, seconds: float) -> Any:
        return lambda: ran.append(name) or seconds

    assert paired(way("ours", 1.0), way("peer", 2.0), 3) == [(1.0, 2.0)] * 3
    assert ran == ["ours", "peer", "peer", "ours", "ours", "peer"]


def test_a_failing_process_says_why() -> None:
    with pytest.raises(RuntimeError, match="No module named"):
        peak_in_fresh_process("thrifty.bench.no_such_bench")


def test_private_modules_are_no_benches() -> None:
    assert {"align", "lm", "core"} <= set(names())
    assert "_measure" not in names()


def test_without_trl_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install thrifty\[peers\]"):
        load_bench("align")(quick=True)


def test_model_flops_count_a_prompt_once() -> None:
    model = make_model("llama")
    rows = from_rows([([5, 6, 7, 8, 9], [False, False, False, True, True])] * 4)
    head = 97 * 32
    body = sum(parameter.numel() for parameter in model.parameters()) - head
    # Two prompts of 3 tokens; of each answer's 2 tokens the last is not read.
    assert model_flops(model, rows, 2) == 6 * (body * (2 * 3 + 4 * 1) + head * 8)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
