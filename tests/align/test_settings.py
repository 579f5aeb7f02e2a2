"""What the small settings of claims share: problems are dealt out whole, and the best choice is kept."""

from __future__ import annotations

import torch

from thrifty.align.settings.base import best, examples, split
from thrifty.lm.small import character_tokenizer, decoder_for


def test_a_split_deals_out_every_problem_once() -> None:
    parts = split(range(10), torch.Generator().manual_seed(0), 2, 3)
    assert [len(part) for part in parts] == [2, 3, 5]
    assert sorted(number for part in parts for number in part) == list(range(10))


def test_examples_are_learnt_where_the_answer_is() -> None:
    data = examples([([1, 2], [3, 0]), ([4], [5, 6, 0])], 9, reward=[1.0, -1.0])
    assert data.input_ids.tolist() == [[1, 2, 3, 0], [4, 5, 6, 0]]
    assert data.response_mask.tolist() == [[False, False, True, True], [False, True, True, True]]
    assert data["reward"].tolist() == [1.0, -1.0]


def test_the_first_of_equals_is_best() -> None:
    assert best([1, 2, 3], str, {"1": 1.0, "2": 2.0, "3": 2.0}.__getitem__) == (2, "2")


def test_a_decoder_fits_its_tokenizer() -> None:
    tokenizer = character_tokenizer("01+=")
    config = decoder_for(tokenizer).config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id) == (5, 0, 0)
    assert tokenizer.decode(tokenizer("1+0=1").input_ids) == "1+0=1"
