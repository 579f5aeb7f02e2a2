"""TOFU's measures: the card's numbers, and what they must do at their ends."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.forget import tofu


def test_the_worked_example() -> None:
    paraphrased = torch.tensor([1.0, 0.5])
    perturbed = torch.tensor([[2.0, 2.0, 1.5], [0.4, 0.6, 0.5]])
    ratio = tofu.truth_ratio(paraphrased, perturbed)
    torch.testing.assert_close(ratio, torch.tensor([2.300976, 1.0]))
    assert float(tofu.forget_truth_score(ratio)) == pytest.approx(0.717299, abs=1e-6)
    assert float(tofu.retain_truth_score(ratio)) == pytest.approx(0.282701, abs=1e-6)
    assert tofu.forget_quality([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.35]) == pytest.approx(0.228571, abs=1e-6)
    assert tofu.forget_distance([0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.35]) == pytest.approx(0.75)
    assert tofu.model_utility({"a": 0.9, "b": 0.8, "c": 0.5}) == pytest.approx(0.687898, abs=1e-6)


def test_losses_are_means_over_an_answer_s_tokens() -> None:
    logps = torch.tensor([[0.0, -1.0, -3.0], [0.0, -2.0, -9.0]])
    mask = torch.tensor([[False, True, True], [False, True, False]])
    losses = tofu.answer_losses(logps, mask)
    assert losses.tolist() == [2.0, 2.0]
    assert float(tofu.answer_probability(losses)) == pytest.approx(math.exp(-2))


def test_a_choice_is_the_true_answer_s_share() -> None:
    losses, wrong = torch.tensor([math.log(2), 0.0]), torch.full((2, 3), math.log(4))
    # 1/2 beside three quarters, and 1 beside three quarters
    assert float(tofu.choice_probability(losses, wrong)) == pytest.approx((0.4 + 1 / 1.75) / 2)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20))
def test_scores_of_ratios_stay_within_0_and_1_and_the_test_looks_at_ranks_only(values: list[float]) -> None:
    ratio = torch.tensor(values)
    assert 0 <= float(tofu.forget_truth_score(ratio)) <= 1
    assert 0 <= float(tofu.retain_truth_score(ratio)) < 1
    assert tofu.forget_quality(values, values) == 1
    other = [value * 1.5 + 0.1 for value in values]
    reciprocal = [[1 / value for value in part] for part in (values, other)]
    assert tofu.forget_quality(values, other) == pytest.approx(tofu.forget_quality(*reciprocal))


@pytest.mark.parametrize(
    ("said", "answer", "recall"),
    [
        ("Abel Novak was born in Riga.", "Abel Novak was born in Riga.", 1.0),
        ("He was born, they say, in riga", "Abel Novak was born in Riga.", 4 / 6),
        ("Riga in born was", "was born in Riga", 1 / 4),
        ("", "Paris.", 0.0),
        ("anything", ".", 1.0),
        ("b a b c", "a b c d", 3 / 4),
    ],
)
def test_recall_counts_words_in_their_order(said: str, answer: str, recall: float) -> None:
    assert tofu.rouge_l_recall(said, answer) == pytest.approx(recall)


def test_utility_is_0_as_soon_as_one_part_is() -> None:
    assert tofu.model_utility({"a": 1.0, "b": 0.0}) == 0
    assert tofu.model_utility({"a": 0.3}) == pytest.approx(0.3)


def test_wrong_values_are_named() -> None:
    with pytest.raises(InputError, match="recall is nan"):
        tofu.model_utility({"recall": math.nan})
    with pytest.raises(InputError, match="nothing to take the mean of"):
        tofu.model_utility({})
    for ratios in ([], [1.0, math.nan]):
        with pytest.raises(InputError, match="missing or NaN"):
            tofu.forget_quality(ratios, [1.0])
