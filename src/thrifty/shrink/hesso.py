"""HESSO: trains any network once, and fades channels of low saliency to zero on schedule; with CRIC it looks first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.shrink.cric import HESSOCRIC
from thrifty.shrink.hesso_optimizer import HESSOOptimizer, SaliencySparse, Selection
from thrifty.shrink.saliency import EQUAL, CosineSign
from thrifty.shrink.train_once import Plan, TrainOnce
from thrifty.shrink.zero_groups import GroupSet

Criterion = Literal["all", "magnitude", "average_magnitude", "cosine", "taylor_first", "taylor_second", "random"]


@register("hesso")
@dataclass(frozen=True)
class HESSO(TrainOnce):
    r"""Trains a model once, with an exact number of channels gone when the schedule says, and nothing to tune.

    .. math::
        s_g = \sum_c 0.2\, \frac{s_c(x_g, d_g)}{\lVert s_c \rVert}, \qquad
        x_g \leftarrow (x_g - \eta d_g)\, \tfrac{D - t - 1}{D - t}

    The groups are those of OTOv2 (:mod:`thrifty.shrink.zero_groups`). In each of ``periods`` periods of D steps the
    groups with the lowest saliency s (:mod:`thrifty.shrink.saliency`: magnitude, its mean, the angle between weights
    and direction, two Taylor terms) fade evenly to zero at the step t = D - 1, while all groups are trained. With
    ``cric`` the groups are chosen once, after the corrective redundant identification cycle
    (:class:`thrifty.shrink.cric.HESSOCRIC`): removals are tried and undone, to find groups that look redundant but are
    not.

    The optimizers alone are :class:`thrifty.shrink.hesso_optimizer.HESSOOptimizer` and ``HESSOCRIC``, for a training
    loop of your own. A low-rank adapter and the frozen weight that it is added to are cut together when the groups are
    found with ``partition_groups(..., frozen=True)``; saliency is then that of the numbers themselves, not of the
    product of the adapter's factors.

    Parameters
    ----------
    start_epoch
        Epochs before the first period, or before the cycle.
    pruning_epochs
        Epochs that all periods take; with ``cric``, in which the chosen groups fade.
    periods
        How many periods; not with ``cric``.
    criterion
        ``all`` five saliency criteria at the same weight, or one of them; ``random`` for comparison.
    cosine_sign
        ``released``: weights that point along the direction count as important. ``first_order``: as redundant, which is
        what the loss says to first order; better where pruning begins far from a minimum.
    selection
        ``exact`` spares the best groups of each layer and meets the sparsity; ``released`` falls short of it.
    cric
        Look for indispensable groups first.
    sampling_steps
        Steps of one of CRIC's cycles.
    max_cycles
        CRIC's cycles at most; with 0 only the probe decides.
    tolerance
        CRIC's cycles end when no more groups than this are new.
    loss_weight
        What CRIC's probe counts beside the scores; without it (0) the probe is left out.
    released_cycle
        The order of things in the released CRIC, see :class:`thrifty.shrink.cric.HESSOCRIC`.

    Raises
    ------
    InputError
        When a setting is out of range, the model has no channels that could be cut, so many can't go, or the stages do
        not fit into the training.

    References
    ----------
    Chen et al., HESSO: Towards Automatic Efficient and User Friendly Any Neural Network Training and Pruning, 2024,
    arXiv 2409.09085.
    """

    start_epoch: float = 1.0
    pruning_epochs: float = 2.0
    periods: int = 5
    criterion: Criterion = "all"
    cosine_sign: CosineSign = "released"
    selection: Selection = "exact"
    cric: bool = False
    sampling_steps: int = 20
    max_cycles: int = 10
    tolerance: int = 0
    loss_weight: float = 1.0
    released_cycle: bool = False

    @property
    def criteria(self) -> Mapping[str, float]:
        """The weight of each saliency criterion."""
        return EQUAL if self.criterion == "all" else {self.criterion: 0.2}

    def optimizer(self, groups: GroupSet, plan: Plan) -> SaliencySparse:
        """HESSO's optimizer, or HESSO-CRIC's, with these settings.

        Parameters
        ----------
        groups
            Of the model.
        plan
            How long the training is.

        Raises
        ------
        InputError
            When the stages take more steps than there are.
        """
        start, pruning = plan.of(self.start_epoch), plan.of(self.pruning_epochs)
        shared = {
            "target": self.sparsity,
            "divisible": self.divisible,
            "criteria": self.criteria,
            "cosine_sign": self.cosine_sign,
            "selection": self.selection,
        }
        found: SaliencySparse
        if self.cric:
            found = cric = HESSOCRIC(
                groups,
                self.learning_rate,
                self.direction,
                start_step=max(start, 1),
                sampling_steps=self.sampling_steps,
                hybrid_steps=max(pruning, 1),
                max_cycles=self.max_cycles,
                tolerance=self.tolerance,
                loss_weight=self.loss_weight,
                released=self.released_cycle,
                **shared,
            )
            needed, named = start + cric.cycle_steps + pruning, f"{cric.cycle_steps} of CRIC among them"
        else:
            found = HESSOOptimizer(
                groups,
                self.learning_rate,
                self.direction,
                start_step=start,
                pruning_steps=max(pruning, 1),
                periods=min(self.periods, max(pruning, 1)),
                **shared,
            )
            needed, named = start + pruning, f"{self.periods} periods"
        if needed > plan.steps:
            raise InputError(
                f"pruning would end at step {needed} ({named}), and the training has {plan.steps}: train for at least "
                f"{needed / plan.per_epoch:.2g} epochs, or prune in fewer"
            )
        return found
