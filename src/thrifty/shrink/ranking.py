"""Which groups have the lowest scores, over all layers at once, where no layer may lose all of them."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def rank_within(layer: Int[Tensor, " G"], scores: Float[Tensor, " G"], units: Int[Tensor, " layer"]) -> Tensor:
    """The place of each group among those of its layer, lowest score first, counted from 0.

    Parameters
    ----------
    layer
        Of each group, in order.
    scores
        Of each group.
    units
        How many groups each layer has.
    """
    order = scores.argsort(stable=True)
    order = order[layer[order].argsort(stable=True)]
    starts = units.cumsum(0) - units
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device) - starts[layer[order]]
    return places


def lowest(scores: Float[Tensor, " G"], count: int) -> Bool[Tensor, " G"]:
    """The groups with so many of the lowest scores; of equals those with the smallest number."""
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=scores.device)
    chosen[scores.argsort(stable=True)[:count]] = True
    return chosen


def lowest_spared(
    scores: Float[Tensor, " G"],
    count: int,
    gone: Bool[Tensor, " G"],
    layer: Int[Tensor, " G"],
    units: Int[Tensor, " layer"],
    divisible: int = 1,
) -> Bool[Tensor, " G"]:
    """The groups with the lowest scores that can go.

    In each layer the ``divisible`` best that are left are spared. With ``divisible`` above 1 the number of those that
    stay is rounded up to a multiple of it, so that fewer than ``count`` may be chosen.

    Parameters
    ----------
    scores
        What each group is worth.
    count
        How many to choose.
    gone
        Groups that are gone already, and not chosen again.
    layer, units
        The layer of each group, and how many groups each layer has.
    divisible
        As above.
    """
    left = scores.masked_fill(gone, -torch.inf)
    from_top = units[layer] - 1 - rank_within(layer, left, units)
    spared = gone | (from_top < divisible)
    chosen = lowest(scores.masked_fill(spared, torch.inf), min(count, int((~spared).sum())))
    if divisible == 1:
        return chosen
    stay = torch.zeros_like(units).index_add(0, layer, (~gone & ~chosen).to(units.dtype))
    missing = -stay % divisible
    best = units[layer] - 1 - rank_within(layer, scores.masked_fill(~chosen, -torch.inf), units)
    return chosen & (best >= missing[layer])


def lowest_released(
    scores: Float[Tensor, " G"],
    count: int,
    gone: Bool[Tensor, " G"],
    layer: Int[Tensor, " G"],
    units: Int[Tensor, " layer"],
    divisible: int = 1,
) -> Bool[Tensor, " G"]:
    """The same as the released code chooses.

    It looks at as many of the lowest scores as are gone and shall go, takes out what is gone (whose score need not be
    low), and of the rest the first in the order of their numbers. What a layer must keep is then given back, the last
    numbers first, so that fewer groups go than were asked for. Parameters are those of :func:`lowest_spared`.
    """
    candidates = lowest(scores.masked_fill(units[layer] <= divisible, torch.inf), int(gone.sum()) + count) & ~gone
    chosen = candidates & (candidates.cumsum(0) <= count)
    stay = torch.zeros_like(units).index_add(0, layer, (~gone & ~chosen).to(units.dtype))
    wanted = ((stay // divisible + (stay % divisible > 0)) * divisible).clamp(min=divisible).minimum(units)
    starts = chosen.cumsum(0) - chosen.to(torch.long)
    first = torch.full_like(units, len(scores)).scatter_reduce(0, layer, starts, "amin")
    place = starts - first[layer]
    most = torch.zeros_like(units).index_add(0, layer, chosen.to(units.dtype)) - (wanted - stay)
    return chosen & (place < most[layer])
