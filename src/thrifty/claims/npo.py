"""NPO forgets authors without the collapse that gradient ascent ends in, and keeps more for as much forgetting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from thrifty.claims.harness import Claim, Condition
from thrifty.core.threads import one_thread
from thrifty.forget.author_problem import SMALL, AuthorProblem, author_problem, choose, trade_off, unlearned
from thrifty.forget.npo import NPO

_RATES = (1e-4, 2e-4, 4e-4, 1e-3, 2e-3)
_LATE = 3  # times as long
_BASE = NPO(beta=0.5, batch_size=8, micro_batch_size=8)


def _prepare(seed: int, quick: bool, directory: Path) -> AuthorProblem:
    few = replace(SMALL, forget=3, retain=9, schedule=replace(SMALL.schedule, epochs=30))
    return author_problem(few if quick else SMALL, seed, directory)


def _arm(**settings: Any) -> Callable[[AuthorProblem], Mapping[str, float]]:
    @one_thread()
    def run(problem: AuthorProblem) -> Mapping[str, float]:
        candidates = [replace(_BASE, learning_rate=rate, **settings) for rate in _RATES]
        method, model = choose(candidates, problem)
        assert isinstance(method, NPO)
        assert method.learning_rate is not None
        longer = unlearned(replace(method, epochs=_LATE * method.epochs), problem)
        return _scores(problem, model, longer) | {"learning_rate": method.learning_rate}

    return run


def _scores(problem: AuthorProblem, model: Any, longer: Any) -> dict[str, float]:
    marks = problem.marks(model)
    late = float(problem.judged.losses(longer, "retain")[:, 0].mean())
    return {"trade_off": trade_off(marks), "late_retain_loss": late, **marks}


CLAIM = Claim(
    paper_id="npo",
    says=(
        "Negative preference optimization forgets without the collapse of gradient ascent, which it nears far more "
        "slowly; with a retain term it trades forgetting against what is kept better than gradient ascent with one."
    ),
    setting=(
        "A two-layer decoder of words was taught 32 fictitious authors (six questions each, in two wordings) and 40 "
        "real facts, and forgets 8 of the authors: 10 epochs in batches of 8, AdamW. Of each arm one of five learning "
        "rates is chosen on half of the questions; the other half gives the scores. Beta is 0.5, since answers have 9 "
        "words where TOFU's have about 60 tokens, and the paper's 0.1 multiplies their sum. The trade-off is the "
        "harmonic mean of TOFU's model utility and 1 less the distance (Kolmogorov-Smirnov) of the truth ratios on the "
        "forgotten authors from those of a decoder that never saw them. Late: the same rate, three times as long; a "
        "loss of 2.3 more is tenfold perplexity."
    ),
    prepare=_prepare,
    arms={
        "npo": _arm(),
        "npo+rt": _arm(retain="grad-diff"),
        "npo+kl": _arm(retain="kl"),
        "ga": _arm(kind="ga"),
        "ga+rt": _arm(kind="ga", retain="grad-diff"),
        "ga+kl": _arm(kind="ga", retain="kl"),
        "dpo+rt": _arm(kind="dpo", retain="grad-diff"),
        "idk+rt": _arm(kind="idk", retain="grad-diff"),
        "retrain": lambda problem: _scores(problem, problem.retained, problem.retained),
        "original": lambda problem: _scores(problem, problem.model, problem.model),
    },
    metrics=("trade_off", "model_utility", "forget_quality", "-forget_probability", "-late_retain_loss"),
    conditions=[
        Condition("late_retain_loss", "npo", "ga", margin=2.3, less=True),
        Condition("trade_off", "npo+rt", "ga+rt"),
        Condition("trade_off", "npo+kl", "ga+kl"),
    ],
    seeds=4,
    tried=(
        "One of these seeds, looked at before: with the paper's beta of 0.1 the sums of answers a sixth as long as "
        "TOFU's have to fall so far before the push fades that NPO does as gradient ascent does; with beta 2 and a "
        "retain term it forgets too little."
    ),
)
