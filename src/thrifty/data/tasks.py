"""Problems whose answers can be checked: sums, small word problems, and the families of reasoning-gym."""

from __future__ import annotations

import functools
import hashlib
import itertools
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data.optional import need
from thrifty.data.word_problems import NAMES, PLAIN, THINGS, WORDS

Split = Literal["train", "test"]
Style = Literal["plain", "word", "mixed"]

_TEST_SHARE = 5  # one problem in five is for testing
_COUNTED = 200_000  # pools up to this size are enumerated, larger ones drawn from
_NUMBER = re.compile(
    r"(?:(?<![\w)\]])[-\u2212]\$?)?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![.\w])\.[0-9]+"
)
_FAMILY_SIZE = 10_000  # items per seed; some families refuse more than 20,000 or prepare them all at once
_MOST_DIGITS = 4000  # Python refuses to read longer integers


@dataclass(frozen=True)
class Problem:
    """A question with its right answer; ``id`` is the same in every run and names it within its task."""

    prompt: str
    answer: str
    id: str


class Task(Protocol):
    """A source of problems that can judge what is answered."""

    @property
    def name(self) -> str:
        """The name that :func:`task` knows it by."""
        ...

    def problems(self, n: int, seed: int, split: Split = "train") -> list[Problem]:
        """``n`` different problems, the same ones for the same seed; none is in both splits."""
        ...

    def score(self, problem: Problem, completion: str) -> float:
        """What the completion is worth as an answer, in [0, 1]."""
        ...


