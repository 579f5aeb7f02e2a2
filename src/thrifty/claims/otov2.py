"""OTOv2 trains once to the accuracy of the full network, with half of the groups gone and the same outputs."""

from __future__ import annotations

from functools import partial

from thrifty.claims.harness import Claim, Condition
from thrifty.shrink.group_baselines import CutThenTune, Dense, GroupLasso
from thrifty.shrink.otov2 import OTOv2
from thrifty.shrink.picture_problem import EXACT_METRICS, best_of, from_scratch
from thrifty.shrink.train_once import TrainOnce

# Two settings for each arm, chosen between on held-out pictures by the same rule (see best_of).
_CANDIDATES: dict[str, list[TrainOnce]] = {
    "otov2": [OTOv2(), OTOv2(epsilon=0.9)],
    "magnitude, fine-tuned": [CutThenTune(at=0.3), CutThenTune(at=0.6)],
    "group lasso, fine-tuned": [GroupLasso(at=0.6, penalty=1e-3), GroupLasso(at=0.6, penalty=1e-2)],
    "magnitude at the end": [CutThenTune(at=1.0), CutThenTune(at=1.0, uniform=False)],
    "full": [Dense(), Dense(learning_rate=0.05)],
}

CLAIM = Claim(
    paper_id="otov2",
    says=(
        "Training once with half-space projections brings the wanted share of channel groups to exactly zero, reaches "
        "the accuracy of the full network without fine-tuning, and the smaller network computes the same; pruning by "
        "magnitude does not keep it."
    ),
    setting=(
        "A residual network (8, 16, 32 channels) on 1,200 of the 8x8 digits from new weights (pictures and weights "
        "others for each seed), 10 epochs of SGD, without half of the groups of channels. All arms have the same steps "
        "and learning rates, and choose one of two settings on 230 held-out pictures; accuracy is on 360 others. "
        "Magnitude is compared within layers, or over all layers where that is better. The penalty is scaled to the "
        "length of the training, since the authors' is for trainings a hundred times as long."
    ),
    prepare=partial(from_scratch, sparsity=0.5),
    arms={name: partial(best_of, candidates) for name, candidates in _CANDIDATES.items()},
    metrics=EXACT_METRICS,
    conditions=[
        Condition("accuracy", "otov2", "full", margin=-0.03),
        Condition("accuracy", "otov2", "magnitude, fine-tuned", margin=-0.01),
        Condition("accuracy", "otov2", "magnitude at the end", margin=0.05),
        Condition("zero_groups", "otov2", 0.499),
        Condition("removed", "otov2", 0.5),
        Condition("output_difference", "otov2", 1e-5, less=True),
    ],
)
