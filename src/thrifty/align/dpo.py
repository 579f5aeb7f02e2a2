"""Training on preference pairs: the loss of :mod:`thrifty.align.preference` as an objective of the room.

The four slots: pairs are logged; worth is which of two is better; credit is the same for all tokens of an answer; the
loss is one of the named kinds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from thrifty.align.base import Objective, Training
from thrifty.align.nll import weighted_nll
from thrifty.align.preference import Kind, preference_kind, preference_loss
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class DPO(Objective):
    """Direct preference optimisation and its relatives, by ``kind``.

    Parameters
    ----------
    kind
        ``dpo``, ``dpo-norm``, ``ipo``, ``hinge``, ``nca`` (with a reference), ``tpo``, ``tpo-l``, ``tpo-hinge``,
        ``tpo-ipo``, ``simpo``, ``orpo`` (without): see :func:`thrifty.align.preference.preference_loss`.
    beta
        Inverse temperature of the preference; for ``orpo`` the weight of the odds ratio.
    gamma
        Margin in units of reward.
    label_smoothing
        Share of pairs taken to be labelled the wrong way round.
    nll_weight
        Weight of the chosen answers' negative log-likelihood (mean over tokens); ORPO's is 1.

    References
    ----------
    Rafailov et al., arXiv 2305.18290, equation 7.
    """

    training: ClassVar[Training] = Training(learning_rate=5e-7, batch_size=32, micro_batch_size=16)
    rows_per_example: ClassVar[int] = 2

    kind: Kind = "dpo"
    beta: float = 0.1
    gamma: float = 0.0
    label_smoothing: float = 0.0
    nll_weight: float = 0.0

    def __post_init__(self) -> None:
        preference_kind(self.kind)
        if not self.beta > 0:
            raise InputError(f"beta must be above 0, not {self.beta:g}")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f"label_smoothing must be in [0, 0.5), not {self.label_smoothing:g}")

    def needs(self) -> frozenset[str]:
        """The reference's log-probabilities, for the kinds that have one."""
        return frozenset({"reference_logps"} if preference_kind(self.kind).reference else ())

    def prepare(self, data: Sequences) -> Sequences:
        """Pairs as they are: rows chosen, rejected, chosen, ... as ``from_records`` makes them of preference records.

        Raises
        ------
        InputError
            When the sequences are no pairs.
        """
        check_places(data, self.rows_per_example)
        return data

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's pairs, with ``accuracy`` and ``margin`` of the implicit reward, and the mean
        log-probabilities of both answers."""
        logps = token_logps(model, batch)
        pairs = len(whole) // 2
        losses, metrics = pair_losses(
            logps,
            batch,
            kind=self.kind,
            beta=self.beta,
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
        )
        value = losses.sum() / pairs
        if self.nll_weight:
            total = whole.response_mask[0::2].sum().float()
            mask = batch.response_mask[0::2]
            value = value + self.nll_weight * weighted_nll(logps[0::2], mask, mask.float(), denominator=total)
        return Loss(value, metrics)


def pair_losses(
    logps: Float[Tensor, "R T"],
    batch: Sequences,
    *,
    kind: Kind,
    beta: float,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, " P"], dict[str, Tensor]]:
    """Each pair's loss, and what tells how it goes.

    Parameters
    ----------
    logps
        Under the policy; rows chosen, rejected, chosen, ...
    batch
        The sequences, with ``reference_logps`` where the kind has a reference.
    kind, beta, gamma, label_smoothing
        As for :func:`thrifty.align.preference.preference_loss`.
    """
    found = preference_kind(kind)
    total = sequence_logps(logps, batch.response_mask, found.reduction)
    chosen, rejected = total[0::2], total[1::2]
    reference: tuple[Tensor | None, Tensor | None] = (None, None)
    rewards = total.detach()
    if found.reference:
        before = sequence_logps(batch["reference_logps"], batch.response_mask, found.reduction)
        reference = (before[0::2], before[1::2])
        rewards = rewards - before
    losses = preference_loss(
        chosen, rejected, *reference, kind=kind, beta=beta, gamma=gamma, label_smoothing=label_smoothing
    )
    margin = beta * (rewards[0::2] - rewards[1::2])
    means = sequence_logps(logps.detach(), batch.response_mask, "mean")
    return losses, {
        "accuracy": (margin > 0).float().mean(),
        "margin": margin.mean(),
        "chosen_logp": means[0::2].mean(),
        "rejected_logp": means[1::2].mean(),
    }


def check_places(data: Sequences, rows: int) -> None:
    """Checks that sequences are complete examples of ``rows`` neighbouring rows each.

    Raises
    ------
    InputError
        When they are not: other data were given.
    """
    group = data.columns.get("group")
    whole = group is not None and len(data) % rows == 0 and bool((group.view(-1, rows) == group[::rows, None]).all())
    if not whole or "chosen" not in data.columns:
        what = {2: "pairs (prompt, chosen, rejected)", 3: "triples (prompt, reference, chosen, rejected)"}[rows]
        raise InputError(f"this method learns from {what}: give data with these columns")
