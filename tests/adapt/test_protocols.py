from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt.evaluation import harmonic_mean, mean_class_accuracy, run_stream
from thrifty.adapt.nmc import NMC
from thrifty.adapt.protocols import few_shot_incremental, mixed, recorded
from thrifty.adapt.stream import Stream, class_incremental, overlapping
from thrifty.adapt.teen import TEEN
from thrifty.core.errors import InputError

Y = np.repeat(np.arange(8), 12)
X = np.eye(8)[Y] + 0.01 * np.arange(96)[:, None]


@settings(max_examples=25, deadline=None)
@given(tasks=st.integers(1, 8), seed=st.integers(0, 1000))
def test_si_blurry_draws_how_many_classes_a_task_has(tasks: int, seed: int) -> None:
    pure = class_incremental(X, Y, X, Y, tasks, seed=seed, stochastic=True)
    assert sum(len(set(Y[rows])) for rows in pure.sessions) == 8
    assert min(len(rows) for rows in pure.sessions) > 0
    stream = overlapping(X, Y, X, Y, tasks, stochastic=True, blurry=0.0, seed=seed)
    assert [sorted(rows) for rows in stream.sessions] == [sorted(rows) for rows in pure.sessions]


def test_si_blurry_sizes_differ_and_i_blurry_ones_are_even() -> None:
    def sizes(stochastic: bool) -> set[tuple[int, ...]]:
        streams = (class_incremental(X, Y, X, Y, 4, seed=seed, stochastic=stochastic) for seed in range(10))
        return {tuple(len(set(Y[rows])) for rows in stream.sessions) for stream in streams}

    assert sizes(False) == {(2, 2, 2, 2)}
    assert len(sizes(True)) > 3


@settings(max_examples=25, deadline=None)
@given(tasks=st.integers(1, 4), seed=st.integers(0, 1000))
def test_mixed_sessions_bring_each_example_once(tasks: int, seed: int) -> None:
    stream = mixed(X, Y, X, Y, tasks, concentration=5.0, seed=seed)
    assert np.array_equal(np.sort(np.concatenate(stream.sessions)), np.arange(96))
    for name in range(8):
        first = next(i for i, rows in enumerate(stream.sessions) if name in Y[rows])
        assert [i for i, rows in enumerate(stream.tests) if name in Y[rows]] == [first]


def test_concentration_goes_from_disjoint_to_alike() -> None:
    def places(concentration: float) -> float:
        stream = mixed(X, Y, X, Y, 3, concentration=concentration, seed=1)
        return float(np.mean([sum(name in Y[rows] for rows in stream.sessions) for name in range(8)]))

    assert places(0.01) < 1.3
    assert places(100.0) == 3


def test_few_shot_sessions_have_so_many_new_classes_and_shots() -> None:
    stream = few_shot_incremental(X, Y, X, Y, 4, way=2, shots=3, seed=0)
    assert len(stream.sessions) == 3
    base = set(Y[stream.sessions[0]].tolist())
    assert stream.base_classes is not None
    assert base == set(stream.base_classes.tolist())
    assert len(base) == 4
    assert len(stream.sessions[0]) == 48
    new = [Y[rows] for rows in stream.sessions[1:]]
    assert all(np.unique(part, return_counts=True)[1].tolist() == [3, 3] for part in new)
    assert base.isdisjoint(np.concatenate(new))
    assert [set(Y[a]) for a in stream.sessions] == [set(Y[b]) for b in stream.tests]


def test_base_classes_can_be_named_and_left_over_classes_are_left_out() -> None:
    stream = few_shot_incremental(X, Y, X, Y, np.array([7, 0, 3]), way=2, shots=1, seed=0)
    assert stream.base_classes is not None
    assert stream.base_classes.tolist() == [0, 3, 7]
    assert len(stream.sessions) == 3
    assert len(few_shot_incremental(X, Y, X, Y, 3, way=2, shots=1, sessions=1).sessions) == 2


def test_recorded_sessions_come_in_order() -> None:
    months = np.array(["2024-02", "2024-01", "2024-03"])[Y % 3]
    stream = recorded(X, Y, months, X, Y, disjoint=True)
    assert [set(months[rows]) for rows in stream.sessions] == [{"2024-01"}, {"2024-02"}, {"2024-03"}]
    assert [set(Y[rows] % 3) for rows in stream.tests] == [{1}, {0}, {2}]
    again = np.where(np.arange(96) == 95, "2024-02", months)
    assert len(recorded(X, Y, again, X, Y).sessions) == 3
    with pytest.raises(InputError, match="class 7 comes in the sessions '2024-01' and '2024-02'"):
        recorded(X, Y, again, X, Y, disjoint=True)


