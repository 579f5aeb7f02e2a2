"""A run on the prompts that LIMR selects matches one on the full pool, and beats one on as many random prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from thrifty.claims.harness import Claim, Condition
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.select.base import best_first
from thrifty.select.limr import LIMR
from thrifty.select.policy import Policy, greedy_accuracy, sampled_accuracy
from thrifty.select.pool import Mix, Pool, drawn_mix, elicitation_pool, learning_pool, record_history, trained
from thrifty.select.rank import linear_scores, std_scores

# For every arm the same fifteen settings, chosen by greedy accuracy on validation prompts.
_RATES, _KL = (0.01, 0.03, 0.1, 0.3, 1.0), (0.0, 0.1, 0.3)
_UPDATES, _BATCH = 150, 16


@dataclass(frozen=True, eq=False)
class Problem:
    """For each of the two pools, its prompts and which of them each way of selecting takes."""

    seed: int
    quick: bool
    pools: Mapping[str, Pool]
    chosen: Mapping[str, Mapping[str, Int[Tensor, " M"]]]


def prepare(seed: int, quick: bool, directory: Path) -> Problem:
    """The pools, the history of a run on each, and what is selected by it."""
    del directory
    makers: Mapping[str, Callable[[int, Mix], Pool]] = {"elicitation": elicitation_pool, "learning": learning_pool}
    with one_thread():
        pools = {name: make(seed, drawn_mix(seed)) for name, make in makers.items()}
        chosen = {name: _selections(pool, seed) for name, pool in pools.items()}
    return Problem(seed, quick, pools, chosen)


def _selections(pool: Pool, seed: int) -> dict[str, Int[Tensor, " M"]]:
    history = record_history(pool, seed)
    _, accuracy, observed = history.matrix()
    selected = LIMR().select(history)
    all_of_them = torch.ones(len(accuracy), dtype=torch.bool)
    size = len(selected)
    return {
        "limr": selected,
        "variance": best_first(std_scores(accuracy, observed), all_of_them)[:size],
        "linear": best_first(linear_scores(accuracy, observed), all_of_them)[:size],
        "random": torch.randperm(len(accuracy), generator=generator(seed, "random prompts"))[:size],
        "full pool": torch.arange(len(accuracy)),
    }


def _retrained(pool: Pool, rows: Int[Tensor, " M"], seed: int, quick: bool) -> Policy:
    settings = [(0.1, 0.0), (0.1, 0.1)] if quick else [(rate, kl) for rate in _RATES for kl in _KL]
    policies = [
        trained(pool, rows, seed, updates=_UPDATES, batch_size=_BATCH, learning_rate=rate, kl=kl)
        for rate, kl in settings
    ]
    return max(policies, key=lambda policy: greedy_accuracy(policy, pool.validation))


def _measure(selection: str, problem: Problem) -> dict[str, float]:
    with one_thread():
        policies = {
            name: _retrained(pool, problem.chosen[name][selection], problem.seed, problem.quick)
            for name, pool in problem.pools.items()
        }
    rows = problem.chosen["elicitation"][selection].tolist()
    kinds = [problem.pools["elicitation"].kinds[row] for row in rows]
    return _scores(problem, policies) | {
        "prompts": len(rows),
        "share mislabelled": kinds.count("mislabelled") / len(rows),
        "share trivial": kinds.count("trivial") / len(rows),
    }


def _base(problem: Problem) -> dict[str, float]:
    return _scores(problem, {name: pool.base for name, pool in problem.pools.items()})


def _scores(problem: Problem, policies: Mapping[str, Policy]) -> dict[str, float]:
    test = {name: pool.test for name, pool in problem.pools.items()}
    return {
        "accuracy": greedy_accuracy(policies["elicitation"], test["elicitation"]),
        "sampled accuracy": sampled_accuracy(policies["elicitation"], test["elicitation"]),
        "accuracy when learning": greedy_accuracy(policies["learning"], test["learning"]),
    }


_SELECTIONS = ("limr", "full pool", "random", "linear", "variance")

CLAIM = Claim(
    paper_id="limr",
    says=(
        "Retrained on the prompts whose accuracy followed the average curve of an earlier run, a policy does as well "
        "as on the full pool or better, and better than on as many random prompts."
    ),
    setting=(
        "A linear policy that knows the answers to 24-dimensional prompts, but gives most in a form that is not "
        "checked; a pool of 400 prompts, of which each seed draws how many are mostly solved at the start (60 to 160) "
        "and how many have wrong reference answers (60 to 160). A run of 20 epochs gives the history; LIMR selects at "
        "the paper's threshold of 0.6, the others as many. Each arm retrains the base policy by 150 updates on 16 "
        "prompts with 8 samples, at the best of fifteen pairs of learning rate and KL coefficient on 1,000 validation "
        "prompts; greedy accuracy on 2,000 others. 'Accuracy when learning' is the same where the base policy must "
        "learn the answers themselves."
    ),
    prepare=prepare,
    arms={name: partial(_measure, name) for name in _SELECTIONS} | {"base": _base},
    metrics=(
        "accuracy",
        "sampled accuracy",
        "accuracy when learning",
        "prompts",
        "-share mislabelled",
        "-share trivial",
    ),
    conditions=(
        Condition("accuracy", "limr", "random"),
        Condition("accuracy", "limr", "full pool", margin=-0.01),
    ),
    seeds=10,
    tried=(
        "Whether LIMR keeps up with the full pool depends on the pool and on the threshold: about thirty settings of "
        "features, divergence, batch and mix were looked at, and in some the full pool is ahead, in others LIMR. So "
        "the mix is drawn by the seed, not chosen. With six seeds of one mix each, greedy "
        "accuracy of LIMR, full pool and random prompts was .874, .889, .808 with the top 100 prompts instead of the "
        "threshold; .910, .935, .914 with 60 solved, 280 learnable and 60 mislabelled prompts; .849, .859, .762 with "
        "160, 80 and 160; and .930, .947, .934 where the right form hangs on a strong feature that all prompts share. "
        "Where the policy must learn the answers themselves, the full pool is far ahead (a metric here, no condition). "
        "Historical variance and the slope of a line do as well as LIMR's score or better; the paper's lead over its "
        "own LINEAR baseline, whose formula is not published, is no condition."
    ),
)
