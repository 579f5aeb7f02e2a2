"""TOPR learns from right and wrong answers of an older policy without the collapse of naive REINFORCE."""

from __future__ import annotations

from thrifty.align.addition import Addition, measure, prepare
from thrifty.align.clip import PPOClip
from thrifty.align.sft import SFT, naive_reinforce, truncated_importance_sampling
from thrifty.align.topr import TOPR
from thrifty.claims.harness import Arm, Claim, Condition


def _arm(make: object) -> Arm:
    def run(setting: Addition) -> object:
        return measure(make, setting)  # type: ignore[arg-type]

    return run  # type: ignore[return-value]


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
        "topr": _arm(TOPR),
        "right answers only": _arm(SFT),
        "naive REINFORCE": _arm(naive_reinforce),
        "PPO": _arm(PPOClip),
        "truncated importance sampling": _arm(truncated_importance_sampling),
        "untrained": _arm(None),
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
)
