from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.adapt.design import Design, draw_rows
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.core.errors import InputError

CODES = np.repeat(np.arange(8), [40, 25, 30, 22, 60, 21, 33, 28])
FEATURES = np.random.default_rng(0).normal(size=(len(CODES), 6)).astype(np.float32)
DESIGNS = [
    Design(ways=5, shots=1, queries=75),
    Design(ways=5, shots=5, queries=30, present=2, balance="dirichlet", concentration=1.0),
    Design(ways=None, shots=2, queries=33, present=3, balance="pooled"),
    Design(ways=4, shots=1, queries=50, balance="dirichlet", concentration=0.1),
]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), which=st.sampled_from(DESIGNS))
def test_an_episode_is_what_its_design_says(seed: int, which: Design) -> None:
    support, query, chosen, truth = draw_rows(CODES, which, 20, seed=seed)
    ways = which.ways or 8
    assert support.shape == (20, ways * which.shots)
    assert query.shape == truth.shape == (20, which.queries)
    assert np.array_equal(CODES[support], np.repeat(chosen, which.shots, axis=1))
    assert np.array_equal(CODES[query], np.take_along_axis(chosen, truth, 1))
    for each in range(20):
        both = [*support[each], *query[each]]
        assert len(set(both)) == len(both)
        assert len(set(chosen[each])) == ways
        assert len(set(truth[each])) <= (which.present or ways)


def test_balanced_queries_are_as_even_as_can_be() -> None:
    truth = draw_rows(CODES, Design(ways=5, queries=32, present=3), 50)[3]
    counts = np.sort([np.bincount(row, minlength=5) for row in truth], axis=1)
    assert (counts == [0, 0, 10, 11, 11]).all()


def test_pooled_queries_follow_the_sizes_of_their_classes() -> None:
    codes = np.repeat([0, 1], [301, 101])
    truth = draw_rows(codes, Design(ways=2, shots=1, queries=40, balance="pooled"), 2000, seed=1)
    chosen, which = truth[2], truth[3]
    share = (np.take_along_axis(chosen, which, 1) == 0).mean()
    assert share == pytest.approx(0.75, abs=0.01)
    variance = (np.take_along_axis(chosen, which, 1) == 0).sum(1).var()
    assert variance == pytest.approx(40 * 0.75 * 0.25 * (400 - 40) / 399, rel=0.12)  # hypergeometric


def test_a_small_concentration_makes_classes_uneven() -> None:
    codes = np.repeat(np.arange(5), 200)

    def largest(concentration: float) -> float:
        design = Design(queries=50, balance="dirichlet", concentration=concentration)
        truth = draw_rows(codes, design, 400)[3]
        return float(np.mean([np.bincount(row, minlength=5).max() for row in truth]))

    assert largest(0.2) > 32 > 20 > largest(50.0)


def test_every_example_and_class_has_the_same_chance() -> None:
    codes = np.repeat(np.arange(4), 10)
    support, query, _, truth = draw_rows(codes, Design(ways=2, shots=1, queries=4, present=1), 4000, seed=3)
    assert np.bincount(support.ravel(), minlength=40).min() > 150  # 200 expected
    assert np.bincount(query.ravel(), minlength=40).min() > 330  # 400 expected
    assert abs((truth[:, 0] == 0).mean() - 0.5) < 0.03  # the absent class is not always the last


def test_the_seed_decides() -> None:
    first, again, other = (draw_rows(CODES, DESIGNS[0], 5, seed=seed)[1] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_features_and_names_follow_the_rows() -> None:
    names = np.array(list("abcdefgh"))[CODES]
    episodes = draw_episodes(FEATURES, names, DESIGNS[0], 7, centre=torch.ones(6))
    support, query, chosen, truth = draw_rows(CODES, DESIGNS[0], 7)
    assert torch.equal(episodes.support, torch.from_numpy(FEATURES[support]))
    assert torch.equal(episodes.query, torch.from_numpy(FEATURES[query]))
    assert episodes.name(3, 2) == "abcdefgh"[chosen[3, 2]]
    assert len(episodes) == 7
    assert episodes.shots == 1
    assert episodes.accuracy(torch.from_numpy(truth)).tolist() == [1.0] * 7
    part = episodes.take(torch.tensor([3]))
    assert part.name(0, 2) == episodes.name(3, 2)
    assert [len(some) for some in episodes.parts(3)] == [3, 3, 1]
    assert episodes.to("cpu").centre is not None


def test_one_task_of_the_users_own() -> None:
    task = Episodes.single([[1, 0], [0, 1], [2, 0]], ["x", "a", "x"], np.ones((2, 2)), ["a", "x"])
    assert task.names is not None
    assert task.names.tolist() == ["a", "x"]
    assert task.support_labels.tolist() == [[1, 0, 1]]
    assert task.counts().tolist() == [[1, 2]]
    assert task.query_labels is not None
    assert task.query_labels.tolist() == [[0, 1]]


X, Y = torch.zeros(1, 2, 3), torch.tensor([[0, 1]])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Design(ways=1), "at least 2 ways"),
        (lambda: Design(shots=0), "shots must be at least 1"),
        (lambda: Design(present=6), "between 1 and the 5 ways"),
        (lambda: Design(balance="even"), "balance 'even' is unknown"),  # type: ignore[arg-type]
        (lambda: Design(concentration=0), "concentration"),
        (
            lambda: draw_rows(CODES, Design(ways=9), 1),
            "9-way episodes need as many classes, and at least 2; there are 8",
        ),
        (lambda: draw_rows(CODES, Design(queries=101), 1), "class number 5 has 21 examples: 1 shots and 21 queries"),
        (lambda: draw_rows(CODES, Design(shots=20, queries=80, balance="pooled"), 1), "too few for 80"),
        (lambda: draw_episodes(FEATURES, CODES[:-1], DESIGNS[0], 1), "with N labels"),
        (lambda: draw_episodes(FEATURES, CODES, DESIGNS[0], 0), "at least 1 episode"),
        (lambda: Episodes(X[0], Y, X, None, 2), "must be support"),
        (lambda: Episodes(X, Y, torch.zeros(1, 2, 4), None, 2), "must share T and D"),
        (lambda: Episodes(X, Y[:, :1], X, None, 2), "support labels must be"),
        (lambda: Episodes(X, Y, X, Y + 1, 2), "query labels must be 0 to 1, not 2"),
        (lambda: Episodes(X, Y, X, None, 3), "class 2 of episode 0 has no support example"),
        (lambda: Episodes(X, Y, X / 0, None, 2), "query feature 0 of episode 0 holds NaN"),
        (lambda: Episodes.single([[1.0]], ["a"], [[1.0]], ["b"]), "class 'b' of the queries has no support"),
        (lambda: Episodes(X, Y, X, None, 2).accuracy(Y), "the queries have no labels"),
    ],
)
def test_wrong_input_is_named(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=said):
        make()
