"""Rounds of best-of-K fine-tuning: more answers to choose from and more rounds give more reward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from thrifty.align.asking import Sampling
from thrifty.align.base import Training
from thrifty.align.grpo import GRPO
from thrifty.align.raft import RAFT
from thrifty.align.settings.base import best, cpu_run
from thrifty.align.settings.reviews import LONGEST, Reviews, polarity, prepare, scores
from thrifty.align.training import iterate, train
from thrifty.claims.harness import Claim, Condition
from thrifty.core.run import Run
from thrifty.core.threads import one_thread

ROUNDS, PROMPTS, MOST = 4, 64, 8
"""Rounds, prompts in each, and answers to each prompt: 2048 answers."""
BATCH, EPOCHS = 16, 4
"""Of the fine-tuning in each round: 16 steps, 64 in all."""
LEARNING_RATES = (3e-4, 1e-3, 3e-3)
"""Every arm picks one of these by the reward of fresh reviews."""

Train = Callable[[Any, Reviews, Run, float], Any]


def _rounds(samples: int, rounds: int, model: Any, setting: Reviews, run: Run, rate: float) -> Any:
    asked = PROMPTS * ROUNDS // rounds
    return iterate(
        model,
        None,
        RAFT(),
        setting.prompts,
        polarity,
        run,
        iterations=max(1, rounds // 2) if setting.quick else rounds,
        sampling=Sampling(samples=samples, prompts_per_rollout=asked, max_new_tokens=LONGEST),
        training=Training(learning_rate=rate, batch_size=BATCH, micro_batch_size=BATCH, epochs=EPOCHS),
    )


def _reinforce(model: Any, setting: Reviews, run: Run, rate: float) -> Any:
    method = GRPO(credit="leave-one-out", clip=None, aggregation="sequence")
    share = ROUNDS * PROMPTS / len(setting.prompts)
    training = Training(learning_rate=rate, micro_batch_size=4 * MOST, epochs=share / (2 if setting.quick else 1))
    sampling = Sampling(samples=MOST, prompts_per_rollout=4, max_new_tokens=LONGEST)
    return train(model, method, setting.prompts, run, training, reward=polarity, sampling=sampling, save_every=None)


@one_thread()
def _measure(name: str, work: Train | None, setting: Reviews) -> dict[str, float]:
    if work is None:
        return scores(setting.base, setting, "test")

    def learn(rate: float) -> Any:
        model = copy.deepcopy(setting.base)
        with cpu_run(setting.directory / f"{name}-{rate:g}", setting.seed) as run:
            work(model, setting, run, rate)
        return model

    _, model = best(LEARNING_RATES, learn, lambda model: scores(model, setting, "validation")["reward"])
    return scores(model, setting, "test")


_WORK: Mapping[str, Train | None] = {
    "raft": partial(_rounds, MOST, ROUNDS),
    "raft K=4": partial(_rounds, MOST // 2, ROUNDS),
    "own samples": partial(_rounds, 1, ROUNDS),
    "one round": partial(_rounds, MOST, 1),
    "REINFORCE": _reinforce,
    "untrained": None,
}

CLAIM = Claim(
    paper_id="raft",
    says=(
        "Fine-tuning on the best of K of one's own answers, round after round, raises the reward: more with K = 8 than "
        "with 4, where learning from unselected answers does not, and more than one round with as many answers"
    ),
    setting=(
        "A two-layer decoder trained here on reviews of mixed words; a lexicon scores what it writes from -1 to 1; 4 "
        "rounds of 64 prompts, K reviews of each, 16 steps on the best; one round: 256 prompts at once and 64 steps; "
        "own samples: K = 1; REINFORCE (leave-one-out): 64 steps on 8 reviews of 4 prompts each; every arm at the best "
        "of three learning rates by validation reviews; 600 fresh reviews at temperature 1; perplexity: of these, "
        "under the first decoder"
    ),
    prepare=prepare,
    arms={name: partial(_measure, name, work) for name, work in _WORK.items()},
    metrics=("reward", "distinct-2", "-perplexity"),
    conditions=(
        Condition("reward", "raft", "raft K=4"),
        Condition("reward", "raft K=4", "own samples"),
        Condition("reward", "raft", "one round"),
        Condition("reward", "own samples", "untrained", margin=-0.1, less=True),
        Condition("reward", "raft", "untrained", margin=0.1),
    ),
    seeds=5,
    tried=(
        "On sums, where the best of eight answers of the first policy is often the right one, one round of best-of-8 "
        "was as good as many, with right or wrong for a reward (two seeds: 0.26 against 0.22) and with closeness (0.72 "
        "against 0.70), and K = 4 as good as K = 8: nothing better is left for later rounds to find. With six rounds "
        "of reviews, K = 8 and K = 4 both reach the top of the scale (two seeds: 0.97 and 0.96)."
    ),
)