class Scripted:
    """Predicts what it is told, call by call."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def partial_fit(self, X: Any, y: Any) -> None:
        pass

    def predict(self, X: Any) -> Any:
        return np.array(self.answers.pop(0))


def test_base_and_new_classes_are_measured_apart_by_hand() -> None:
    y = np.array([0, 0, 0, 1, 5, 5, 6, 6])
    zero = np.zeros((8, 1))
    parts = (np.arange(4), np.arange(4, 8))
    stream = Stream(zero, y, zero, y, parts, parts, np.array([0, 1]))
    result = run_stream(Scripted([[0, 0, 1, 1], [0, 0, 5, 1, 5, 0, 1, 6]]), stream)
    np.testing.assert_allclose(result.base_after, [(2 / 3 + 1) / 2, (2 / 3 + 1) / 2])
    np.testing.assert_allclose(result.new_after, [np.nan, 0.5])
    np.testing.assert_allclose(result.new_as_base_after, [np.nan, 0.5])
    np.testing.assert_allclose(result.base_as_new_after, [0, 0.25])
    seen = 5 / 6
    assert result.harmonic_mean == pytest.approx(2 * seen * 0.5 / (seen + 0.5))
    assert np.isnan(result.harmonic_mean_after[0])
    assert result.final_accuracy == 5 / 8
    assert {"base_accuracy", "new_accuracy", "harmonic_mean", "new_as_base"} <= result.row().keys()
    assert result.curve() == {"accuracy@1": 0.75, "accuracy@2": 0.625}


def test_harmonic_mean_of_nothing_right_is_zero() -> None:
    np.testing.assert_allclose(harmonic_mean(np.array([0.0, 0.5]), np.array([0.0, 1.0])), [0, 2 / 3])
    assert mean_class_accuracy(np.array([True, False, True]), np.array(["a", "a", "b"])) == 0.75
    assert np.isnan(mean_class_accuracy(np.empty(0, bool), np.empty(0)))


def test_anytime_accuracy_is_the_mean_along_the_stream_by_hand() -> None:
    y = np.array([0, 0, 1, 1])
    zero = np.zeros((4, 1))
    parts = (np.arange(2), np.arange(2, 4))
    answers = [[0, 1], [0, 0], [0, 0], [0, 0, 0, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    result = run_stream(Scripted(answers), Stream(zero, y, zero, y, parts, parts), batch_size=1, measure_every=1)
    assert result.anytime.tolist() == [0.5, 1.0, 0.75, 0.5]
    assert result.anytime_accuracy == 0.6875
    assert result.row()["anytime_accuracy"] == 0.6875
    assert np.isnan(run_stream(NMC(), overlapping(X, Y, X, Y, 2)).anytime_accuracy)


def test_measuring_comes_after_so_many_examples() -> None:
    stream = class_incremental(X, Y, X, Y, 2, seed=0)
    assert len(run_stream(NMC(), stream, measure_every=10).anytime) == 9
    assert len(run_stream(NMC(), stream, batch_size=48, measure_every=50).anytime) == 1
    for wrong in ({"batch_size": 0}, {"measure_every": -1}):
        with pytest.raises(InputError, match="must be at least 1"):
            run_stream(NMC(), stream, **wrong)


def test_small_batches_of_the_base_session_stay_base_classes() -> None:
    stream = few_shot_incremental(X, Y, X, Y, 4, way=2, shots=3, seed=0)
    whole, small = TEEN(), TEEN()
    run_stream(whole, stream)
    run_stream(small, stream, batch_size=5)
    assert small.base_classes_.tolist() == whole.base_classes_.tolist() == stream.base_classes.tolist()  # type: ignore[union-attr]
    np.testing.assert_allclose(small.prototypes_, whole.prototypes_)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: mixed(X, Y, X, Y, 2, concentration=0), "concentration must be above 0"),
        (lambda: mixed(X, Y, X, Y, 0), "at least one session"),
        (lambda: mixed(X, Y, X[:50], Y[:50], 2), "class 5 has no test example"),
        (lambda: few_shot_incremental(X, Y, X, Y, 8), "8 classes don't make a base session of 8 and 1 of 5 new ones"),
        (lambda: few_shot_incremental(X, Y, X, Y, 0), "a base session of 0"),
        (lambda: few_shot_incremental(X, Y, X, Y, 4, way=0), "way and shots must be at least 1, not 0 and 5"),
        (lambda: few_shot_incremental(X, Y, X, Y, 4, way=2, sessions=3), "and 3 of 2 new ones"),
        (lambda: few_shot_incremental(X, Y, X, Y, 4, way=2, shots=13), "has 12 training examples, fewer than the 13"),
        (lambda: few_shot_incremental(X, Y, X, Y, np.array([0, 99])), "base class 99 has no example"),
        (lambda: recorded(X, Y, Y[:3], X, Y), "96 training labels came with 3 sessions"),
    ],
)
def test_wrong_protocols_are_refused(change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        change()
