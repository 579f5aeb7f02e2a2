"""Models of one start made one: TIES (trim, elect a sign, mean of those that agree)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError


def trimmed(delta: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """The entries of largest size, a share ``density`` of all (rounded down); 0 for the others."""
    count = int(density * delta.numel())
    if count == delta.numel():
        return delta
    kept = delta.abs().flatten().topk(count).indices
    flat = delta.flatten()
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(delta)


def ties(
    base: Float[Tensor, "*shape"],
    models: Sequence[Float[Tensor, "*shape"]],
    *,
    density: float = 0.5,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> Float[Tensor, "*shape"]:
    r"""One parameter of a merged model.

    .. math::
        \delta_i = \mathrm{trim}(\theta_i - \theta_0), \qquad s = \mathrm{sign} \textstyle\sum_i w_i \delta_i, \qquad
        \theta = \theta_0 + \lambda
            \frac{\sum_{i:\, \mathrm{sign}(\delta_i) = s} w_i \delta_i}{\sum_{i:\, \mathrm{sign}(\delta_i) = s} w_i}

    Parameters
    ----------
    base
        :math:`\theta_0`: what all models were trained from.
    models
        :math:`\theta_i`.
    density
        Share of each difference's entries that are kept, in (0, 1].
    weights
        :math:`w_i`, above 0; 1 each when ``None``.
    scale
        :math:`\lambda`.

    Raises
    ------
    InputError
        When there is no model, or a setting is out of range.

    References
    ----------
    Yadav et al., "TIES-Merging", arXiv 2306.01708, algorithm 1, with weights as in mergekit.
    """
    given = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(given) != len(models) or not all(weight > 0 for weight in given):
        raise InputError(f"merging needs models, and a weight above 0 for each: {len(models)} models, weights {given}")
    if not 0 < density <= 1:
        raise InputError(f"density must be in (0, 1], not {density:g}")
    deltas = torch.stack([trimmed(model.float() - base.float(), density) for model in models])
    share = torch.tensor(given, device=base.device).view(-1, *[1] * base.ndim)
    weighted = deltas * share
    elected = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)  # 0 counts as above 0, as in mergekit
    agrees = deltas.sign() == elected
    total = (weighted * agrees).sum(0)
    divisor = (share * agrees).sum(0)
    return (base.float() + scale * total / divisor.where(divisor > 0, 1.0)).to(base.dtype)


def ties_merge(
    base: Mapping[str, Tensor],
    models: Sequence[Mapping[str, Tensor]],
    *,
    density: float = 0.5,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """The state dict of a merged model, by :func:`ties` on each floating-point tensor; others are the base's.

    Raises
    ------
    InputError
        When the models do not have the same tensors.
    """
    for number, model in enumerate(models, start=1):
        differs = {n for n in {*base, *model} if n not in base or n not in model or base[n].shape != model[n].shape}
        if differs:
            raise InputError(f"model {number} can't be merged with the base: {min(differs)} is not the same in both")
    return {
        name: ties(tensor, [model[name] for model in models], density=density, weights=weights, scale=scale)
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in base.items()
    }
