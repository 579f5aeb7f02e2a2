"""Clipped step rewards let a process reward model be trained against, where the scores as they are get farmed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from thrifty.align.process_worth import ProcessWorth
from thrifty.align.settings.steps_task import Chains, measure, prepare, scored_answers, untrained
from thrifty.align.settings.sum_chains import LONGEST, Rule, StepScores, verify
from thrifty.align.step_returns import StepReturns
from thrifty.claims.harness import Claim, Condition
from thrifty.reward.reward_clip_delta import ClipDelta, Refinement

_ALPHA = 0.5
_PROBABILITIES = StepScores(good=0.9, wrong=0.1, filler=0.75, solved=0.95, unsolved=0.1, noise=0.03)
"""The rule's scores as probabilities of being right, as the paper's reward model gives them."""


def _arm(setting: Chains, *, method: Refinement | None) -> Mapping[str, float]:
    objective = StepReturns(process_coefficient=_ALPHA, longest=LONGEST, kl_reward_coefficient=0.0)
    if method is None:
        return measure(objective, lambda _: ProcessWorth(None, verify), setting)
    # The threshold of clipping is solved for from right answers of the decoder before training.
    refined = ClipDelta(method).fit(*scored_answers(setting, Rule(_PROBABILITIES, setting.seed)))

    def worth(_: Chains) -> ProcessWorth:
        return ProcessWorth(Rule(_PROBABILITIES, setting.seed), verify, refine=refined.shape)

    return measure(objective, worth, setting)


CLAIM = Claim(
    paper_id="reward-clip-delta",
    says=(
        "Added to the success reward as they are, step scores lengthen answers and lose accuracy; clipped, and clipped "
        "and differenced, they do at least as well as the success reward alone"
    ),
    setting=(
        "A two-layer decoder trained here on chains of four sums with 20% wrong steps and repeated ones (it solves a "
        "third); a rule gives right steps a probability of 0.9, wrong ones 0.1 and repeated ones 0.75, weighed by 0.5"
        " beside the success reward; the threshold leaves three quarters of the steps of right answers unclipped; "
        "step-level returns with leave-one-out baselines, 60 updates on 16 prompts with 8 answers of at most 12 "
        "steps, at the best of four learning rates on 64 validation prompts; no KL term; tested on 128 prompts, 8 "
        "answers each at temperature 1"
    ),
    prepare=prepare,
    arms={
        "success + clip-delta": partial(_arm, method="clip-delta"),
        "success + clip": partial(_arm, method="clip"),
        "success + delta": partial(_arm, method="delta"),
        "success + scores": partial(_arm, method="none"),
        "success": partial(_arm, method=None),
        "untrained": untrained,
    },
    metrics=("solve rate", "-steps", "-cut off"),
    conditions=(
        Condition("solve rate", "success + scores", "success", less=True),
        Condition("steps", "success + scores", "success"),
        Condition("solve rate", "success + clip", "success", margin=-0.02),
        Condition("solve rate", "success + clip-delta", "success", margin=-0.02),
    ),
    seeds=5,
    tried=(
        "With three seeds and two learning rates, of which every arm took the same side, clip-delta kept within 0.02 "
        "of the success reward by a hair: rates and seeds were added."
    ),
)
