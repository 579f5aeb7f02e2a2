"""TOPR learns from right and wrong answers of an older policy without the collapse of naive REINFORCE."""

from __future__ import annotations

from functools import partial

from thrifty.align.grpo import ppo_clip
from thrifty.align.settings.addition import measure, prepare
from thrifty.align.sft import SFT, naive_reinforce, truncated_importance_sampling
from thrifty.align.topr import TOPR
from thrifty.claims.harness import Claim, Condition

CLAIM = Claim(
    paper_id="topr",
    says=(
        "Trained for many steps on an older policy's right and wrong answers, TOPR improves where naive REINFORCE "
        "collapses, PPO barely moves and truncated importance sampling lags, and it leaves fewer invalid answers"
    ),
    setting=(
        "A two-layer decoder trained here on sums with a third of junk endings; 16 of its answers to each of 240 sums, "
        "scored +1/-1; 8 epochs of batches of 128 for every arm, each at the best of three learning rates on 60 "
        "validation sums; tested on 100 others, 16 answers each at temperature 1"
    ),
    prepare=prepare,
    arms={
        "topr": partial(measure, TOPR),
        "right answers only": partial(measure, SFT),
        "naive REINFORCE": partial(measure, naive_reinforce),
        "PPO": partial(measure, ppo_clip),
        "truncated importance sampling": partial(measure, truncated_importance_sampling),
        "untrained": partial(measure, None),
    },
    metrics=("accuracy", "-invalid answers"),
    conditions=(
        Condition("accuracy", "topr", "naive REINFORCE"),
        Condition("accuracy", "topr", "PPO"),
        Condition("accuracy", "topr", "truncated importance sampling"),
        Condition("accuracy", "topr", "untrained"),
        Condition("invalid answers", "topr", "untrained", less=True),
        Condition("invalid answers", "topr", "PPO", less=True),
    ),
    seeds=5,
    tried=(
        "Training on the right answers only is ahead of TOPR at this scale, where right answers are short and alike; "
        "the paper's gain over it is shown here as an arm and is no condition."
    ),
)
