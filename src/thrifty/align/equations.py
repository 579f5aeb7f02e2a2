"""A rule in the place of a process reward model: it checks the sums that the steps of an answer write out."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from thrifty.align.log import INSTRUCTION
from thrifty.reward.base import Text, text_of
from thrifty.reward.steps import BLANK_LINE, StepRewards, split_text, split_tokens

_EQUATION = re.compile(r"(-?\d+)\s*([-+*x\u2212\u00d7])\s*(-?\d+)\s*=\s*(-?\d+)")
_OPERATIONS = {
    "+": operator.add,
    "-": operator.sub,
    "\u2212": operator.sub,  # the minus sign, beside the hyphen
    "*": operator.mul,
    "x": operator.mul,
    "\u00d7": operator.mul,
}
STEPWISE = " Think step by step, with a blank line after each step, and give the answer in the last one."


def ask_for_steps(prompt: str) -> str:
    """A problem's text with the wish for steps, in the place of the one for a short answer."""
    return prompt.removesuffix(INSTRUCTION) + STEPWISE


@dataclass(frozen=True)
class EquationSteps:
    """Scores a step by the equations in it, as a process reward model would.

    Parameters
    ----------
    separator
        What ends a step.
    good
        Score of a step all of whose equations hold.
    wrong
        Score of a step with one that does not.
    filler
        Score of a step without equations.
    """

    separator: str = BLANK_LINE
    good: float = 0.8
    wrong: float = -0.8
    filler: float = 0.0

    def score(self, step: str) -> float:
        """The score of one step."""
        found = _EQUATION.findall(step.replace(",", ""))
        if not found:
            return self.filler
        hold = all(_OPERATIONS[sign](int(a), int(b)) == int(c) for a, sign, b, c in found if len(a + b + c) < 1000)
        return self.good if hold else self.wrong

    def steps(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        tokenizer: Any = None,
        truncated: Sequence[bool] | None = None,
    ) -> StepRewards:
        """See :meth:`thrifty.reward.models.ProcessModel.steps`."""
        del prompts
        if completion_ids is None:
            texts = [split_text(text_of(said), self.separator) for said in completions]
            return StepRewards.from_lists([[self.score(step) for step in row] for row in texts], truncated=truncated)
        split = split_tokens(completion_ids, tokenizer, self.separator)
        scores = [[self.score(step) for step in steps.texts] for steps in split]
        return StepRewards.from_lists(scores, [steps.ends for steps in split], truncated)
