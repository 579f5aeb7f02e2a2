"""Decontamination against the cards' worked examples, a slow and plain count, and its traps."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.data.decontaminate import clean, exact_overlap, ngram_overlap, ngrams, shared_ngrams, words

letters = st.lists(st.sampled_from("abc"), max_size=9).map(" ".join)


def test_worked_example_of_cleaning() -> None:
    assert clean("Find x if 3x + 5 = 20.") == clean("find X, if 7x + 9 = 41!") == "findxifx"
    assert clean(r"$\frac{1}{2}$") == "frac"
    # Word characters that stay: accents, underscores, fractions and superscripts.
    assert clean("Café_1: ½ x²") == "café_½x²"


def test_exact_matches_are_found_raw_and_cleaned() -> None:
    train = ["Find x if 3x + 5 = 20.", "Find y.", "1 + 1 = 2"]
    report = exact_overlap(train, {"aime": ["Prove it.", "find X, if 7x + 9 = 41!"], "math": ["Find z."]})
    assert report.kept == [1, 2]
    assert [(m.row, m.evaluation, m.example, m.score) for m in report.matches] == [(0, "aime", 1, 1.0)]
    assert report.shares == {"aime": 0.5, "math": 0.0}
    assert report.apply(train) == train[1:]
    with pytest.raises(InputError, match="2 rows for a report on 3 texts"):
        report.apply(train[:2])


def test_texts_that_clean_to_nothing_do_not_match_each_other() -> None:
    report = exact_overlap(["3 + 4 = ?", "17", "", "5 * 5"], ["12 - 2 = ?", "5 * 5", "Why?"])
    assert report.kept == [0, 1, 2]
    assert [(m.row, m.example) for m in report.matches] == [(3, 1)]
    assert report.unchecked == [0, 1, 2, 3]
    assert report.unchecked_examples == [("", 0), ("", 1)]
    assert "too short to compare were 4 training texts and 2 examples" in str(report)


def test_worked_example_of_ngrams() -> None:
    assert [" ".join(gram) for gram in ngrams(["a", "b", "c", "d", "e"], 3)] == ["a b c", "b c d", "c d e"]
    assert list(ngrams(["a", "b"], 3)) == []


def test_one_shared_ngram_is_enough_whatever_case_and_space() -> None:
    example = " ".join(f"word{at}" for at in range(40))
    train = [
        "Before. " + " \n ".join(example.upper().split()[:33]),
        example.replace("word31", "other"),
        "short",
    ]
    report = shared_ngrams(train, [example])
    assert [(m.row, m.example) for m in report.matches] == [(0, 0)]
    assert report.matches[0].score == pytest.approx(2 / 9)
    assert report.unchecked == [2]
    assert shared_ngrams(train, ["word1 word2"]).unchecked_examples == [("", 0)]


def test_worked_example_of_matched_tokens() -> None:
    example = "the quick brown fox jumps over the lazy dog today"
    train = ["we saw the quick brown fox jumps over it"]
    report = ngram_overlap(train, [example], n=4)
    assert report.matches[0].score == pytest.approx(0.6)
    assert report.kept == []
    # A match has to exceed the threshold.
    assert ngram_overlap(train, [example], n=4, threshold=0.6).kept == [0]


def test_matches_of_different_training_texts_do_not_add_up() -> None:
    halves = ["a b c d z", "z e f g h"]
    assert ngram_overlap(halves, ["a b c d e f g h"], n=4).kept == [0, 1]


def test_a_repeated_ngram_counts_everywhere_or_as_the_authors_code_does() -> None:
    train, example = ["so a b it is"], ["a b c a b"]
    assert ngram_overlap(train, example, n=2, threshold=0.0).matches[0].score == pytest.approx(4 / 5)
    last = ngram_overlap(train, example, n=2, threshold=0.0, repeated="last")
    assert last.matches[0].score == pytest.approx(2 / 5)


def test_of_several_texts_the_scores_are_averaged() -> None:
    example = ("a b c d", "e f g h")
    assert ngram_overlap(["a b c d"], [example], n=4, threshold=0.4).matches[0].score == pytest.approx(0.5)
    assert ngram_overlap(["a b c d"], [example], n=4).kept == [0]
    assert exact_overlap(["E F g h"], [example]).kept == []


@given(st.lists(letters, max_size=5), st.lists(letters, min_size=1, max_size=5), st.integers(1, 4))
def test_scores_are_those_of_a_plain_count(train: list[str], examples: list[str], n: int) -> None:
    report = ngram_overlap(train, examples, n=n, threshold=0.0)
    shared = shared_ngrams(train, examples, n=n)
    best: dict[int, float] = {}
    for row, text in enumerate(train):
        held = {tuple(words(text)[at : at + n]) for at in range(len(words(text)) - n + 1)}
        for example in examples:
            tokens = words(example)
            hit = {
                at + offset
                for at in range(len(tokens) - n + 1)
                if tuple(tokens[at : at + n]) in held
                for offset in range(n)
            }
            if hit:
                best[row] = max(best.get(row, 0.0), len(hit) / len(tokens))
    assert {match.row: match.score for match in report.matches} == pytest.approx(best)
    assert report.kept == shared.kept == [row for row in range(len(train)) if row not in best]
    assert report.unchecked == [row for row, text in enumerate(train) if len(words(text)) < n]


def test_time_grows_with_the_texts_and_not_with_their_pairs() -> None:
    draw = random.Random(0)
    names = [f"w{at}" for at in range(3000)]
    boilerplate = " ".join(names[:40])  # in every text of both sides: 20 million pairs
    train = [f"{boilerplate} {' '.join(draw.choices(names, k=10))}" for _ in range(10_000)]
    examples = [f"{boilerplate} {' '.join(draw.choices(names, k=10))}" for _ in range(2_000)]
    started = time.process_time()
    assert len(shared_ngrams(train, examples).matches) == len(train)
    assert exact_overlap(train, examples).shares == {"": 1.0}  # only digits tell them apart
    assert time.process_time() - started < 20


def test_wrong_input_is_named() -> None:
    with pytest.raises(InputError, match="training text 1 is a NoneType"):
        exact_overlap(["a", None], ["b"])  # type: ignore[list-item]
    with pytest.raises(InputError, match="give lists of texts"):
        exact_overlap(["a"], "b")
    with pytest.raises(InputError, match="evaluation set 'math' holds no example"):
        shared_ngrams(["a"], {"math": []})
    with pytest.raises(InputError, match="there is no evaluation set"):
        shared_ngrams(["a"], {})
    with pytest.raises(InputError, match="example 0 of the evaluation set '' is no text but None"):
        ngram_overlap(["a"], [None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="n must be at least 1"):
        ngram_overlap(["a"], ["b"], n=0)
    with pytest.raises(InputError, match=r"threshold must be within \[0, 1\)"):
        ngram_overlap(["a"], ["b"], threshold=1.0)


def test_no_training_texts_give_an_empty_report() -> None:
    report = ngram_overlap([], ["a b c d e f g h"])
    assert (report.kept, report.matches, report.shares) == ([], [], {"": 0.0})
