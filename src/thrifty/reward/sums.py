"""Embedded responses with step scores: sums of several numbers, and a rule that accepts repeated steps.

Made here from a seed, as the paper's failure in small: the rule finds nothing wrong with a step that says again what
was said before, so every such filler earns a score, and the sum of the scores grows with the number of steps.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from thrifty.data.records import Records

_STEP = re.compile(r"(-?\d+) \+ (-?\d+) = (-?\d+)\.")
_WRONG = 0.12  # share of steps with a slip
_FILLER = 0.3  # chance of one more repetition after each step
_NOISE = 0.04  # standard deviation of the rule's score


def sums(count: int = 400, seed: int = 0) -> Records:
    """Responses to multi-step sums, with ``prompt``, ``completion``, ``answer``, ``step_scores`` and ``correct``.

    Parameters
    ----------
    count
        How many.
    seed
        The same seed gives the same rows.
    """
    draw = np.random.default_rng(seed)
    return Records([_row(draw) for _ in range(count)], "sums")


def rule_scores(steps: list[str], draw: np.random.Generator) -> list[float]:
    """Scores in [0, 1]: about 0.9 for a step that calculates rightly, said before or not, and about 0.15 for a slip."""
    scores = []
    for step in steps:
        said = _STEP.search(step)
        right = said is not None and int(said[1]) + int(said[2]) == int(said[3])
        centre = 0.9 if right or said is None else 0.15
        scores.append(round(float(np.clip(centre + _NOISE * draw.standard_normal(), 0, 1)), 4))
    return scores


def _row(draw: np.random.Generator) -> dict[str, Any]:
    numbers = [int(n) for n in draw.integers(2, 60, int(draw.integers(3, 6)))]
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        said = total + number + (int(draw.integers(1, 10)) if draw.random() < _WRONG else 0)
        step = f"{total} + {number} = {said}."
        steps.append(step)
        while draw.random() < _FILLER:
            steps.append(f"So, as said, {step}")
        total = said
    steps.append(f"The answer is {total}.")
    answer = sum(numbers)
    return {
        "prompt": f"What is {' + '.join(map(str, numbers))}?",
        "completion": "\n\n".join(steps),
        "answer": str(answer),
        "step_scores": rule_scores(steps, draw),
        "correct": float(total == answer),
    }
