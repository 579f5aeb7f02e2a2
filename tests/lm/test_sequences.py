"""Sequences: shapes are checked, padding never matters, columns follow their rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.lm.conftest import make_tokenizer

from thrifty.core.errors import InputError
from thrifty.lm.sequences import Sequences, from_rows


def example() -> Sequences:
    return from_rows(
        [
            ([10, 11, 12], [False, True, True]),
            ([13, 14], [False, True]),
            ([15, 16, 17, 18], [False, False, True, True]),
        ],
        pad_id=0,
        row_columns={"reward": [1.0, 0.5, 0.0], "group": [0, 0, 1], "finished": [True, False, True]},
        token_columns={"behaviour_logps": [[-1.0, -2.0], [-3.0], [-4.0, -5.0]]},
    )


def test_rows_become_right_padded_tensors() -> None:
    made = example()
    assert made.input_ids.tolist() == [[10, 11, 12, 0], [13, 14, 0, 0], [15, 16, 17, 18]]
    assert made.lengths.tolist() == [3, 2, 4]
    assert made.response_lengths.tolist() == [2, 1, 2]
    assert made.right_padded()
    assert made["group"].dtype == torch.int64
    assert made["finished"].dtype == torch.bool
    assert made["behaviour_logps"].tolist() == [[0, -1, -2, 0], [0, -3, 0, 0], [0, 0, -4, -5]]
    assert len(made) == 3
    assert made.device == torch.device("cpu")


def test_select_takes_lists_masks_and_slices() -> None:
    made = example()
    assert made.select([2, 0])["group"].tolist() == [1, 0]
    assert made.select(torch.tensor([False, True, False])).input_ids.tolist() == [[13, 14, 0, 0]]
    assert made.select(slice(1, None))["reward"].tolist() == [0.5, 0.0]
    assert len(made.select([])) == 0


@given(st.integers(0, 6))
def test_trim_undoes_pad_to(more: int) -> None:
    made = example()
    padded = made.pad_to(4 + more, pad_id=9)
    assert padded.input_ids.shape == (3, 4 + more)
    assert (padded.input_ids[:, 4:] == 9).all()
    again = padded.trim()
    for name in ("input_ids", "attention_mask", "response_mask"):
        assert torch.equal(getattr(again, name), getattr(made, name))
    assert torch.equal(again["behaviour_logps"], made["behaviour_logps"])


def test_trim_of_the_longest_away() -> None:
    assert example().select([1]).trim().input_ids.tolist() == [[13, 14]]
    assert example().select([]).trim().input_ids.shape == (0, 0)


def test_cat_pads_to_the_longest_and_keeps_columns() -> None:
    both = Sequences.cat([example().select([1]).trim(), example().select([0, 2])], pad_id=7)
    assert both.input_ids.tolist() == [[13, 14, 7, 7], [10, 11, 12, 0], [15, 16, 17, 18]]
    assert both["behaviour_logps"][0].tolist() == [0, -3, 0, 0]
    assert both["reward"].tolist() == [0.5, 1.0, 0.0]


def test_columns_are_added_replaced_and_removed_in_copies() -> None:
    made = example()
    more = made.with_columns(advantage=torch.zeros(3, 4), reward=torch.ones(3))
    assert more["reward"].tolist() == [1, 1, 1]
    assert made["reward"].tolist() == [1.0, 0.5, 0.0]
    assert "reward" not in more.without_columns("reward", "absent").columns


def test_texts_are_the_responses() -> None:
    tokenizer = make_tokenizer()
    ids = tokenizer("what is <|end|>")["input_ids"]
    made = from_rows([([5, *ids], [False, True, True, True])])
    assert made.texts(tokenizer) == ["what is"]
    assert made.texts(tokenizer, keep_special=True) == ["what is <|end|>"]


def test_to_moves_all_tensors() -> None:
    moved = example().to("meta")
    assert moved.device.type == "meta"
    assert moved["reward"].device.type == "meta"


class TestWrongInput:
    def test_shapes_and_dtypes(self) -> None:
        ids, mask = torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.bool)
        with pytest.raises(InputError, match="input_ids must be integers"):
            Sequences(ids.float(), mask, mask)
        with pytest.raises(InputError, match="attention_mask must be bool"):
            Sequences(ids, mask.long(), mask)
        with pytest.raises(InputError, match=r"response_mask must be bool \(2, 3\)"):
            Sequences(ids, mask, mask[:, :2])
        with pytest.raises(InputError, match=r"column 'reward' must have shape \(2,\)"):
            Sequences(ids, mask, mask, {"reward": torch.ones(3)})

    def test_a_column_that_is_not_there(self) -> None:
        with pytest.raises(InputError, match="did you mean 'reward'"):
            example()["rewards"]

    def test_pad_to_less(self) -> None:
        with pytest.raises(InputError, match="trim"):
            example().pad_to(2)

    def test_cat(self) -> None:
        with pytest.raises(InputError, match="nothing to concatenate"):
            Sequences.cat([])
        with pytest.raises(InputError, match="batch 1 has columns"):
            Sequences.cat([example(), example().without_columns("reward")])
