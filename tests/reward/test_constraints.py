"""Constraints of form: of each, a text that keeps it and one that does not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from thrifty.core.errors import InputError, NotFoundError
from thrifty.reward.constraints import CONSTRAINTS, constraint_answer
from thrifty.reward.verifiers import verifier

CASES: list[tuple[str, dict[str, Any], str, str]] = [
    ("verify_keywords", {"keyword_list": ["Sun", "moon"]}, "The sun and the MOON.", "The sun."),
    ("verify_keyword_frequency", {"word": "cat", "N": 2}, "A cat, a Cat, cats.", "One cat."),
    ("validate_forbidden_words", {"forbidden_words": ["no"]}, "Yes.", "Nothing."),
    ("verify_letter_frequency", {"letter": "l", "N": 3}, "hello world", "Lull"),
    ("verify_paragraph_count", {"N": 2}, "One.\n* * *\nTwo.", "One.\n* * *\n"),
    ("validate_word_constraint", {"N": 20, "quantifier": "around"}, "word " * 22, "word " * 23),
    ("validate_word_constraint", {"N": 2, "quantifier": "at most"}, "two words", "these three words"),
    ("verify_sentence_constraint", {"N": 3, "quantifier": "at least"}, "A. B? C.", "A. B? C."[:4]),
    ("validate_paragraphs", {"N": 2, "first_word": "Then", "i": 2}, "First.\n\nThen this.", "Then.\n\nFirst."),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Bye. P.S. More.", "Bye. P.S. "),
    ("validate_placeholders", {"N": 2}, "[name] at [address]", "[name]"),
    ("verify_bullet_points", {"N": 2}, "* a\n- b", "* a"),
    ("validate_title", {}, "<<Joy>>\nText", "<Joy>"),
    ("validate_choice", {"options": ["My answer is yes.", "My answer is no."]}, "My answer is no.", "Perhaps."),
    ("validate_highlighted_sections", {"N": 2}, "*a* and *b*", "*a*"),
    ("validate_sections", {"N": 2, "section_splitter": "Section"}, "Section 1 a Section 2 b", "Section 1 a"),
    ("validate_json_format", {}, '{"a": 1}', "{a: 1}"),
    ("validate_repeat_prompt", {"original_prompt": "Say hi."}, "Say hi. Hi!", "Hi!"),
    ("validate_two_responses", {}, "a ****** b", "a ****** a"),
    ("validate_uppercase", {}, "LOUD 1!", "Loud"),
    ("validate_lowercase", {}, "calm 1!", "Calm"),
    ("validate_frequency_capital_words", {"N": 1, "quantifier": "at least"}, "An ODD one", "An odd one"),
    ("validate_end", {"end_phrase": "That is all."}, "So. That is all.", "That is all. Bye."),
    ("validate_quotation", {}, '"So."', 'He said "so".'),
    ("validate_no_commas", {}, "a b", "a, b"),
]


@pytest.mark.parametrize(("name", "arguments", "kept", "broken"), CASES)
def test_each_constraint(name: str, arguments: dict[str, Any], kept: str, broken: str) -> None:
    wanted = {"func_name": name, **arguments, "unused": None}
    assert constraint_answer([kept, broken, ""], [wanted, json.dumps(wanted), None]) == [1, 0, None]


def test_all_of_ifeval_s_constraints_are_there() -> None:
    assert set(CONSTRAINTS) == {name for name, *_ in CASES} | {"validate_response_language"}
    assert len(CONSTRAINTS) == 25


def test_the_verifier_has_a_name_and_says_what_is_wrong() -> None:
    reward: Any = verifier("constraint")
    assert reward(["a b"], [{"func_name": "validate_no_commas"}]) == [1]
    with pytest.raises(NotFoundError, match="no constraint 'validate_no_comma': did you mean 'validate_no_commas'"):
        reward(["a"], [{"func_name": "validate_no_comma"}])
    with pytest.raises(InputError, match="is no constraint: give"):
        reward(["a"], ["3"])
    with pytest.raises(InputError, match="verify_bullet_points does not take"):
        reward(["a"], [{"func_name": "verify_bullet_points", "count": 3}])
    with pytest.raises(InputError, match="expected at least, at most or around"):
        reward(["a"], [{"func_name": "validate_word_constraint", "N": 1, "quantifier": "exactly"}])
