"""What is rendered for training is what the model sees and says when it is sampled from."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.lm.conftest import WORDS, make_tokenizer

from thrifty.core.errors import InputError
from thrifty.lm.chat import answer_ids, conversation_ids, prompt_ids, render_prompt

TURNS = [
    {"role": "user", "content": "hello there"},
    {"role": "assistant", "content": "how are you"},
    {"role": "user", "content": "what is one plus two"},
    {"role": "assistant", "content": "three"},
]

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)


@pytest.mark.parametrize("template", [True, False])
@given(question=texts, answer=texts)
def test_the_prompt_is_a_prefix_of_the_whole_and_the_answer_ends_the_turn(
    template: bool, question: str, answer: str
) -> None:
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    turns = [{"role": "user", "content": question}]
    opening = prompt_ids(tokenizer, question)
    spoken = answer_ids(tokenizer, turns, answer)
    ids, mask = conversation_ids(tokenizer, [*turns, {"role": "assistant", "content": answer}])
    assert ids == opening + spoken
    assert mask == [False] * len(opening) + [True] * len(spoken)
    assert spoken[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(spoken[:-1]) == answer
    if template:
        whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": answer}], tokenize=False)
        assert whole.startswith(render_prompt(tokenizer, question))
        assert tokenizer(whole)["input_ids"][: len(ids)] == ids


@pytest.mark.parametrize("template", [True, False])
def test_every_assistant_turn_is_spoken(template: bool) -> None:
    tokenizer = make_tokenizer() if template else make_tokenizer(template=None)
    ids, mask = conversation_ids(tokenizer, TURNS)
    assert tokenizer.decode([token for token, spoken in zip(ids, mask, strict=True) if spoken]) == (
        "how are you <|end|> three <|end|>"
    )
    if template:
        whole = tokenizer(tokenizer.apply_chat_template(TURNS, tokenize=False))["input_ids"]
        assert whole[: len(ids)] == ids


def test_a_tokenizer_without_template_writes_turns_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer(template=None)
    with caplog.at_level(logging.WARNING, logger="thrifty"):
        rendered = render_prompt(tokenizer, [{"role": "system", "content": "a cat"}, TURNS[0]])
        render_prompt(tokenizer, "hello")
    assert rendered == "a cat\nUser: hello there\nAssistant:"
    assert len(caplog.records) == 1


def test_token_ids_stay_as_they_are() -> None:
    assert prompt_ids(make_tokenizer(), [4, 8, 15]) == [4, 8, 15]


def test_an_answer_to_be_continued_stays_open() -> None:
    for tokenizer in (make_tokenizer(), make_tokenizer(template=None)):
        ids = prompt_ids(tokenizer, TURNS[:2])
        assert tokenizer.decode(ids).endswith("how are you")


def test_a_beginning_token_comes_once_and_only_from_tokenizers_that_add_it() -> None:
    plain = make_tokenizer(template=None, bos=True)
    assert prompt_ids(plain, "hello")[0] == plain.bos_token_id
    assert prompt_ids(make_tokenizer(template=None), "hello")[0] != plain.bos_token_id
    templated = make_tokenizer(bos=True)
    assert templated.bos_token_id not in prompt_ids(templated, "hello")


class TestWrongInput:
    @pytest.mark.parametrize("prompt", [[], [{"role": "user"}], ["hello"], [{"content": "x"}]])
    def test_prompts_that_are_none(self, prompt: Any) -> None:
        with pytest.raises(InputError, match="messages with 'role' and 'content'"):
            prompt_ids(make_tokenizer(), prompt)

    def test_text_without_tokenizer(self) -> None:
        with pytest.raises(InputError, match="need a tokenizer"):
            prompt_ids(None, "hello")

    def test_a_prompt_of_no_tokens(self) -> None:
        tokenizer = make_tokenizer(template="{{ messages[0].content }}")
        with pytest.raises(InputError, match="gives no tokens"):
            prompt_ids(tokenizer, "")

    def test_a_template_that_rewrites_the_prompt(self) -> None:
        tokenizer = make_tokenizer(
            template="{{ messages | length }} {% for m in messages %}{{ m.content }} {% endfor %}"
        )
        with pytest.raises(InputError, match="writes the prompt differently"):
            answer_ids(tokenizer, TURNS[:1], "three")

    def test_a_template_that_rewrites_earlier_turns(self) -> None:
        tokenizer = make_tokenizer(
            template="{% for m in messages %}{% if loop.last or m.role == 'user' %}{{ m.content }} <|end|> {% endif %}"
            "{% endfor %}"
        )
        with pytest.raises(InputError, match="rewrites earlier turns"):
            conversation_ids(tokenizer, TURNS)

    def test_conversations_nobody_answers(self) -> None:
        with pytest.raises(InputError, match="at least one such turn"):
            conversation_ids(make_tokenizer(), TURNS[:1])
        with pytest.raises(InputError, match="before the assistant's first turn"):
            conversation_ids(make_tokenizer(), TURNS[1:2])


def test_a_tokenizer_without_end_of_sequence_token_ends_nothing() -> None:
    tokenizer = make_tokenizer(template=None)
    tokenizer.eos_token = None
    assert tokenizer.decode(answer_ids(tokenizer, TURNS[:1], "three")) == "three"
