"""DSnoT's swaps lower the perplexity of masks by magnitude, Wanda and SparseGPT at the same sparsity."""

from __future__ import annotations

from functools import partial

from thrifty.claims.harness import Claim, Condition
from thrifty.shrink.base import Shrinker
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.tasks import METRICS, arms_of, for_claim

_METHODS: dict[str, Shrinker] = {
    "dsnot wanda": DSnoT(),
    "wanda": DSnoT(max_cycles=0),
    "dsnot magnitude": DSnoT(initial="magnitude"),
    "magnitude": DSnoT(initial="magnitude", max_cycles=0),
    "dsnot sparsegpt": DSnoT(initial="sparsegpt"),
    "sparsegpt mask": DSnoT(initial="sparsegpt", max_cycles=0),
    "dsnot wanda, falling": DSnoT(accept="falling"),
}

CLAIM = Claim(
    paper_id="dsnot",
    says=(
        "Swapping pruned and kept weights until each output's expected error is small lowers the perplexity of a "
        "pruned language model, whichever criterion pruned it, at the same sparsity and without training."
    ),
    setting=(
        "SmolLM2-135M-Instruct in bfloat16 where the machine is fast at it, without 60% of the weights of each output "
        "row of its layers; calibrated on 32 windows of 256 tokens of news articles (others for each seed), perplexity "
        "on 24 windows of other articles. Each initial mask stands beside the same mask refined, at default settings; "
        "the arm with falling errors takes only swaps that make an error smaller. The SparseGPT mask comes without its "
        "change of weights."
    ),
    prepare=partial(for_claim, sparsity=0.6),
    arms=arms_of(_METHODS),
    metrics=tuple(name for name in METRICS if name != "accuracy"),
    tried=(
        "One seed, 8 windows, perplexity on text apart from the final one: the mask by magnitude went from 3,214 "
        "to 789, the one by Wanda from 201 to 345. The latter came to 213 when only swaps count that make an error "
        "smaller, or that keep its sign, and to 267 with the attention's maps alone (the released default). Fifty "
        "swaps are 9% of a row of 576 weights and 1% of the paper's rows; fewer were not tried."
    ),
    conditions=[
        Condition("perplexity", "dsnot wanda", "wanda", less=True),
        Condition("perplexity", "dsnot magnitude", "magnitude", less=True),
        Condition("perplexity", "dsnot sparsegpt", "sparsegpt mask", less=True),
    ],
)
