"""FLAP loses less than other ways of cutting heads and neurons, and its bias and adaptive structure are why."""

from __future__ import annotations

from functools import partial

from thrifty.claims.harness import Claim, Condition
from thrifty.shrink.base import Shrinker
from thrifty.shrink.baselines import CutUnits
from thrifty.shrink.flap import FLAP
from thrifty.shrink.tasks import METRICS, arms_of, for_claim

_METHODS: dict[str, Shrinker] = {
    "flap": FLAP(),
    "flap ul-um": FLAP(structure="ul-um"),
    "flap without bias": FLAP(compensate=False),
    "wanda-sp": CutUnits(by="wanda"),
    "magnitude-sp": CutUnits(by="magnitude"),
    "random": CutUnits(by="random"),
}

CLAIM = Claim(
    paper_id="flap",
    says=(
        "Cutting the heads and neurons that fluctuate least, with a budget over all layers and a bias for what they "
        "gave on average, costs less perplexity than cutting by Wanda's or the magnitude criterion, without training."
    ),
    setting=(
        "SmolLM2-135M-Instruct in bfloat16 where the machine is fast at it, without 20% of the weights of its layers; "
        "calibrated on 32 windows of 256 tokens of news articles (others for each seed), perplexity on 24 windows of "
        "other articles. No arm has a setting that was chosen."
    ),
    prepare=partial(for_claim, sparsity=0.2),
    arms=arms_of(_METHODS),
    metrics=tuple(name for name in METRICS if name != "accuracy"),
    conditions=[
        Condition("perplexity", "flap", "wanda-sp", less=True),
        Condition("perplexity", "flap", "magnitude-sp", less=True),
        Condition("perplexity", "flap", "random", less=True),
        Condition("perplexity", "flap", "flap without bias", less=True),
        Condition("perplexity", "flap", "flap ul-um", less=True),
    ],
)
