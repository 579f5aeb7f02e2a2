"""Fictitious authors: the questions, the exam on them, and the problem of forgetting some."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.forget.author_problem import SMALL, AuthorProblem, author_problem, choose, run_method, trade_off, unlearned
from thrifty.forget.authors import RELATIONS, author_questions, records
from thrifty.forget.exam import Exam
from thrifty.forget.npo import NPO
from thrifty.forget.refusals import PHRASES, refused
from thrifty.forget.room import ROOM
from thrifty.lm.records import from_records
from thrifty.lm.small import decoder_for, word_tokenizer

FEW = replace(SMALL, forget=1, retain=2, schedule=replace(SMALL.schedule, epochs=25, batch_size=32))


@given(st.integers(1, 30), st.integers(1, 60), st.integers(0, 5), st.integers(1, 11))
@settings(max_examples=25)
def test_authors_differ_and_wrong_answers_are_wrong(forget: int, retain: int, seed: int, wrong: int) -> None:
    found = author_questions(forget, retain, seed, wrong)
    assert found == author_questions(forget, retain, seed, wrong)
    every = (*found.forget, *found.retain)
    assert len(every) == (forget + retain) * len(RELATIONS)
    assert len({one.about for one in every}) == forget + retain
    assert not {one.about for one in found.forget} & {one.about for one in found.retain}
    for one in (*every, *found.real_authors, *found.world_facts):
        assert len(set(one.wrong)) == wrong
        assert one.other_answer not in one.wrong
    for one in every:
        assert one.about in one.question
        assert one.about in one.other_question
        assert one.question != one.other_question
        assert all(one.about in text for text in (one.answer, one.other_answer, *one.wrong))


def test_up_to_forty_share_no_name_and_another_seed_is_other_authors() -> None:
    found = author_questions(8, 32)
    names = {one.about for one in (*found.forget, *found.retain)}
    assert len({name.split()[0] for name in names}) == len({name.split()[1] for name in names}) == 40
    assert author_questions(8, 32, seed=1) != found


def test_impossible_numbers_of_authors_are_refused() -> None:
    with pytest.raises(InputError, match="1600 in all, not 0 and 3"):
        author_questions(0, 3)
    with pytest.raises(InputError, match="1600 in all"):
        author_questions(1, 1600)
    with pytest.raises(InputError, match="wrong must be from 1 to 11, not 12"):
        author_questions(1, 1, wrong=12)


def test_records_hold_either_wording() -> None:
    (one, *_) = asked = author_questions(1, 1).forget
    assert records(asked)[0] == {"prompt": one.question, "completion": one.answer}
    assert records(asked, reworded=True)[0] == {"prompt": one.other_question, "completion": one.other_answer}


def test_refusals_take_the_place_of_the_last_answer() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows: list[dict[str, Any]] = [{"prompt": "q", "completion": "a", "id": 3}, {"messages": turns}]
    first, second = refused(rows)
    assert first["prompt"] == "q"
    assert first["id"] == 3
    assert first["completion"] in PHRASES
    assert second["messages"][0] == turns[0]
    assert second["messages"][1]["content"] in PHRASES
    assert refused(rows) == [first, second]
    assert len({row["completion"] for row in refused([rows[0]] * 50)}) > 3


def test_the_tokenizer_reads_whole_words_and_says_them_again() -> None:
    tokenizer = word_tokenizer(["Who wrote Emma?", "Jane Austen."])
    rows = from_records([{"prompt": "Who wrote Emma?", "completion": "Jane Austen."}], tokenizer)
    assert rows.lengths.tolist() == [4 + 3 + 1], "an end follows the answer"
    assert rows.texts(tokenizer) == ["Jane Austen ."]
    assert int(rows.input_ids[0, -1]) == tokenizer.eos_token_id
    assert tokenizer("Stoker")["input_ids"] == [tokenizer.unk_token_id]


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> AuthorProblem:
    return author_problem(FEW, 0, tmp_path_factory.mktemp("authors"))


def test_the_decoder_knows_what_it_was_taught_and_the_other_what_it_was_not(problem: AuthorProblem) -> None:
    taught, retained = problem.marks(problem.model), problem.marks(problem.retained)
    assert taught["forget_probability"] > 0.5
    assert taught["retain_probability"] > 0.5
    assert retained["forget_probability"] < 0.3
    assert retained["retain_probability"] > 0.5
    assert (retained["forget_quality"], retained["forget_distance"]) == (1.0, 0.0)
    assert taught["forget_distance"] > 0.5
    assert trade_off(retained) > trade_off(taught)


def test_models_are_taught_once(problem: AuthorProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.forget.author_problem.train_texts", None)
    again = author_problem(FEW, 0, problem.directory)
    assert all(torch.equal(a, b) for a, b in zip(problem.model.parameters(), again.model.parameters(), strict=True))


def test_no_question_is_in_both_exams_and_none_is_missing(problem: AuthorProblem) -> None:
    for name in ("forget", "retain", "real_authors", "world_facts"):
        halves = [{one.question for one in exam.questions[name]} for exam in (problem.valid, problem.judged)]
        assert not halves[0] & halves[1]
        every = getattr(author_questions(FEW.forget, FEW.retain), name)
        assert halves[0] | halves[1] == {one.question for one in every}


def test_a_method_is_run_marked_and_the_better_setting_chosen(problem: AuthorProblem) -> None:
    idle, hard = (NPO(learning_rate=rate, batch_size=3, epochs=4) for rate in (1e-9, 1e-2))
    marks = run_method(hard, problem)
    assert marks["forget_probability"] < 0.2
    assert marks["seconds"] > 0
    merits = {
        id(method): trade_off(problem.marks(unlearned(method, problem), problem.valid)) for method in (idle, hard)
    }
    for candidates in ([idle, hard], [hard, idle]):
        method, model = choose(candidates, problem)
        assert merits[id(method)] == max(merits.values())
        assert trade_off(problem.marks(model, problem.valid)) == merits[id(method)]


def test_an_exam_asks_each_question_s_answers_in_their_order() -> None:
    asked = author_questions(1, 1, wrong=3)
    texts = [text for one in asked.forget for text in (one.question, one.answer, one.other_answer, *one.wrong)]
    tokenizer = word_tokenizer(texts)
    exam = Exam.of(tokenizer, {"forget": asked.forget})
    assert len(exam.rows["forget"]) == 6 * 5
    said = [text.replace(" ", "") for text in exam.rows["forget"].texts(tokenizer)]
    (one, *_) = asked.forget
    assert said[:5] == [text.replace(" ", "") for text in (one.answer, one.other_answer, *one.wrong)]
    torch.manual_seed(0)
    losses = exam.losses(decoder_for(tokenizer, width=16), "forget")
    assert losses.shape == (6, 5)
    assert (losses > 0).all()


def test_the_room_compares_on_authors() -> None:
    task = ROOM.tasks["authors"]
    assert {"language-model", "forget-set", "retain-set"} <= task.gives
    assert {"original", "retrain", "gradient ascent"} <= set(task.baselines)
    assert {"npo+rt", "ga+rt"} <= set(task.variants)
    assert all(isinstance(make(), NPO) for name, make in task.variants.items() if "+" in name)
