"""Verifiers of answers: whether a completion says what is right. Each takes lists, as TRL's rewards do.

All read the column ``answer``; :func:`thrifty.reward.verifiers.reading` lets them read another.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Sequence
from typing import Any

from thrifty.core.errors import InputError
from thrifty.data.optional import need
from thrifty.reward.base import Text, text_of

_DELIMITED = re.compile(r"\$|\\boxed|\\\(|\\\[")
_RELEASED = re.compile(r"[-+]?\d*\.\d+|\d+")
_SIGNED = re.compile(r"[-+]?\d*\.\d+|[-+]?\d+")
_ANSWER_LINE = re.compile(r"<answer>(.*?)</answer>")
_THINK_ANSWER = re.compile(r"<think>.*?</think>\s*<answer>.*?</answer>", re.DOTALL)
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_UNNAMED_CHOICES = 10


def math_answer(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float | None]:
    r"""1 where math-verify finds the completion's final answer equal to the right one, else 0.

    The right answer is an expression with or without LaTeX delimiters, or a solution that ends in ``\boxed{...}`` or
    ``#### 42``. Where it can't be parsed, the verifier does not apply (None).

    Raises
    ------
    InputError
        When math-verify is not installed.
    """
    library = need("math_verify", "lm", "math answers")
    # The library's time limits use signals, which only the main thread may set.
    main = threading.current_thread() is threading.main_thread()
    limit = 5 if main else None

    def judge(said: str, right: str) -> float | None:
        gold = right.rpartition("####")[2].strip()
        if not _DELIMITED.search(gold):
            gold = rf"\boxed{{{gold}}}"
        expected = library.parse(gold, parsing_timeout=limit)
        if not expected:
            return None
        return float(library.verify(expected, library.parse(said, parsing_timeout=limit), timeout_seconds=limit))

    return _each(judge, completions, answer)


def exact_answer(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the whole completion is the answer, but for case, white space and punctuation around it, else 0."""
    return _each(lambda said, right: float(normalised(said) == normalised(right)), completions, answer)


def last_number(
    completions: Sequence[Text], answer: Sequence[Any], *, signed: bool = True, **_: Any
) -> list[float | None]:
    """1 where the last number of the completion is the answer **as a string**, else 0: TULU 3's GSM8K verifier.

    Thousands separators are stripped from the completion, and a completion without a number is compared whole.
    Being a comparison of strings, "18.00" is not 18; and "costs $5 for 2 pens" says 2.

    Parameters
    ----------
    completions, answer
        As for any verifier.
    signed
        Whether "-3" is read with its sign. The release that TULU 3 was trained with reads a sign only before a number
        with a decimal point (False).

    References
    ----------
    Lambert et al., "TULU 3", arXiv 2411.15124, section 6; ``GSM8KVerifier`` of allenai/open-instruct.
    """
    return _each(lambda said, right: float(final_number(said, signed).lower() == right.lower()), completions, answer)


def choice_answer(
    completions: Sequence[Text], answer: Sequence[Any], choices: Sequence[Sequence[str]] | None = None, **_: Any
) -> list[float | None]:
    """1 where the completion chooses the right one of several choices, by its letter or its text, else 0.

    Parameters
    ----------
    completions
        What the model said. A letter counts inside of ``<answer>`` tags or a box, after "answer is" or "answer:", or
        at the beginning as in "B", "(B)" and "B."; else the only choice whose text occurs.
    answer
        A choice's text, its letter, or its number from 0 on.
    choices
        The choices of each row; without them only letters are understood.

    Raises
    ------
    InputError
        When an answer is none of its row's choices.
    """
    lists: Sequence[Sequence[str]] = [()] * len(completions) if choices is None else choices
    scores: list[float | None] = []
    for said, right, among in zip(completions, answer, lists, strict=True):
        if right is None:
            scores.append(None)
            continue
        scores.append(float(chosen(text_of(said), among) == _right_choice(right, among)))
    return scores


def answer_tag_accuracy(completions: Sequence[Text], answer: Sequence[Any], **_: Any) -> list[float | None]:
    """1 where the text in the first ``<answer>`` tag is the label, whatever its case, else 0.

    Without a tag on one line the whole completion counts; white space around is ignored. Labels may stand in tags too.

    References
    ----------
    Li et al., "CLS-RL", arXiv 2503.16188: accuracy reward, without the symbolic parser of the released code.
    """
    return _each(lambda said, right: float(_tagged(said).lower() == _tagged(right).lower()), completions, answer)


