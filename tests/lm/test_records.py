"""Records of the usual forms become sequences; wrong ones are named by number and column."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from tests.lm.conftest import make_model, make_tokenizer

from thrifty.core.errors import InputError
from thrifty.lm.records import from_records, pairs_from_records
from thrifty.lm.sample import sample

USER = [{"role": "user", "content": "what is one plus two"}]
GOOD = [{"role": "assistant", "content": "three"}]
BAD = [{"role": "assistant", "content": "four"}]


def spoken(sequences: Any, row: int) -> str:
    return sequences.texts(make_tokenizer(), keep_special=True)[row]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "what is one plus two", "completion": "three"},
        {"prompt": USER, "completion": GOOD},
        {"prompt": USER, "completion": "three"},
        {"messages": USER + GOOD},
    ],
)
def test_all_forms_of_one_answer_give_the_same(record: dict[str, Any]) -> None:
    tokenizer = make_tokenizer()
    made = from_records([record], tokenizer)
    assert tokenizer.decode(made.input_ids[0]) == "<|user|> what is one plus two <|end|> <|assistant|> three <|end|>"
    assert spoken(made, 0) == "three <|end|>"


def test_without_chat_strings_stay_as_they_are() -> None:
    tokenizer = make_tokenizer()
    made = from_records([{"prompt": "one plus", "completion": "two"}], tokenizer, chat=False)
    assert tokenizer.decode(made.input_ids[0]) == "<s> one plus two <|end|>"
    assert spoken(made, 0) == "two <|end|>"


def test_preferences_are_interleaved_with_their_group() -> None:
    records = [
        {"prompt": "what is one plus two", "chosen": "three", "rejected": "four", "source": 1},
        {"prompt": USER, "chosen": GOOD, "rejected": BAD, "source": 2},
    ]
    made = from_records(records, make_tokenizer(), columns=["source"])
    assert [spoken(made, row).split()[0] for row in range(4)] == ["three", "four", "three", "four"]
    assert made["group"].tolist() == [0, 0, 1, 1]
    assert made["chosen"].tolist() == [True, False, True, False]
    assert made["source"].tolist() == [1, 1, 2, 2]


def test_preferences_of_whole_conversations_share_their_prompt() -> None:
    chosen, rejected = pairs_from_records([{"chosen": USER + GOOD, "rejected": USER + BAD}], make_tokenizer())
    assert spoken(chosen, 0) == "three <|end|>"
    assert spoken(rejected, 0) == "four <|end|>"
    assert torch.equal(chosen.input_ids[0, :-2], rejected.input_ids[0, :-2])


def test_what_a_sampler_logged_comes_back_token_for_token() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    drawn = sample(model, tokenizer, ["what is one", "a cat"], 2, max_new_tokens=6)
    records = []
    for row in range(len(drawn)):
        mask = drawn.response_mask[row]
        prompt = drawn.input_ids[row][drawn.attention_mask[row] & ~mask]
        records.append(
            {
                "prompt_ids": prompt.tolist(),
                "completion_ids": drawn.input_ids[row][mask].tolist(),
                "behaviour_logps": drawn["behaviour_logps"][row][mask].tolist(),
                "reward": float(row),
            }
        )
    again = from_records(records, tokenizer, columns=["reward"])
    assert torch.equal(again.input_ids, drawn.input_ids)
    assert torch.equal(again.response_mask, drawn.response_mask)
    assert torch.equal(again["behaviour_logps"], drawn["behaviour_logps"])
    assert again["reward"].tolist() == [0, 1, 2, 3]


def test_prompt_text_with_logged_completion() -> None:
    made = from_records([{"prompt": "one", "completion_ids": [20, 21]}], make_tokenizer())
    assert made.input_ids[0, -2:].tolist() == [20, 21]


class TestTruncation:
    RECORDS = ({"prompt": "one plus two", "completion": "a cat says hello"}, {"prompt": "one", "completion": "two"})

    def cut(self, truncation: Any, max_length: int = 9) -> Any:
        return from_records(self.RECORDS, make_tokenizer(), max_length=max_length, truncation=truncation)

    def test_of_the_response(self, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="thrifty"):
            made = self.cut("response")
        assert spoken(made, 0) == "a cat says"
        assert made.input_ids.shape == (2, 9)
        assert "1 of 2 records are longer than 9 tokens: cut at their end" in caplog.text

    def test_of_the_prompt(self) -> None:
        made = self.cut("prompt")
        assert spoken(made, 0) == "a cat says hello <|end|>"
        assert make_tokenizer().decode(made.input_ids[0]).startswith("plus two <|end|>")

    def test_by_dropping(self) -> None:
        assert len(self.cut("drop")) == 1

    def test_as_an_error(self) -> None:
        with pytest.raises(InputError, match="record 0 has 11 tokens, more than max_length=9"):
            self.cut("error")

    def test_a_row_left_without_response_is_dropped(self) -> None:
        with pytest.raises(InputError, match="none of 2 records fits"):
            self.cut("response", max_length=4)

    def test_a_prompt_cut_away_whole_is_dropped(self) -> None:
        assert len(self.cut("prompt", max_length=5)) == 1

    def test_behaviour_logps_are_cut_with_their_tokens(self) -> None:
        record = {"prompt_ids": [5], "completion_ids": [6, 7, 8], "behaviour_logps": [-1.0, -2.0, -3.0]}
        made = from_records([record], make_tokenizer(), max_length=3)
        assert made["behaviour_logps"].tolist() == [[0, -1, -2]]

    def test_an_unknown_policy(self) -> None:
        with pytest.raises(InputError, match="truncation must be"):
            self.cut("middle")


class TestWrongInput:
    def fails(self, message: str, *records: dict[str, Any], **settings: Any) -> None:
        with pytest.raises(InputError, match=message):
            from_records(list(records), make_tokenizer(), **settings)

    def test_a_misnamed_column_is_named_with_what_is_there(self) -> None:
        good = {"prompt": "one", "completion": "two"}
        self.fails(
            r"record 1 has no column 'completion' or 'messages' \(it has: completions, prompt\); did you mean 'completions'",  # noqa: E501
            good,
            {"prompt": "one", "completions": "two"},
        )
        self.fails("record 0 has no column 'prompt'", {"completion": "two"})
        self.fails("record 0 has no column 'rejected'", {"prompt": "one", "chosen": "two"})
        self.fails("record 0 has no column 'reward'", good, columns=["reward"])
        self.fails("it has: nothing", {})

    def test_columns_that_are_no_numbers(self) -> None:
        self.fails(
            "record 0: column 'reward' must be a number",
            {"prompt": "one", "completion": "two", "reward": "high"},
            columns=["reward"],
        )

    def test_completions_of_another_kind(self) -> None:
        self.fails("column 'completion' must be a string", {"prompt": "one", "completion": USER})
        self.fails("column 'completion' must be a string", {"prompt": "one", "completion": 3})
        self.fails("record 0: column 'prompt'", {"prompt": [], "completion": "two"})

    def test_conversations(self) -> None:
        self.fails("record 0: a conversation needs", {"messages": USER})
        self.fails("differ in their last turn only", {"chosen": USER + GOOD, "rejected": BAD})

    def test_behaviour_logps(self) -> None:
        good = {"prompt_ids": [5], "completion_ids": [6], "behaviour_logps": [-1.0]}
        self.fails("2 numbers for 1 response tokens", {**good, "behaviour_logps": [-1.0, -2.0]})
        self.fails("must be a list of numbers", {**good, "behaviour_logps": "high"})
        self.fails("in all records or in none", good, {"prompt_ids": [5], "completion_ids": [6]})
        self.fails("in all records or in none", {"prompt_ids": [5], "completion_ids": [6]}, good)

    def test_mixed_forms_and_nothing(self) -> None:
        self.fails(
            "record 1 is a preference pair",
            {"prompt": "one", "completion": "two"},
            {"prompt": "one", "chosen": "two", "rejected": "a"},
        )
        self.fails("the data set is empty")

    def test_a_template_that_rewrites_the_prompt_names_the_record(self) -> None:
        tokenizer = make_tokenizer(template="{{ messages | length }} {{ messages[0].content }}")
        with pytest.raises(InputError, match="record 0: the tokenizer's chat template"):
            from_records([{"prompt": "one", "completion": "two"}], tokenizer)

    def test_pairs_of_other_records(self) -> None:
        with pytest.raises(InputError, match="record 0 has no column 'chosen'"):
            pairs_from_records([{"prompt": "one", "completion": "two"}], make_tokenizer())
