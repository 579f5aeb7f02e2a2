"""TOPR learns from wrong answers as well as right ones without the collapse of naive off-policy REINFORCE."""

from __future__ import annotations

from thrifty.align.arithmetic import LEARNING_RATES, POSITIVE_FRACTION, default_topr, measure, prepare
from thrifty.align.sft import SFT, naive_reinforce, truncated_importance_sampling
from thrifty.claims.harness import Claim, Condition

CLAIM = Claim(
    paper_id="topr",
    says=(
        "Trained on an older policy's right and wrong answers, TOPR stays stable where naive REINFORCE collapses, and "
        "leaves fewer invalid answers than training on right answers only"
    ),
    setting=(
        "SmolLM2-135M-Instruct, 1,000 of its own answers to arithmetic word problems scored +1/-1, 20 steps of 16 "
        f"answers for every arm; TOPR at {POSITIVE_FRACTION:.0%} positive push; 150 held-out problems, two answers "
        "each at temperature 1"
    ),
    prepare=prepare,
    arms={
        "topr": lambda setting: measure(default_topr(), setting, LEARNING_RATES["TOPR"]),
        "supervised on right answers": lambda setting: measure(SFT(), setting, LEARNING_RATES["SFT"]),
        "naive REINFORCE": lambda setting: measure(naive_reinforce(), setting, LEARNING_RATES["TOPR"]),
        "truncated importance sampling": lambda setting: measure(
            truncated_importance_sampling(), setting, LEARNING_RATES["TOPR"]
        ),
        "untrained": lambda setting: measure(None, setting),
    },
    metrics=("accuracy", "-invalid answers", "-training seconds"),
    conditions=(
        Condition("accuracy", "topr", "naive REINFORCE"),
        Condition("accuracy", "topr", "untrained"),
        Condition("invalid answers", "topr", "supervised on right answers", less=True),
    ),
)
