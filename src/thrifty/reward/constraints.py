"""Constraints that an answer's form can be checked for: the verifier of TULU 3's instruction following.

Names and arguments are those of the released prompts (``allenai/RLVR-IFeval``), whose right answer is a constraint:
``{"func_name": "verify_paragraph_count", "N": 3}``. They are the constraints of IFEval (arXiv 2311.07911).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.reward.base import Text, text_of

_SENTENCE_END = re.compile(r"(?<!\w\.\w.)(?<![A-Z][a-z]\.)(?<=[.?])\s")


def constraint_answer(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the completion keeps the row's constraint, else 0; a row without one is not judged.

    Parameters
    ----------
    completions
        What the model said.
    answer
        Of each row a constraint: a mapping, or the same as JSON, with ``func_name`` and the arguments; those that are
        null are ignored.

    Raises
    ------
    NotFoundError
        When there is no constraint of that name; the nearest are offered.
    InputError
        When an answer is no constraint, or lacks an argument.

    References
    ----------
    Lambert et al., "TULU 3", arXiv 2411.15124, section 6.2; the authors' ``if_functions.py`` as of the paper.
    """
    return [
        None if wanted is None else float(_holds(text_of(said), wanted))
        for said, wanted in zip(completions, answer, strict=True)
    ]


def _holds(text: str, wanted: Any) -> bool:
    try:
        found = json.loads(wanted) if isinstance(wanted, str) else wanted
        arguments = {name: value for name, value in found.items() if value is not None}
        name = str(arguments.pop("func_name"))
    except (ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"{str(wanted)[:80]!r} is no constraint: give an object with func_name and arguments"
        ) from error
    if name not in CONSTRAINTS:
        raise NotFoundError(f"no constraint {name!r}: {nearest(name, CONSTRAINTS)}")
    try:
        return CONSTRAINTS[name](text, **arguments)
    except TypeError as error:
        raise InputError(f"the constraint {name} does not take {', '.join(arguments) or 'no arguments'}") from error


def compared(count: int, limit: int, quantifier: str, tolerance: int) -> bool:
    """Whether a count is ``at least``, ``at most`` or ``around`` a limit."""
    kept: Mapping[str, bool] = {
        "at least": count >= limit,
        "at most": count <= limit,
        "around": abs(count - limit) <= tolerance,
    }
    if quantifier not in kept:
        raise InputError(f"quantifier is {quantifier!r}, expected at least, at most or around")
    return kept[quantifier]


def _paragraph_count(text: str, N: int) -> bool:
    parts = "\n".join(line.strip() for line in text.splitlines()).split("* * *")
    return len(parts) == N and all(part.strip() for part in parts)


def _first_word(text: str, N: int, first_word: str, i: int) -> bool:
    parts = text.split("\n\n")
    return len(parts) == N and 1 <= i <= N and parts[i - 1].strip().startswith(first_word)


def _sections(text: str, N: int, section_splitter: str) -> bool:
    parts = text.split(section_splitter)
    return len(parts[1:] if parts[0] == "" else parts) == N


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _two_responses(text: str) -> bool:
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and parts[0] != parts[1]


def _language(text: str, language: str) -> bool:
    try:
        import langdetect
    except ImportError as error:
        raise InputError("a constraint of language needs langdetect: pip install langdetect") from error
    try:
        return bool(langdetect.detect(text) == language)
    except langdetect.LangDetectException:
        return False  # nothing in it is of any language


def _bullets(text: str, N: int) -> bool:
    return sum(line.strip().startswith(("*", "-")) for line in text.split("\n")) == N


CONSTRAINTS: dict[str, Callable[..., bool]] = {
    "verify_keywords": lambda text, keyword_list: all(word.lower() in text.lower() for word in keyword_list),
    "verify_keyword_frequency": lambda text, word, N: re.findall(r"\b\w+\b", text.lower()).count(word.lower()) == N,
    "validate_forbidden_words": lambda text, forbidden_words: (
        not any(word.lower() in text.lower() for word in forbidden_words)
    ),
    "verify_letter_frequency": lambda text, letter, N: text.count(letter) == N,
    "validate_response_language": _language,
    "verify_paragraph_count": _paragraph_count,
    "validate_word_constraint": lambda text, N, quantifier: compared(
        len(text.split()), N, quantifier, max(round(N * 0.1), 1)
    ),
    "verify_sentence_constraint": lambda text, N, quantifier: compared(
        len(_SENTENCE_END.split(text)), N, quantifier, 1
    ),
    "validate_paragraphs": _first_word,
    "verify_postscript": lambda text, postscript_marker: bool(text.partition(postscript_marker)[2].strip()),
    "validate_placeholders": lambda text, N: len(re.findall(r"\[(.*?)\]", text)) >= N,
    "verify_bullet_points": _bullets,
    "validate_title": lambda text: re.search(r"<<(.*?)>>", text) is not None,
    "validate_choice": lambda text, options: any(text in option for option in options),
    "validate_highlighted_sections": lambda text, N: len(re.findall(r"\*(.*?)\*", text)) >= N,
    "validate_sections": _sections,
    "validate_json_format": _is_json,
    "validate_repeat_prompt": lambda text, original_prompt: text.startswith(original_prompt),
    "validate_two_responses": _two_responses,
    "validate_uppercase": lambda text: text == text.upper(),
    "validate_lowercase": lambda text: text == text.lower(),
    "validate_frequency_capital_words": lambda text, N, quantifier: compared(
        len(re.findall(r"\b[A-Z]+\b", text)), N, quantifier, 0
    ),
    "validate_end": lambda text, end_phrase: text.endswith(end_phrase),
    "validate_quotation": lambda text: text.startswith('"') and text.endswith('"'),
    "validate_no_commas": lambda text: "," not in text,
}
"""Each takes the text and the arguments of the released prompts. ``validate_placeholders`` counts them here; the
released function returned a pair, which counted as kept whatever it found."""
