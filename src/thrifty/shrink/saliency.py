"""How much groups of weights matter: magnitude, its mean, the angle to the step, and Taylor terms of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError, nearest
from thrifty.shrink.zero_groups import GroupSet

CRITERIA = ("magnitude", "average_magnitude", "cosine", "taylor_first", "taylor_second")
EQUAL: Mapping[str, float] = MappingProxyType(dict.fromkeys(CRITERIA, 0.2))
CosineSign = Literal["released", "first_order"]


def check_criteria(criteria: Mapping[str, float]) -> None:
    """Raises an :class:`InputError` unless every name is a criterion and some weight is not 0."""
    for name in criteria:
        if name not in (*CRITERIA, "random"):
            raise InputError(f"no criterion {name!r}: {nearest(name, (*CRITERIA, 'random'))}")
    if not any(criteria.values()):
        raise InputError("criteria must give at least one of them a weight other than 0")


def criteria_of(
    squared: Float[Tensor, " G"],
    inner: Float[Tensor, " G"],
    direction_squared: Float[Tensor, " G"],
    sizes: Float[Tensor, " G"],
    cosine_sign: CosineSign = "released",
) -> dict[str, Float[Tensor, " G"]]:
    r"""The five criteria, larger for what matters more.

    :math:`\lVert x \rVert`, :math:`\lVert x \rVert / |g|`, :math:`\cos(x, d) + 1`,
    :math:`|\langle x, d\rangle|` and :math:`\tfrac12 \langle x, d\rangle^2`.

    Parameters
    ----------
    squared, direction_squared
        Squared norms of each group's weights x and of their direction d.
    inner
        Their inner product.
    sizes
        How many weights each group has.
    cosine_sign
        ``first_order`` takes :math:`1 - \cos(x, d)`: setting x to zero changes the loss by :math:`-\langle x, d\rangle`
        to first order, so that a group that points where the loss rises should rather go.
    """
    norm = squared.sqrt()
    cosine = inner / (norm + 1e-8) / (direction_squared.sqrt() + 1e-8)
    return {
        "magnitude": norm,
        "average_magnitude": norm / (sizes + 1e-6),
        "cosine": 1 + cosine if cosine_sign == "released" else 1 - cosine,
        "taylor_first": inner.abs(),
        "taylor_second": 0.5 * inner.square(),
    }


def combined(found: Mapping[str, Float[Tensor, " G"]], weights: Mapping[str, float]) -> Float[Tensor, " G"]:
    r"""The weighted sum of criteria, each divided by its norm over all groups.

    The norm is :math:`\sqrt{\sum_g s_g^2 + \delta} + \delta` with :math:`\delta` = 1e-8.

    Parameters
    ----------
    found
        Values of each criterion.
    weights
        Of those that count.
    """
    terms = [weights[name] * found[name] / (found[name].square().sum().add(1e-8).sqrt() + 1e-8) for name in weights]
    return torch.stack(terms).sum(0)


def group_saliency(
    groups: GroupSet,
    directions: Mapping[str, Tensor],
    criteria: Mapping[str, float] = EQUAL,
    cosine_sign: CosineSign = "released",
) -> Float[Tensor, " G"]:
    """What each group of a model is worth.

    Parameters
    ----------
    groups
        Of the model.
    directions
        What each parameter would move along, by name: of an optimizer, or the gradient.
    criteria
        The weight of each criterion; ``random`` is one too, for comparison, and draws from the global generator.
    cosine_sign
        See :func:`criteria_of`.
    """
    parameters: dict[str, Tensor] = {name: parameter.detach() for name, parameter in groups.parameters.items()}
    found = criteria_of(
        groups.squared_norms(),
        groups.inner(parameters, directions),
        groups.inner(directions, directions),
        groups.sizes,
        cosine_sign,
    )
    if "random" in criteria:
        found["random"] = torch.rand(len(groups)).to(groups.layer.device)
    return combined(found, criteria)
