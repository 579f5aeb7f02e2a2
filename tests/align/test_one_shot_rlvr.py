"""One-shot RLVR: the worked numbers, the choice of the example, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty import cli
from thrifty.align.grpo import GRPO
from thrifty.align.one_shot_rlvr import OneShotRLVR, batch_of_copies, choose, embedded_history
from thrifty.core.errors import InputError
from thrifty.data.readers import write_jsonl
from thrifty.lm.sequences import Sequences
from thrifty.select.history import AccuracyHistory
from thrifty.select.rank import rank_by_history

MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_worked_example_of_the_loss() -> None:
    """L_pg 0.18 and entropy 0.5 give 0.1795 without the divergence."""
    ratio = torch.tensor([[1.0, 1.3, 1.0], [0.7, 1.0, 1.3]])
    columns = {
        "behaviour_logps": torch.zeros(2, 3),
        "reference_logps": ratio.log(),
        "advantage": torch.tensor([[1.0, 1, 0], [-1, -1, -1]]),
        "counts": torch.ones(2, dtype=torch.bool),
    }
    batch = Sequences(torch.zeros(2, 3, dtype=torch.long), MASK, MASK, columns)
    entropy = torch.tensor([[0.6, 0.2, 9.0], [0.4, 0.8, 0.5]])
    found = OneShotRLVR().loss_of(ratio.log(), entropy, batch, batch)
    assert float(found.value) == pytest.approx(0.1795, abs=1e-6)
    assert float(found.metrics["entropy"]) == pytest.approx(0.5)
    assert float(found.metrics["kl"]) == pytest.approx(0.0, abs=1e-7)
    # The divergence of the whole: k3 at reference 0 is exp(-l) + l - 1.
    apart = batch.with_columns(reference_logps=torch.zeros(2, 3))
    log_ratio = ratio.log()[MASK]
    k3 = float(((-log_ratio).exp() + log_ratio - 1).mean())
    found = OneShotRLVR(kl_coefficient=0.5).loss_of(ratio.log(), entropy, apart, apart)
    assert float(found.value) == pytest.approx(0.1795 + 0.5 * k3, abs=1e-6)
    only = OneShotRLVR(policy_coefficient=0.0).loss_of(ratio.log(), entropy, batch, batch)
    assert float(only.value) == pytest.approx(-0.0005, abs=1e-6), "entropy only"


def test_worked_example_of_the_advantage() -> None:
    ids = torch.zeros(8, 2, dtype=torch.long)
    mask = torch.tensor([[False, True]] * 8)
    columns = {"reward": torch.tensor([1.0] + [0.0] * 7), "group": torch.zeros(8, dtype=torch.long)}
    prepared = OneShotRLVR().prepare(Sequences(ids, torch.ones_like(mask), mask, columns))
    expected = torch.tensor([2.474867] + [-0.353552] * 7)
    torch.testing.assert_close(prepared["advantage"][:, 1], expected, atol=1e-6, rtol=0)


def test_the_prompt_of_largest_variance_is_chosen() -> None:
    history = {"a": [0, 0.25, 0.5, 1], "b": [1, 1, 1, 1], "c": [0, 1, 0, 1]}
    ranked = rank_by_history(history, method="std")
    assert [name for name, _ in ranked] == ["c", "a", "b"]
    assert [score for _, score in ranked] == pytest.approx([0.5, 0.369755, 0.0], abs=1e-6)
    records = [{"prompt": f"what is {name}", "id": name} for name in "abc"]
    assert [record["id"] for record in choose(records, ranked, 2)] == ["c", "a"]
    with pytest.raises(InputError, match="'c' is not in the data"):
        choose(records[:2], ranked, 1)
    with pytest.raises(InputError, match="4 examples were asked for, the history knows 3"):
        choose(records, ranked, 4)


@given(st.integers(1, 5), st.integers(1, 20))
def test_copies_fill_the_batch_evenly(examples: int, rows: int) -> None:
    chosen = [{"prompt": str(number)} for number in range(examples)]
    batch = batch_of_copies(chosen, rows)
    counts = [sum(record is one for record in batch) for one in chosen]
    assert len(batch) == rows
    assert max(counts) - min(counts) <= 1


def test_it_is_grpo_with_settings_of_its_own() -> None:
    method = OneShotRLVR()
    assert isinstance(method, GRPO)
    assert (method.clip, method.kl_coefficient, method.entropy_coefficient) == (0.2, 1e-3, 1e-3)
    assert method.needs() == {"behaviour_logps", "reference_logps"}
    for wrong, said in (({"copies": 1, "examples": 2}, "copies"), ({"rollouts": 0}, "rollouts must be at least 1")):
        with pytest.raises(InputError, match=said):
            OneShotRLVR(**wrong)  # type: ignore[arg-type]


def test_the_embedded_history_knows_the_embedded_problems() -> None:
    from thrifty.data.tasks import arithmetic

    history = AccuracyHistory.load(embedded_history())
    ids = {problem.id for problem in arithmetic().problems(100, 0, "train")}
    assert set(history.ids) <= ids
    best, score = rank_by_history(history, method="std")[0]
    assert score > 0.1, best


PROMPTS = [
    {"prompt": f"what is {a} plus {b}", "answer": w} for a, b, w in [(1, 2, "dog"), (2, 2, "cat"), (3, 4, "the")]
]


def test_the_command_trains_on_the_prompt_that_an_earlier_run_ranks_first(
    model_folder: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "prompts.jsonl", PROMPTS)
    common = ["run", "one-shot-rlvr", "--model", str(model_folder), "--device", "cpu", "--dtype", "float32"]
    mine = ["--data", "prompts.jsonl", "--reward", "regex:.*dog.*", "--max-new-tokens", "4", "--copies", "2"]
    short = ["--rollouts", "2", "--history-epochs", "2", "--samples", "4", "--json"]
    capsys.readouterr()
    assert cli.main([*common, *mine, *short, "--out", "mine"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["trained_on"]) == 1
    assert (tmp_path / "mine/history/history.jsonl").exists()
    history = AccuracyHistory.load(tmp_path / "mine/history/history.jsonl")
    assert len(history) == 3
    assert summary["trained_on"][0]["id"] == rank_by_history(history)[0][0]
    # Given that history, nothing is run before.
    again = ["--history", "mine/history/history.jsonl", "--out", "again"]
    assert cli.main([*common, *mine, *short, *again]) == 0
    assert json.loads(capsys.readouterr().out)["trained_on"] == summary["trained_on"]
    assert not (tmp_path / "again/history").exists()
    assert cli.main([*common, *mine, *short, "--prompt-id", "what is 9", "--out", "none"]) == 2
    assert "is not in the data" in capsys.readouterr().err