def think_answer_format(completions: Sequence[Text], **_: Any) -> list[float]:
    """1 where the whole completion is ``<think>...</think><answer>...</answer>``, else 0.

    White space may stand between the two, and anything inside them, line ends included.

    References
    ----------
    Li et al., "CLS-RL", arXiv 2503.16188: format reward.
    """
    return [float(_THINK_ANSWER.fullmatch(text_of(said)) is not None) for said in completions]


def equality(
    completions: Sequence[Text], answer: Sequence[Any], *, strict: bool = True, **_: Any
) -> list[float | None]:
    """1 where the raw completion equals the label, else 0: the reward of No-Thinking CLS-RL.

    Labels may stand in ``<answer>`` tags.

    Parameters
    ----------
    completions, answer
        As for any verifier.
    strict
        Case and white space count, as in the paper; a trailing line end then makes an answer wrong. Check the share of
        hits before training: if it is about 0, change the prompt.

    References
    ----------
    Li et al., "CLS-RL", arXiv 2503.16188: equality reward.
    """
    return _each(
        lambda said, right: float(said == _tagged(right) if strict else normalised(said) == normalised(_tagged(right))),
        completions,
        answer,
    )


def normalised(text: str) -> str:
    """A text without case, with single spaces, and without punctuation or quotes around it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(folded.split()).strip(" .,:;!?\"'`*")


def final_number(text: str, signed: bool = True) -> str:
    """The last number of a text as it is written, without thousands separators; the whole text where there is none."""
    found = (_SIGNED if signed else _RELEASED).findall(re.sub(r"(\d),(\d)", r"\1\2", text))
    return str(found[-1]) if found else text


def chosen(text: str, choices: Sequence[str] = ()) -> int | None:
    """The number of the choice that a text makes, or None.

    Parameters
    ----------
    text
        What the model said.
    choices
        The texts of the choices; without them only letters count, A to J.
    """
    tag = re.search(r"<answer>(.*?)</answer>", text, re.DOTALL)
    box = re.findall(r"\\boxed\{(?:\\text\{)?([^{}]*)\}", text)
    span = (tag[1] if tag else box[-1] if box else text).strip()
    letters = _LETTERS[: len(choices) or _UNNAMED_CHOICES]
    said = re.findall(rf"(?i:\banswer\b)\W*(?:(?i:is)\b\W*)?([{letters}])(?![\w'])", span)
    begins = re.match(rf"\(?([{letters}])(?:[).:]|\s*$)", span)
    if begins or said:
        return letters.index(begins[1] if begins else said[-1])
    plain = [normalised(choice) for choice in choices]
    if normalised(span) in plain:
        return plain.index(normalised(span))
    mentioned = [
        number
        for number, choice in enumerate(plain)
        if re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", span.casefold())
    ]
    return mentioned[0] if len(mentioned) == 1 else None


def _right_choice(answer: Any, choices: Sequence[str]) -> int:
    plain = [normalised(choice) for choice in choices]
    if isinstance(answer, str):
        if normalised(answer) in plain:
            return plain.index(normalised(answer))
        letter = answer.strip().strip("().").upper()
        if len(letter) == 1 and letter in _LETTERS[: len(choices) or len(_LETTERS)]:
            return _LETTERS.index(letter)
    elif 0 <= int(answer) < (len(choices) or len(_LETTERS)):
        return int(answer)
    among = ", ".join(map(repr, choices)) or "A, B, C ..."
    raise InputError(f"the answer {answer!r} is none of the choices {among}: give a letter, a number from 0, or a text")


def _tagged(text: str) -> str:
    # The released code's pattern does not cross line ends here, unlike that of the format.
    found = _ANSWER_LINE.search(text)
    return (found[1] if found else text).strip()


def _each(judge: Any, completions: Sequence[Text], answer: Sequence[Any]) -> list[float | None]:
    """Judges pairs of texts; a row without an answer is not judged."""
    return [
        None if right is None else judge(text_of(said), str(right))
        for said, right in zip(completions, answer, strict=True)
    ]
