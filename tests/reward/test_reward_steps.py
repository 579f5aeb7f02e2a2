"""Steps of responses, the tokens at which they end, and rewards on these tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from byte_tokenizer import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.reward.steps import StepRewards, rewards_to_go, split_text, split_tokens, to_token_rewards


def test_texts_are_split_at_blank_lines() -> None:
    assert split_text("a\n\nb\nc\n\n\nd\n\n") == ["a", "b\nc", "d"]
    assert split_text("a\nb", "\n") == ["a", "b"]
    assert split_text("no separator") == ["no separator"]
    assert split_text("") == [""]
    with pytest.raises(InputError, match="separator of steps is empty"):
        split_text("a", "")


def ids_of(tokenizer: Any, text: str, *, end: bool = False) -> list[int]:
    return tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] * end


def test_a_step_ends_at_the_token_that_completes_its_separator(tokenizer: Any) -> None:
    # Tokens: a .ĊĊ | b c ĊĊ | d <|end|>
    ids = ids_of(tokenizer, "a.\n\nbc\n\nd", end=True)
    assert len(ids) == 7
    found = split_tokens([ids], tokenizer)[0]
    assert found.texts == ["a.", "bc", "d"]
    assert found.ends == [1, 4, 6]


def test_edges(tokenizer: Any) -> None:
    rows = {
        "nothing to split": (["nothing to split"], [15]),
        "a\n\n": (["a"], [1]),
        "\n\na": (["a"], [1]),
        "": ([], []),
        "a\n\n  ": (["a"], [1]),
    }
    for text, (texts, ends) in rows.items():
        found = split_tokens([ids_of(tokenizer, text)], tokenizer)[0]
        assert (found.texts, found.ends) == (texts, ends), text
    ended = split_tokens([ids_of(tokenizer, "a\n\n", end=True), [tokenizer.eos_token_id]], tokenizer)
    assert (ended[0].texts, ended[0].ends) == (["a"], [1])  # the end token alone is no step
    assert (ended[1].texts, ended[1].ends) == ([""], [0])


def test_separators_outside_of_ascii(tokenizer: Any) -> None:
    found = split_tokens([ids_of(tokenizer, "éки€ки€")], tokenizer, "ки")[0]
    assert found.texts == ["é", "€", "€"]
    assert found.ends == [5, 12, 15]  # bytes: 2 + 4, 3 + 4, 3


PIECES = st.lists(st.sampled_from(["a", "b.", "\n", "\n\n", " ", "é", "€", "x y", "🙂"]), max_size=12)


@settings(max_examples=60)
@given(st.lists(PIECES, min_size=1, max_size=3))
def test_ends_agree_with_decoding_every_prefix(rows: list[list[str]]) -> None:
    tokenizer = make_tokenizer("Ċ Ċ", ". ĊĊ")
    batch = [ids_of(tokenizer, "".join(row)) for row in rows]
    for row, ids, steps in zip(rows, batch, split_tokens(batch, tokenizer), strict=True):
        text = "".join(row)
        if not ids:
            assert steps.ends == []
            continue
        assert steps.texts == split_text(text)
        assert steps.ends == sorted(set(steps.ends))
        prefixes = [tokenizer.decode(ids[: n + 1]) for n in range(len(ids))]
        for end in steps.ends[:-1]:
            assert prefixes[end].endswith("\n\n") or "\n\n" in prefixes[end][len(prefixes[end - 1]) - 1 :]
            # One token fewer, and the separator is not there yet.
            assert prefixes[end - 1].count("\n\n") < prefixes[end].count("\n\n")


def test_a_long_response_is_decoded_a_bounded_number_of_times(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "\n\n".join(["ab"] * 300))
    decoded = 0

    class Counting:
        def decode(self, ids: list[int], **more: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return str(tokenizer.decode(ids, **more))

    assert len(split_tokens([ids], Counting())[0].texts) == 300
    assert decoded < 3 * len(ids)


def test_rewards_to_go_are_reverse_sums() -> None:
    reward = torch.tensor([[1.0, -2, 4], [3, 5, 100]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    assert rewards_to_go(reward, mask).tolist() == [[3, 2, 4], [8, 5, 0]]


def test_rewards_to_go_with_discount() -> None:
    mask = torch.tensor([[True, True, False]])
    found = rewards_to_go(torch.tensor([[1.0, 2.0, 50.0]]), mask, 0.5)
    assert found.tolist() == [[2.0, 2.0, 0.0]]


def test_rewards_stand_on_the_last_token_of_each_step() -> None:
    # Row 1: prompt of one token, another speaker's token in between; row 2: cut after two tokens.
    mask = torch.tensor([[False, True, True, False, True, True], [True, True, False, False, False, False]])
    step_reward = torch.tensor([[2.0, 4.0, 0.0], [6.0, 8.0, 10.0]])
    step_end = torch.tensor([[1, 3, 0], [0, 1, 2]])
    found = to_token_rewards(step_reward, step_end, mask, torch.tensor([1.0, 0.5]), alpha=0.5, outcome_coef=10.0)
    assert found.tolist() == [[0, 0, 1, 0, 0, 12], [3, 9, 0, 0, 0, 0]]


def test_empty_responses_get_nothing() -> None:
    mask = torch.zeros(1, 3, dtype=torch.bool)
    found = to_token_rewards(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.long), mask, torch.ones(1), alpha=1.0)
    assert found.tolist() == [[0, 0, 0]]


@given(st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=5), min_size=1, max_size=4), st.integers(0, 3))
def test_the_sum_over_tokens_is_the_return_wherever_the_padding_is(scores: list[list[float]], left: int) -> None:
    steps = StepRewards.from_lists(scores)
    width = left + steps.score.shape[1] + 2
    mask = torch.zeros(len(scores), width, dtype=torch.bool)
    for number, row in enumerate(scores):
        mask[number, left : left + len(row)] = True
    outcome = torch.arange(len(scores)).float()
    token = to_token_rewards(steps.score, steps.step_end, mask, outcome, alpha=0.3)
    torch.testing.assert_close(token.sum(1), 0.3 * steps.score.sum(1) + outcome)
    assert (token[~mask] == 0).all()


def test_step_rewards_check_what_they_hold() -> None:
    steps = StepRewards.from_lists([[0.5], [0.25, 0.75]], [[4], [2, 9]], [False, True])
    assert steps.score.tolist() == [[0.5, 0], [0.25, 0.75]]
    assert steps.step_end.tolist() == [[4, 0], [2, 9]]
    assert steps.counts.tolist() == [1, 2]
    assert len(StepRewards.from_lists([])) == 0
    with pytest.raises(InputError, match="response 1 has 1 step scores and 2 step ends"):
        StepRewards.from_lists([[1.0], [1.0]], [[1], [1, 2]])
    with pytest.raises(InputError, match="response 1 has a step score that is not finite"):
        StepRewards.from_lists([[1.0], [float("nan")]])
    with pytest.raises(InputError, match="has a gap"):
        StepRewards(torch.zeros(1, 3), torch.tensor([[True, False, True]]), torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(InputError, match="step_end must be integers"):
        StepRewards(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2))
