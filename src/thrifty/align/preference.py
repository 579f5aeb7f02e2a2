"""One loss on preference pairs, of which DPO and its relatives are named kinds.

Shapes: P pairs; ``chosen`` and ``rejected`` are log-probabilities of whole answers, sums or means over tokens as the
kind wants (:data:`KINDS` says which).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from thrifty.core.errors import InputError, nearest

Kind = Literal["dpo", "dpo-norm", "ipo", "hinge", "nca", "tpo", "tpo-l", "tpo-hinge", "tpo-ipo", "simpo", "orpo"]


@dataclass(frozen=True)
class PreferenceKind:
    """What a kind asks for.

    Parameters
    ----------
    reduction
        Whether answers' log-probabilities are sums over tokens or means.
    reference
        Whether it compares with a reference model.
    loss
        ``loss(chosen, rejected, beta, gamma, label_smoothing)``, each pair's; with a reference, ``chosen`` and
        ``rejected`` are log-ratios to it.
    """

    reduction: Literal["sum", "mean"]
    reference: bool
    loss: Callable[[Tensor, Tensor, float, float, float], Tensor]


def _sigmoid(chosen: Tensor, rejected: Tensor, beta: float, gamma: float, smoothing: float) -> Tensor:
    z = beta * (chosen - rejected) - gamma
    return -(1 - smoothing) * logsigmoid(z) - smoothing * logsigmoid(-z)


def _ipo(chosen: Tensor, rejected: Tensor, beta: float, _gamma: float, _smoothing: float) -> Tensor:
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def _hinge(chosen: Tensor, rejected: Tensor, beta: float, _gamma: float, _smoothing: float) -> Tensor:
    return torch.relu(1 - beta * (chosen - rejected))


def _nca(chosen: Tensor, rejected: Tensor, beta: float, _gamma: float, _smoothing: float) -> Tensor:
    won, lost = beta * chosen, beta * rejected
    return -logsigmoid(won) - 0.5 * logsigmoid(-won) - 0.5 * logsigmoid(-lost)


def _orpo(chosen: Tensor, rejected: Tensor, beta: float, _gamma: float, _smoothing: float) -> Tensor:
    # log odds = log p - log(1 - p), with p the geometric mean of the tokens' probabilities.
    odds = [logp - torch.log1p(-logp.clamp(max=-1e-7).exp()) for logp in (chosen, rejected)]
    return -beta * logsigmoid(odds[0] - odds[1])


KINDS: Mapping[str, PreferenceKind] = {
    "dpo": PreferenceKind("sum", True, _sigmoid),
    "dpo-norm": PreferenceKind("mean", True, _sigmoid),
    "ipo": PreferenceKind("mean", True, _ipo),
    "hinge": PreferenceKind("sum", True, _hinge),
    "nca": PreferenceKind("sum", True, _nca),
    "tpo": PreferenceKind("sum", False, _sigmoid),
    "tpo-l": PreferenceKind("mean", False, _sigmoid),
    "tpo-hinge": PreferenceKind("sum", False, _hinge),
    "tpo-ipo": PreferenceKind("mean", False, _ipo),
    "simpo": PreferenceKind("mean", False, _sigmoid),
    "orpo": PreferenceKind("mean", False, _orpo),
}
"""The kinds by name."""
assert set(KINDS) == set(get_args(Kind))


def preference_kind(name: str) -> PreferenceKind:
    """The kind of that name.

    Raises
    ------
    InputError
        When there is none; the nearest names are given.
    """
    if name not in KINDS:
        raise InputError(f"no preference loss {name!r}: {nearest(name, KINDS)}")
    return KINDS[name]


def preference_loss(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    reference_chosen: Float[Tensor, " P"] | None = None,
    reference_rejected: Float[Tensor, " P"] | None = None,
    *,
    kind: Kind,
    beta: float,
    gamma: float = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " P"]:
    r"""The loss of each pair.

    With :math:`w` and :math:`l` the chosen and rejected answers' log-probabilities, or, for kinds with a reference,
    their differences to the reference's; :math:`z = \beta(w - l) - \gamma` and :math:`\epsilon` the smoothing:

    ================================ ============================================================ =========
    kind                             loss                                                         over tokens
    ================================ ============================================================ =========
    dpo, tpo                         :math:`-(1-\epsilon)\log\sigma(z) - \epsilon\log\sigma(-z)`  sum
    dpo-norm, tpo-l, simpo           the same                                                     mean
    hinge, tpo-hinge                 :math:`\max(0, 1 - \beta(w - l))`                            sum
    ipo, tpo-ipo                     :math:`(w - l - 1/(2\beta))^2`                               mean
    nca                              :math:`-\log\sigma(\beta w) - \tfrac12\log\sigma(-\beta w)   sum
                                     - \tfrac12\log\sigma(-\beta l)`
    orpo                             :math:`-\beta\log\sigma(o_w - o_l)`, o the log-odds          mean
    ================================ ============================================================ =========

    Parameters
    ----------
    chosen, rejected
        Log-probabilities of the answers under the policy, in the kind's reduction; the gradient flows through them.
    reference_chosen, reference_rejected
        The same under the reference, for the kinds that have one.
    kind
        ``tpo`` and its variants are the preference term of Triple Preference Optimization; ``simpo`` and ``tpo-l``
        are one formula. The likelihood term that TPO and ORPO add is the caller's.
    beta
        Of the kind; odds ratio's weight for ``orpo``.
    gamma
        Margin in units of reward: subtracted after the multiplication by beta.
    label_smoothing
        Share of pairs taken to be labelled the wrong way round, in [0, 0.5).

    Raises
    ------
    InputError
        For an unknown kind, or when the reference is missing or not wanted.

    References
    ----------
    arXiv 2305.18290 (DPO), 2411.15124 (dpo-norm), 2310.12036 (IPO), 2305.10425 (hinge), 2402.05369 (NCA),
    2405.16681 (TPO), 2405.14734 (SimPO), 2403.07691 (ORPO).
    """
    found = preference_kind(kind)
    given = reference_chosen is not None and reference_rejected is not None
    if given != found.reference:
        raise InputError(f"{kind} {'compares with a reference: give its' if found.reference else 'has no reference'}")
    if reference_chosen is not None and reference_rejected is not None:
        chosen, rejected = chosen - reference_chosen, rejected - reference_rejected
    return found.loss(chosen, rejected, beta, gamma, label_smoothing)