def parse_integer(text: str) -> int | None:
    """The last number in a text if it is a whole one, or None.

    Digits may be grouped by commas (1,234) and the value may end in zeros after the point (12.0). A minus belongs to
    the number unless a number or word stands directly before it (``7-5`` ends in 5, ``= -5`` in -5). A text without
    any number, or that ends in a fraction such as 3.5, has no integer answer: the completion is invalid.

    Parameters
    ----------
    text
        What a model wrote.
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    whole, _, fraction = re.sub(r"[,$]", "", found[-1]).replace("\u2212", "-").partition(".")
    if fraction.strip("0") or len(whole) > _MOST_DIGITS:
        return None
    return int(whole)


@dataclass(frozen=True)
class Arithmetic:
    """Sums of two numbers with a given number of digits, asked plainly or as small stories.

    Parameters
    ----------
    digits
        Digits of both numbers, 1 to 9; one digit means 1 … 9, in stories 2 … 9. Differences are never negative.
    operations
        Some of ``+``, ``-`` and ``*``.
    style
        ``plain`` ("What is 7 + 5?"), ``word`` ("Tom has 7 apples …") or ``mixed``.

    Raises
    ------
    InputError
        For other values.
    """

    digits: int = 1
    operations: tuple[str, ...] = ("+", "-")
    style: Style = "word"

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 9:
            raise InputError(f"digits is {self.digits}, expected 1 to 9")
        if not self.operations or not set(self.operations) <= set(PLAIN):
            raise InputError(f"operations is {self.operations}, expected some of {', '.join(PLAIN)}")
        if self.style not in get_args(Style):
            raise InputError(f"style is {self.style!r}: {nearest(self.style, get_args(Style))}")

    @property
    def name(self) -> str:
        """``arithmetic`` and, where it is not one, the number of digits."""
        return "arithmetic" if self.digits == 1 else f"arithmetic:{self.digits}"

    def problems(self, n: int, seed: int, split: Split = "train") -> list[Problem]:
        """``n`` different problems; operands and template together decide which split a problem is in.

        Raises
        ------
        InputError
            If there are fewer than ``n`` in the split.
        """
        _check_request(n, split)
        generator = np.random.default_rng(seed)
        chosen: dict[tuple[str, int, int, int], None] = {}
        for key in self._stream(generator):
            if len(chosen) == n:
                break
            if in_split(_label(key), split):
                chosen[key] = None
        if len(chosen) < n:
            raise InputError(
                f"{self.name} has {len(chosen)} {split} problems, {n} were asked for: ask for fewer or more digits"
            )
        return [_state(key) for key in chosen]

    def score(self, problem: Problem, completion: str) -> float:
        """1 if the last integer of the completion is the answer, else 0."""
        return float(parse_integer(completion) == int(problem.answer))

    def _stream(self, generator: np.random.Generator) -> Iterator[tuple[str, int, int, int]]:
        low, high = 10 ** (self.digits - 1), 10**self.digits - 1
        kinds = [(operation, index) for operation in self.operations for index in self._templates(operation)]
        if len(kinds) * (high - low + 1) ** 2 <= _COUNTED:
            numbers = range(low, high + 1)
            pool = [
                (operation, a, b, index)
                for (operation, index), a, b in itertools.product(kinds, numbers, numbers)
                if _sensible((operation, a, b, index))
            ]
            yield from (pool[at] for at in generator.permutation(len(pool)))
            return
        while True:
            operation, index = kinds[generator.integers(len(kinds))]
            a, b = (int(number) for number in generator.integers(low, high + 1, size=2))
            key = (operation, a, b, index)
            if _sensible(key):
                yield key

    def _templates(self, operation: str) -> range:
        plain, words = len(PLAIN[operation]), len(WORDS[operation])
        return range(0 if self.style != "word" else plain, plain if self.style == "plain" else plain + words)


def arithmetic(digits: int = 1, operations: tuple[str, ...] = ("+", "-"), style: Style = "word") -> Arithmetic:
    """Sums as a task; see :class:`Arithmetic`."""
    return Arithmetic(digits, tuple(operations), style)


@dataclass(frozen=True)
class ReasoningGym:
    """A family of procedural problems of the reasoning-gym library, judged by the family's own ``score_answer``.

    Parameters
    ----------
    family
        Such as ``gsm_symbolic``, ``chain_sum`` or ``leg_counting``.
    settings
        The family's own settings, as pairs of name and value.

    Raises
    ------
    InputError
        If the library is not installed or refuses the settings.
    NotFoundError
        If it has no such family.

    Notes
    -----
    A few families (plans and colourings, such as ``rush_hour``) have many right answers: their problems' ``answer`` is
    empty or only one of them, and ``score`` decides.

    References
    ----------
    REASONING GYM: Reasoning Environments for Reinforcement Learning with Verifiable Rewards, arXiv:2505.24760.
    """

    family: str
    settings: tuple[tuple[str, Hashable], ...] = ()

    def __post_init__(self) -> None:
        need("reasoning_gym", "lm", "reasoning-gym problems")
        from reasoning_gym.factory import DATASETS

        if self.family not in DATASETS:
            raise NotFoundError(f"reasoning-gym has no family {self.family!r}: {nearest(self.family, DATASETS)}")
        self._generator(0)

    @property
    def name(self) -> str:
        """``reasoning-gym:FAMILY``."""
        return f"reasoning-gym:{self.family}"

    def problems(self, n: int, seed: int, split: Split = "train") -> list[Problem]:
        """``n`` different problems; the question's text decides which split a problem is in.

        Raises
        ------
        InputError
            If the family does not yield that many different ones.
        """
        _check_request(n, split)
        generator = self._generator(seed)
        chosen: dict[str, Problem] = {}
        tries = min(_FAMILY_SIZE, 100 + 20 * n)
        for index in range(tries):
            if len(chosen) == n:
                break
            entry = generator[index]
            question = str(entry["question"]).strip()
            if question not in chosen and in_split(question, split):
                chosen[question] = Problem(question, str(entry["answer"] or ""), f"{self.family}:{seed}:{index}")
        if len(chosen) < n:
            raise InputError(
                f"{self.name} gave {len(chosen)} different {split} problems in {tries} tries, {n} were asked for"
            )
        return list(chosen.values())

    def score(self, problem: Problem, completion: str) -> float:
        """The family's score of the answer in ``<answer>`` tags, else of the last integer (where the right answer is
        one) or the last line."""
        from reasoning_gym.utils import extract_answer

        _, seed, index = problem.id.rsplit(":", 2)
        generator = self._generator(int(seed))
        answer = extract_answer(completion)
        if answer is None:
            number = parse_integer(completion)
            if re.fullmatch(r"-?[0-9]+", problem.answer):
                answer = "" if number is None else str(number)
            else:
                answer = (completion.strip().splitlines() or [""])[-1].strip()
        try:
            return float(generator.score_answer(answer, generator[int(index)]))
        except (ArithmeticError, AttributeError, LookupError, SyntaxError, TypeError, ValueError):
            return 0.0  # several families fail on an answer they can't parse instead of calling it wrong

    def _generator(self, seed: int) -> Any:
        return _reasoning_gym(self.family, self.settings, seed)


def reasoning(family: str, **settings: Hashable) -> ReasoningGym:
    """A family of reasoning-gym as a task, with the family's own settings; see :class:`ReasoningGym`."""
    return ReasoningGym(family, tuple(sorted(settings.items())))


