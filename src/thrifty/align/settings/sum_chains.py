"""Chains of sums on token ids: what a right answer is, a rule that scores steps, and a verifier of final answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from thrifty.core.seeding import generator
from thrifty.reward.base import Text
from thrifty.reward.steps import StepRewards

EQUALS, SEPARATOR, ANSWER, END = range(4)
BASE = 5
"""Sums are taken modulo this."""
TERMS = 4
"""Digits to add, and running sums to say."""
FIRST_TERM, FIRST_SUM = END + 1, END + 1 + BASE * (TERMS + 1)  # where the tokens of terms and of sums begin
VOCABULARY = END + 1 + 2 * BASE * (TERMS + 1)
MOST_STEPS = 12
LONGEST = 2 * MOST_STEPS
"""Tokens of the longest answer."""


@dataclass(frozen=True)
class StepScores:
    """What the rule gives steps.

    Parameters
    ----------
    good, wrong, filler
        The next running sum, as long as all were right; a mistake, and what follows from it; the last sum again.
    solved, unsolved
        The last step, which gives the answer.
    noise
        Standard deviation of what is added to each.
    """

    good: float = 0.8
    wrong: float = -0.8
    filler: float = 0.25
    solved: float = 0.9
    unsolved: float = -0.8
    noise: float = 0.05


class Rule:
    """A process reward model made of rules, on token ids.

    Parameters
    ----------
    scores
        What steps get.
    seed
        Of the noise.
    """

    def __init__(self, scores: StepScores, seed: int) -> None:
        self.scores, self.draw = scores, generator(seed, "noise of the rule")

    def steps(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        tokenizer: Any = None,
        truncated: Sequence[bool] | None = None,
    ) -> StepRewards:
        """See :class:`thrifty.align.process_worth.StepScorer`."""
        del completions, tokenizer
        assert completion_ids is not None
        found = [self._one(prompt, ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]
        steps = StepRewards.from_lists([scores for scores, _ in found], [ends for _, ends in found], truncated)
        noise = self.scores.noise * torch.randn(steps.score.shape, generator=self.draw)
        return replace(steps, score=torch.where(steps.step_mask, steps.score + noise, 0.0))

    def _one(self, prompt: Any, ids: Sequence[int]) -> tuple[list[float], list[int]]:
        sums, done, scores = running_sums(prompt), 0, self.scores
        ends, right = step_ends(ids), True
        before: list[int] = []
        found: list[float] = []
        for start, end in zip([0, *(end + 1 for end in ends)], ends, strict=False):
            said = [token for token in ids[start : end + 1] if token not in (SEPARATOR, END)]
            if said[:1] == [ANSWER]:
                found.append(scores.solved if is_right(prompt, ids) else scores.unsolved)
            elif done and said == before:
                found.append(scores.filler)
            else:
                right, before = right and said == sums[done : done + 1], said
                found.append(scores.good if right else scores.wrong)
                done += 1
        return found, ends


def step_ends(ids: Sequence[int]) -> list[int]:
    """The index of the last token of each step: its separator, and the answer's last token."""
    ends = [index for index, token in enumerate(ids) if token == SEPARATOR]
    return ends if ends and ends[-1] == len(ids) - 1 else [*ends, len(ids) - 1]


def prompt_of(digits: Sequence[int]) -> list[int]:
    """A prompt: the tokens of its digits, and the one that asks."""
    return [*(FIRST_TERM + BASE * place + digit for place, digit in enumerate(digits)), EQUALS]


def running_sums(prompt: Sequence[int]) -> list[int]:
    """The tokens of the right steps to a prompt."""
    digits = [(token - FIRST_TERM) % BASE for token in prompt[:-1]]
    return [FIRST_SUM + BASE * place + sum(digits[: place + 1]) % BASE for place in range(1, len(digits))]


def is_right(prompt: Sequence[int], ids: Sequence[int]) -> bool:
    """Whether an answer ends with the right sum."""
    return list(ids[-3:]) == [ANSWER, running_sums(prompt)[-1], END]


def verify(prompts: Sequence[Any], completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """1 for answers that end with the right sum, 0 for others: the verifier."""
    return [float(is_right(prompt, ids)) for prompt, ids in zip(prompts, completion_ids, strict=True)]
