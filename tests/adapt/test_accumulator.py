from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt import accumulator
from thrifty.adapt.accumulator import ClassAccumulator, as_labels
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError

X = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])


def test_sums_and_counts_of_each_class() -> None:
    found = ClassAccumulator(2).add(X, ["b", "a", "b"])
    assert found.classes is not None
    assert found.classes.tolist() == ["a", "b"]
    assert found.sums.tolist() == [[3, 4], [6, 8]]
    assert found.counts.tolist() == [1, 2]
    assert found.means.tolist() == [[3, 4], [3, 4]]
    assert found.sums.dtype == torch.float64


def test_new_classes_sort_in_without_touching_the_old() -> None:
    found = ClassAccumulator(2).add(X[:1], [5]).add(X[1:], [9, 1])
    assert found.classes is not None
    assert found.classes.tolist() == [1, 5, 9]
    assert found.means.tolist() == [[5, 6], [1, 2], [3, 4]]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_partition_and_order_and_merging_give_the_same(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 30))
    seed = data.draw(st.integers(0, 2**31))
    random = np.random.default_rng(seed)
    x, y = torch.from_numpy(random.normal(size=(count, 3))), random.integers(0, 6, size=count)
    whole = ClassAccumulator(3).add(x, y)
    order = random.permutation(count)
    cuts = np.sort(random.integers(0, count + 1, size=data.draw(st.integers(0, 4))))
    parts = [part for part in np.split(order, cuts) if len(part)]
    streamed = ClassAccumulator(3)
    merged = ClassAccumulator(3)
    for part in parts:
        streamed.add(x[part], y[part])
        merged.merge(ClassAccumulator(3).add(x[part], y[part]))
    for other in (streamed, merged):
        assert np.array_equal(other.classes, whole.classes)
        assert torch.equal(other.counts, whole.counts)
        torch.testing.assert_close(other.sums, whole.sums, rtol=0, atol=1e-13)


def test_float32_is_summed_in_float64() -> None:
    x = torch.full((10_000, 1), 0.1, dtype=torch.float32)
    mean = ClassAccumulator(1).add(x, np.zeros(10_000, dtype=int)).means.item()
    assert mean == pytest.approx(float(np.float32(0.1)), abs=1e-15)


def test_chunks_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(100, 4, dtype=torch.float64), np.arange(100) % 7
    whole = ClassAccumulator(4).add(x, y)
    monkeypatch.setattr(accumulator, "CHUNK", 12)
    assert torch.equal(ClassAccumulator(4).add(x, y).sums, whole.sums)


def test_announced_classes_have_room_and_no_example() -> None:
    found = ClassAccumulator(2).announce(["x", "y"]).add(X, ["y", "y", "z"])
    assert found.seen.tolist() == [False, True, True]
    assert found.means[0].tolist() == [0, 0]


def test_replace_and_forget() -> None:
    found = ClassAccumulator(2).add(X, [0, 1, 1])
    found.replace(1, torch.tensor([7.0, 8.0]), count=4).replace(2, torch.tensor([1.0, 1.0]))
    assert found.counts.tolist() == [1, 4, 1]
    assert found.means.tolist() == [[1, 2], [7, 8], [1, 1]]
    found.forget(1)
    assert found.classes is not None
    assert found.classes.tolist() == [0, 2]
    assert found.means.tolist() == [[1, 2], [1, 1]]
    with pytest.raises(InputError, match="no class 1: known: 0, 2"):
        found.forget(1)


@pytest.mark.parametrize("labels", [[3, 1, 3], ["c", "a", "c"], np.array(["c", "a", "c"], dtype=object)])
def test_state_round_trip(labels: object, tmp_path: object) -> None:
    before = ClassAccumulator(2).add(X, labels)
    path = tmp_path / "state.safetensors"  # type: ignore[operator]
    save_tree(path, before.state_dict())
    after = ClassAccumulator(2)
    after.load_state_dict(load_tree(path))
    assert before.classes is not None
    assert after.classes is not None
    assert after.classes.dtype == before.classes.dtype
    assert after.classes.tolist() == before.classes.tolist()
    assert torch.equal(after.sums, before.sums)
    assert torch.equal(after.counts, before.counts)


def test_empty_state_round_trip() -> None:
    after = ClassAccumulator(2)
    after.load_state_dict(ClassAccumulator(2).state_dict())
    assert after.classes is None
    assert after.add(X, [1, 1, 2]).counts.tolist() == [2, 1]


def test_damaged_state_is_refused() -> None:
    state = ClassAccumulator(2).add(X, [0, 1, 2]).state_dict()
    with pytest.raises(InputError, match="damaged"):
        ClassAccumulator(2).load_state_dict(state | {"classes": np.array([0, 1])})


def test_moving_keeps_the_means() -> None:
    found = ClassAccumulator(2).add(X, [0, 1, 1]).to("cpu")
    assert found.means.tolist() == [[1, 2], [4, 5]]


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (X, [0, 1], "3 features came with 2 labels"),
        (torch.zeros(3, 5), [0, 1, 2], r"must be \[N, 2\], not \[3, 5\]"),
        (torch.tensor([[0.0, 1.0], [0.0, torch.nan]]), [0, 1], "row 1 holds NaN"),
        (X, ["a", "b", "b"], "classes so far are like"),
        (X, [[0], [1], [2]], "one value per example"),
        (X, [None, 1, 2], "integers or strings, not NoneType and int"),
        (X, [0.0, np.nan, 1.0], "labels hold NaN"),
        (X, np.array([1j, 2j, 3j]), "not complex128"),
    ],
)
def test_wrong_input_is_refused_and_changes_nothing(features: torch.Tensor, labels: object, said: str) -> None:
    found = ClassAccumulator(2).add(X[:1], [7])
    with pytest.raises(InputError, match=said):
        found.add(features, labels)
    assert found.sums.tolist() == [[1, 2]]
    assert found.counts.tolist() == [1]


def test_wrong_dimensions_and_counts_are_refused() -> None:
    with pytest.raises(InputError, match="at least one column"):
        ClassAccumulator(0)
    with pytest.raises(InputError, match="merge means of 3"):
        ClassAccumulator(2).merge(ClassAccumulator(3))
    with pytest.raises(InputError, match="at least one example, not 0"):
        ClassAccumulator(2).replace("a", torch.zeros(2), count=0)


def test_labels_of_tensors_are_numpy() -> None:
    assert as_labels(torch.tensor([2, 1])).tolist() == [2, 1]