@functools.lru_cache(maxsize=64)
def _reasoning_gym(family: str, settings: tuple[tuple[str, Hashable], ...], seed: int) -> Any:
    import reasoning_gym

    # The library seeds item i with seed + i, so neighbouring seeds would share nearly all of their items.
    spread = int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:4], "big")
    try:
        return reasoning_gym.create_dataset(family, seed=spread, size=_FAMILY_SIZE, **dict(settings))
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"reasoning-gym:{family} refuses {dict(settings)}: {error}") from error


def task(name: str) -> Task:
    """A task by its name.

    Parameters
    ----------
    name
        ``arithmetic``, ``arithmetic:DIGITS`` or ``reasoning-gym:FAMILY``.

    Raises
    ------
    NotFoundError
        If there is no such task.
    """
    kind, _, detail = name.partition(":")
    if kind == "arithmetic" and (detail.isdecimal() or detail == ""):
        return Arithmetic(int(detail or 1))
    if kind == "reasoning-gym" and detail:
        return ReasoningGym(detail)
    known = ["arithmetic", "arithmetic:DIGITS", "reasoning-gym:FAMILY"]
    raise NotFoundError(f"unknown task {name!r}: known: {', '.join(known)}")


def _check_request(n: int, split: str) -> None:
    if n < 1:
        raise InputError(f"{n} problems were asked for, expected at least 1")
    if split not in get_args(Split):
        raise InputError(f"split is {split!r}, expected train or test")


def in_split(text: str, split: str) -> bool:
    """Whether a problem belongs to a split, by a hash of what names it: one in five is for testing."""
    held_out = hashlib.sha256(text.encode()).digest()[0] % _TEST_SHARE == 0
    return held_out == (split == "test")


def _sensible(key: tuple[str, int, int, int]) -> bool:
    """Not below zero, and no story about one apples."""
    operation, a, b, index = key
    return (operation != "-" or a >= b) and (index < len(PLAIN[operation]) or min(a, b) > 1)


def _label(key: tuple[str, int, int, int]) -> str:
    operation, a, b, index = key
    return f"{a}{operation}{b}/{index}"


def _state(key: tuple[str, int, int, int]) -> Problem:
    """A problem's text; name and thing follow from its key, so that one key is one prompt."""
    operation, a, b, index = key
    template = (PLAIN[operation] + WORDS[operation])[index]
    bits = hashlib.sha256(_label(key).encode()).digest()
    name, other = NAMES[bits[1] % len(NAMES)], NAMES[(bits[1] + 1 + bits[2] % (len(NAMES) - 1)) % len(NAMES)]
    prompt = template.format(a=a, b=b, name=name, other=other, things=THINGS[bits[3] % len(THINGS)])
    answer = {"+": a + b, "-": a - b, "*": a * b}[operation]
    return Problem(prompt, str(answer), _label(key))
