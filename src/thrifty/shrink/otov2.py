"""OTOv2: trains any network once, brings whole channels to exactly zero meanwhile, and returns the network without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.shrink.dhspg import DHSPG, PENALTIES
from thrifty.shrink.directions import Variant
from thrifty.shrink.train_once import Plan, TrainOnce
from thrifty.shrink.zero_groups import GroupSet


@register("otov2")
@dataclass(frozen=True)
class OTOv2(TrainOnce):
    r"""Trains a model once and gives back a smaller one with the same outputs, without fine-tuning afterwards.

    .. math::
        \min_x f(x) \;\text{ with K zero groups};\qquad
        \hat x_g = x_g - \eta\, d_g - \eta\, \lambda_g \frac{x_g}{\lVert x_g \rVert}, \qquad
        x_g \leftarrow \begin{cases} 0 & \langle \hat x_g, x_g \rangle < \epsilon \lVert x_g \rVert^2 \\
        \hat x_g & \text{else} \end{cases}

    A group is one channel of everything that must lose it together, so that zeroing it is removing it
    (:mod:`thrifty.shrink.zero_groups`); the groups are found in the traced model. After ``start_epoch`` epochs of plain
    training the groups that are small, and that the step makes smaller, are penalised with :math:`\lambda_g` (adjusted
    for each so that the group shrinks and the loss falls, :func:`thrifty.shrink.dhspg.adjusted_penalty`), and projected
    onto zero where they leave the half-space. All others follow the direction d of SGD, Adam or AdamW. When the
    sparsity is met the rest of the training is plain.

    The optimizer alone is :class:`thrifty.shrink.dhspg.DHSPG`, for a training loop of your own. Operations that mix
    channels keep them whole (layer norm along its axis), and so does ``nn.MultiheadAttention``; a shared parameter that
    is bound anywhere is bound everywhere.

    Parameters
    ----------
    start_epoch
        Epochs before groups are chosen.
    tolerance
        Share of the groups that are penalised beyond ``sparsity``, so that some may stay.
    epsilon
        Of the half-space projection; at 0 hardly any group becomes zero.
    penalty
        The least :math:`\lambda`. By default the authors' 1e-3 for SGD and 1e-2 for Adam and AdamW, or more where the
        training is so short that these could not bring groups to zero, see :func:`penalty_in_time`.
    amplify
        What the least penalty that makes a group smaller is multiplied with; by default 2, or 20 for Adam and AdamW.
    largest
        The penalty is at most this many times ``penalty``; by default 10, or 1000 for Adam and AdamW.
    warm_up_epochs
        Epochs in which the penalty is not adjusted and nothing is projected.
    decay_norm
        ``l1``: AdamW's weight decay shortens a group by a fixed length instead of a share.
    surplus
        ``none`` stops at the sparsity exactly; ``released`` lets all groups go that qualify in a step.

    Raises
    ------
    InputError
        When a setting is out of range, the model has no channels that could be cut, or so many can't go.

    References
    ----------
    Chen et al., OTOv2: Automatic, Generic, User-Friendly, ICLR 2023, arXiv 2303.06862.
    """

    drops: int = 3
    start_epoch: float = 1.0
    tolerance: float = 0.05
    epsilon: float = 0.95
    penalty: float | None = None
    amplify: float | None = None
    largest: float | None = None
    warm_up_epochs: float = 0.0
    decay_norm: Literal["l1", "l2"] = "l2"
    surplus: Literal["none", "released"] = "none"

    def optimizer(self, groups: GroupSet, plan: Plan) -> DHSPG:
        """DHSPG with these settings.

        Parameters
        ----------
        groups
            Of the model.
        plan
            How long the training is.

        Raises
        ------
        InputError
            When pruning would begin after the training.
        """
        start = plan.of(self.start_epoch)
        if start >= plan.steps:
            raise InputError(
                f"pruning would begin after {self.start_epoch:g} epochs, and the training has {self.epochs:g}: "
                "train longer, or begin earlier"
            )
        return DHSPG(
            groups,
            self.learning_rate,
            self.direction,
            target=self.sparsity,
            tolerance=self.tolerance,
            start_step=start,
            epsilon=self.epsilon,
            penalty=self.penalty if self.penalty is not None else penalty_in_time(groups, plan, start, self.variant),
            amplify=self.amplify,
            largest=self.largest,
            divisible=self.divisible,
            warm_up_steps=plan.of(self.warm_up_epochs),
            decay_norm=self.decay_norm,
            surplus=self.surplus,
        )


def penalty_in_time(groups: GroupSet, plan: Plan, start: int, variant: Variant) -> float:
    r"""The least penalty with which a short training can bring groups to zero.

    A step shortens a group by :math:`\eta\lambda` and no more, if its direction does not. The authors' :math:`\lambda`
    is for trainings of a hundred thousand steps; here it is at least :math:`3\, m / \sum_t \eta_t` over the steps from
    ``start`` on, m the median norm of the groups, which are then on their way for a third of the learning.

    Parameters
    ----------
    groups
        Of the model, as the training begins.
    plan
        For the learning rates.
    start
        The step at which pruning begins.
    variant
        Of the direction, for the authors' value.
    """
    length = float(groups.squared_norms().sqrt().median())
    return max(PENALTIES[variant][0], 3 * length / max(sum(plan.rates[start:]), 1e-12))
