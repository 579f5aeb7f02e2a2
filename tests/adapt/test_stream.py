from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt.baselines import Joint, LinearHead, StreamingLDA, cosine_ncm, joint, sequential
from thrifty.adapt.evaluation import run_stream
from thrifty.adapt.nmc import NMC
from thrifty.adapt.stream import Stream, class_incremental, domain_incremental, overlapping
from thrifty.core.errors import InputError

Y = np.repeat(np.arange(6), 10)
X = np.eye(6)[Y] + 0.01 * np.arange(60)[:, None]


def six(tasks: int = 3, **settings: Any) -> Stream:
    return class_incremental(X, Y, X, Y, tasks, **settings)


@settings(max_examples=25, deadline=None)
@given(tasks=st.integers(1, 6), seed=st.integers(0, 1000))
def test_class_incremental_tasks_are_disjoint_and_complete(tasks: int, seed: int) -> None:
    stream = six(tasks, seed=seed)
    brought = [set(Y[rows].tolist()) for rows in stream.sessions]
    assert len(brought) == tasks
    assert sum(map(len, brought)) == 6
    assert set().union(*brought) == set(range(6))
    assert np.array_equal(np.sort(np.concatenate(stream.sessions)), np.arange(60))
    for rows, tests in zip(stream.sessions, stream.tests, strict=True):
        assert set(Y[rows]) == set(Y[tests])


def test_seed_draws_the_order_and_unshuffled_is_sorted() -> None:
    assert [sorted(set(Y[rows].tolist())) for rows in six(shuffle=False).sessions] == [[0, 1], [2, 3], [4, 5]]
    same = [six(seed=3).sessions[0].tolist() for _ in range(2)]
    assert same[0] == same[1]
    assert any(six(seed=seed).sessions[0].tolist() != same[0] for seed in range(3))


def test_domains_are_sessions_with_all_classes() -> None:
    domains = np.tile(["s1", "s2"], 30)
    stream = domain_incremental(X, Y, domains, X, Y, domains, shuffle=False)
    assert [set(domains[rows]) for rows in stream.sessions] == [{"s1"}, {"s2"}]
    assert stream.tested(1) == range(2)
    fixed = domain_incremental(X, Y, domains, X, Y)
    assert len(fixed.tests) == 1
    assert fixed.tested(1) == range(1)
    assert run_stream(NMC(), fixed).accuracies.shape == (2, 1)


def test_overlapping_classes_come_in_several_sessions_and_pure_ones_in_one() -> None:
    stream = overlapping(X, Y, X, Y, 3, disjoint=0.5, blurry=0.5, seed=0)
    places = {name: [i for i, rows in enumerate(stream.sessions) if name in Y[rows]] for name in range(6)}
    assert sum(len(sessions) == 1 for sessions in places.values()) >= 3
    assert any(len(sessions) > 1 for sessions in places.values())
    for name, sessions in places.items():
        assert [i for i, rows in enumerate(stream.tests) if name in Y[rows]] == sessions[:1]
    assert np.array_equal(np.sort(np.concatenate(stream.tests)), np.arange(60))
    result = run_stream(NMC(), stream)
    assert 0 <= result.final_accuracy <= 1
    assert np.isfinite(result.forgetting)


class Scripted:
    """Predicts what it is told, session by session."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.session = answers, -1

    def partial_fit(self, X: Any, y: Any) -> Scripted:
        self.session += 1
        return self

    def predict(self, X: Any) -> Any:
        return np.array(self.answers[self.session])


def test_measures_by_hand() -> None:
    y = np.array([0, 0, 1, 1])
    stream = Stream(
        np.zeros((4, 1)), y, np.zeros((4, 1)), y, (np.arange(2), np.arange(2, 4)), (np.arange(2), np.arange(2, 4))
    )
    result = run_stream(Scripted([[0, 0], [1, 0, 1, 1]]), stream)
    np.testing.assert_array_equal(result.accuracies, [[1, np.nan], [0.5, 1]])
    assert result.accuracy_after.tolist() == [1, 0.75]
    assert result.average_incremental_accuracy == 0.875
    assert result.final_accuracy == 0.75
    assert result.forgetting == 0.5
    assert result.predictions.tolist() == [1, 0, 1, 1]
    assert list(result.row()) == ["final_accuracy", "average_incremental_accuracy", "forgetting", "seconds"]


def test_one_session_forgets_nothing() -> None:
    assert run_stream(NMC(), six(1)).forgetting == 0


def test_mini_batches_give_nmc_the_same_result() -> None:
    whole, small = run_stream(NMC(), six()), run_stream(NMC(), six(), batch_size=3)
    assert np.array_equal(whole.predictions, small.predictions)


def test_nmc_is_blind_to_the_order_of_tasks(digits: Any) -> None:
    stream = class_incremental(*digits, 5, seed=0)
    there, back = run_stream(NMC(), stream), run_stream(NMC(), stream.reordered(range(5)[::-1]))
    assert np.array_equal(there.predictions, back.predictions)
    assert there.accuracy_after[0] != back.accuracy_after[0]


def test_expected_ordering_on_digits(digits: Any) -> None:
    """As measured for the method: sequential head far below NMC (0.89), NMC below joint training."""
    stream = class_incremental(*digits, 5, seed=0)
    nmc, last, upper = run_stream(NMC(), stream), sequential(stream), joint(stream)
    assert nmc.final_accuracy == pytest.approx(0.89, abs=0.02)
    assert last.final_accuracy < 0.4
    assert last.forgetting > 0.6
    assert upper.final_accuracy > nmc.final_accuracy


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: six(7), "6 classes can't be split into 7 tasks"),
        (lambda: six(0), "into 0 tasks"),
        (lambda: class_incremental(X, Y, X[:50], Y[:50], 2), "class 5 has no test example"),
        (lambda: class_incremental(X[:50], Y[:50], X, Y, 2), "class 5 has no training example"),
        (lambda: class_incremental(X[:0], Y[:0], X, Y, 1), "0 training and 60 test examples"),
        (lambda: class_incremental(X[:5], Y, X, Y, 1), "5 train features came with 60 labels"),
        (lambda: domain_incremental(X, Y, Y[:3], X, Y), "60 training labels came with 3 domains"),
        (lambda: domain_incremental(X, Y, Y, X, Y, Y[:3]), "60 test labels came with 3 domains"),
        (lambda: domain_incremental(X, Y, Y, X, Y, Y % 5), "domain 5 has no test example"),
        (lambda: overlapping(X, Y, X, Y, 2, disjoint=1.5), "disjoint is a share"),
        (lambda: Stream(X, Y, X, Y, (), ()), "at least one session"),
        (lambda: Stream(X, Y, X, Y, (Y[:0],), (Y,)), "session 0 has no example"),
        (lambda: Stream(X, Y, X, Y, (Y, Y, Y), (Y, Y)), "3 sessions need as many test groups or one, not 2"),
    ],
)
def test_wrong_streams_are_refused(change: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        change()


def test_joint_head_relearns_everything() -> None:
    head = Joint(LinearHead(epochs=2))
    head.partial_fit(X[:20], Y[:20]).partial_fit(X[20:], Y[20:])
    assert head.head.classes_.tolist() == list(range(6))  # type: ignore[attr-defined]


@pytest.mark.parametrize("head", [StreamingLDA(), cosine_ncm(), LinearHead(replay=30)])
def test_remedies_remember(head: Any, digits: Any) -> None:
    stream = class_incremental(*digits, 5, seed=1)
    assert run_stream(head, stream).final_accuracy > sequential(stream).final_accuracy + 0.3
