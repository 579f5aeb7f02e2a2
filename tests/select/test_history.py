"""Histories: what is recorded comes back, from memory, checkpoints and files; what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import ExistsError, InputError
from thrifty.select.history import AccuracyHistory
from thrifty.select.logs import epochs_of_steps, read_history


def example() -> AccuracyHistory:
    history = AccuracyHistory()
    history.update(["a", " b "], torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0]]), 0, prompts=["What is a?", "And b?"])
    history.update(["b", "c"], torch.tensor([1.0, 0.25]), 2)
    return history


def same(left: AccuracyHistory, right: AccuracyHistory) -> None:
    for one, other in zip(left.matrix(), right.matrix(), strict=True):
        if isinstance(one, list):
            assert one == other
        else:
            torch.testing.assert_close(one, other, equal_nan=True, rtol=0, atol=0)
    assert (left.prompts, left.samples) == (right.prompts, right.samples)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_matrix() -> None:
    ids, accuracy, observed = example().matrix()
    assert ids == ["a", "b", "c"]
    assert observed.tolist() == [[True, False, False], [True, False, True], [False, False, True]]
    assert accuracy[observed].tolist() == [0.5, 0.0, 1.0, 0.25]
    assert accuracy[~observed].isnan().all()
    assert accuracy.dtype == torch.float64
    assert example().curves() == {"a": [0.5], "b": [0.0, 1.0], "c": [0.25]}
    assert example().samples == 10


def test_more_of_one_prompt_is_averaged_by_samples() -> None:
    history = AccuracyHistory()
    history.update(["a", "a"], torch.tensor([[1.0, 1, 1], [0, 0, 1]]), 0)
    history.update(["a "], torch.tensor([0.0]), 0)
    assert history.matrix()[1].tolist() == [[4 / 7]]


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3), st.booleans()), min_size=1, max_size=40))
def test_however_samples_are_split_the_mean_is_the_same(samples: list[tuple[str, int, bool]]) -> None:
    history = AccuracyHistory()
    for name, epoch, right in samples:
        history.update([name], torch.tensor([float(right)]), epoch)
    ids, accuracy, observed = history.matrix()
    first = min(epoch for _, epoch, _ in samples)
    for row, name in enumerate(ids):
        for column in range(accuracy.shape[1]):
            seen = [right for other, epoch, right in samples if (other, epoch) == (name, first + column)]
            assert bool(observed[row, column]) == bool(seen)
            if seen:
                assert float(accuracy[row, column]) == pytest.approx(sum(seen) / len(seen))


def test_known_prompts_give_the_order_and_may_never_be_asked() -> None:
    history = AccuracyHistory(["c", "b", "a"])
    history.update(["a", "c"], torch.tensor([1.0, 0.0]), 1)
    ids, accuracy, observed = history.matrix()
    assert ids == ["c", "b", "a"]
    assert observed.tolist() == [[True], [False], [True]]
    assert accuracy[[0, 2], 0].tolist() == [0.0, 1.0]
    assert list(history.curves()) == ["c", "a"]


def test_checkpoints(tmp_path: Path) -> None:
    save_tree(tmp_path / "state", example().state_dict())
    back = AccuracyHistory()
    back.load_state_dict(load_tree(tmp_path / "state"))
    same(back, example())
    # Both go on alike, and the state that was given stays as it is.
    state = back.state_dict()
    before = state["sums"].clone()
    continued = AccuracyHistory()
    continued.load_state_dict(state)
    continued.update(["d", "a"], torch.tensor([1.0, 1.0]), 4)
    assert torch.equal(state["sums"], before)
    other = example()
    other.update(["d", "a"], torch.tensor([1.0, 1.0]), 4)
    same(continued, other)
    AccuracyHistory().load_state_dict(AccuracyHistory().state_dict())


def test_files(tmp_path: Path) -> None:
    path = example().save(tmp_path / "history.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows[1] == {"id": "b", "prompt": "And b?", "accuracies": [0.0, None, 1.0], "counts": [4, 0, 1]}
    same(AccuracyHistory.load(path), example())
    same(read_history(path), example())
    with pytest.raises(ExistsError):
        example().save(path)


def test_a_saved_history_needs_no_counts_and_no_equal_lengths(tmp_path: Path) -> None:
    path = write(tmp_path / "h.jsonl", [{"id": 7, "accuracies": [0, 0.5]}, {"id": "x", "accuracies": [1, None, 1]}])
    ids, accuracy, observed = AccuracyHistory.load(path).matrix()
    assert ids == ["7", "x"]
    assert observed.tolist() == [[True, True, False], [True, False, True]]
    assert accuracy[0, :2].tolist() == [0, 0.5]


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"id": "a", "accuracies": [0.5, 1.5]}], "row 1, epoch 1: accuracy is 1.5"),
        ([{"id": "a", "accuracies": [0.5]}, {"id": "b", "accuracies": [-0.5]}], "row 2, epoch 0: accuracy is -0.5"),
        (['{"id": "a", "accuracies": [NaN]}'], "accuracy is nan"),
        ([{"id": "a", "accuracies": ["1"]}], "accuracy is '1'"),
        ([{"id": "a", "accuracies": 1}], "must be a list"),
        ([{"id": "a", "accuracies": [1], "counts": [1, 2]}], "counts must be a list as long as accuracies"),
        ([{"id": " ", "accuracies": [1]}], "row 1 is empty"),
        ([{"id": "a", "accuracies": [1]}, {"id": "a ", "accuracies": [1]}], "row 2 has the id 'a' once more"),
        ([{"accuracies": [1]}], "no column 'id'"),
        ([{"id": "a", "accuracies": [1]}, "{broken"], "line 2 is not JSON"),
    ],
)
def test_broken_histories_are_refused_by_row(tmp_path: Path, rows: list[Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        read_history(write(tmp_path / "h.jsonl", rows))


def test_an_empty_history_is_said(tmp_path: Path) -> None:
    for history in (AccuracyHistory(), AccuracyHistory(["a"])):
        with pytest.raises(InputError, match="the history is empty"):
            history.matrix()
    with pytest.raises(InputError, match="is empty"):
        read_history(write(tmp_path / "h.jsonl", []))


@pytest.mark.parametrize(
    ("ids", "success", "epoch", "error"),
    [
        (["a"], [-0.5], 0, "success of prompt 'a' is -0.5.*reward == 1"),
        (["a", "b"], [1.0, float("nan")], 0, "success of prompt 'b' is nan"),
        (["a"], [1.0, 0.0], 0, "B = 1 ids"),
        (["a"], [1.0], -1, "epoch must be at least 0"),
        (["  "], [1.0], 0, "is empty"),
    ],
)
def test_wrong_updates_change_nothing(ids: list[str], success: list[float], epoch: int, error: str) -> None:
    history = example()
    with pytest.raises(InputError, match=error):
        history.update(ids, torch.tensor(success), epoch)
    same(history, example())


def test_a_log_of_rewards(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "epoch": 1, "reward": 1},
        {"prompt": "p ", "epoch": 1, "reward": -0.5},
        {"prompt": "q", "epoch": 1, "reward": -1},
        {"prompt": "q", "epoch": 3, "reward": 1.0},
    ]
    ids, accuracy, observed = read_history(write(tmp_path / "log.jsonl", rows)).matrix()
    assert ids == ["p", "q"]
    assert observed.tolist() == [[True, False, False], [True, False, True]]
    assert accuracy[observed].tolist() == [0.5, 0.0, 1.0]


def test_a_log_of_steps_is_cut_into_whole_epochs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"id": step % 2, "prompt": f"text {step % 2}", "step": step, "success": step > 2} for step in range(1, 8)]
    history = read_history(write(tmp_path / "log.jsonl", rows), steps_per_epoch=2)
    ids, accuracy, observed = history.matrix()
    assert (ids, accuracy.tolist()) == (["1", "0"], [[0, 1, 1], [0, 1, 1]])
    assert observed.all()
    assert history.prompts == {"1": "text 1", "0": "text 0"}
    assert "the last 1 step(s) make no whole epoch of 2" in caplog.text
    assert epochs_of_steps([0, 1, 2, 3], 2) == [0, 0, 1, 1]
    with pytest.raises(InputError, match="7 steps make no whole epoch of 8"):
        read_history(tmp_path / "log.jsonl")


@pytest.mark.parametrize(
    ("rows", "error"),
    [
        ([{"prompt": "p", "epoch": 0}], "none of the columns success, accuracy, reward: it has prompt, epoch"),
        ([{"epoch": 0, "reward": 1}], "none of the columns id, prompt"),
        ([{"prompt": "p", "reward": 1}], "none of the columns epoch, step"),
        ([{"prompt": "p", "epoch": 0, "accuracy": 2}], "accuracy of row 1 is 2"),
        (['{"prompt": "p", "epoch": 0, "reward": NaN}'], "reward of row 1 is nan"),
        ([{"prompt": "p", "epoch": 0, "reward": 1}, {"prompt": "p", "reward": 1}], "row 2 has no 'epoch'"),
        ([{"prompt": "p", "epoch": 0.5, "reward": 1}], "epoch of row 1 is 0.5"),
        ([{"prompt": "p", "epoch": -1, "reward": 1}], "epoch of row 1 is -1"),
        ([{"prompt": "", "epoch": 0, "reward": 1}], "prompt of row 1 is empty"),
    ],
)
def test_broken_logs_are_refused_by_row(tmp_path: Path, rows: list[Any], error: str) -> None:
    with pytest.raises(InputError, match=error):
        read_history(write(tmp_path / "log.jsonl", rows))
