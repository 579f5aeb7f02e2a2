"""The best of several answers: of each prompt, or of all."""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError

Strategy = Literal["local", "top"]
Ties = Literal["first", "random"]


def select_best(
    reward: Float[Tensor, " N"],
    group: Int[Tensor, " N"],
    *,
    strategy: Strategy = "local",
    fraction: float | None = None,
    ties: Ties = "random",
    min_reward: float | None = None,
    draw: torch.Generator | None = None,
) -> Int[Tensor, " M"]:
    """The answers to learn from: of each prompt the best one, or the best of all.

    It knows nothing of language: with images, ``reward`` is the score of each image and ``group`` its prompt, and the
    images selected are what the diffusion model is fine-tuned on.

    Parameters
    ----------
    reward
        Of each answer; one that is not finite is never selected.
    group
        The prompt of each answer: any integers, in any order.
    strategy
        ``local``: the best answer to each prompt. ``top``: the best ``fraction`` of all, at least one.
    fraction
        For ``top``, within (0, 1]; rounded down.
    ties
        Among equal rewards ``random`` or the ``first``.
    min_reward
        Answers with a smaller reward are not selected.
    draw
        Breaks ties; PyTorch's global generator when ``None``.

    Returns
    -------
    Tensor
        Indices in rising order; empty where no answer may be selected.

    Raises
    ------
    InputError
        For ``top`` without ``fraction``.

    References
    ----------
    Dong et al., TMLR 2023, Algorithm 1 and its two rankings ("local" and "global").
    """
    may = torch.isfinite(reward)
    if min_reward is not None:
        may &= reward >= min_reward
    order = torch.arange(len(reward)) if ties == "first" else torch.randperm(len(reward), generator=draw)
    order = order.to(reward.device)
    order = order[reward[order].argsort(descending=True, stable=True)]
    if strategy == "top":
        if fraction is None:
            raise InputError("strategy 'top' needs the fraction of answers to keep")
        count = max(1, math.floor(len(reward) * fraction + 1e-9))
        return order[may[order]][:count].sort().values
    order = order[may[order]]
    order = order[group[order].argsort(stable=True)]
    ranked = group[order]
    best = torch.ones(len(ranked), dtype=torch.bool, device=reward.device)
    best[1:] = ranked[1:] != ranked[:-1]
    return order[best].sort().values


def first_of_each(group: Int[Tensor, " N"]) -> Int[Tensor, " G"]:
    """The first row of each group: of sampled answers, one that was not chosen for its reward."""
    _, place = group.unique(return_inverse=True)
    rows = torch.arange(len(group), device=group.device)
    nowhere = torch.full((int(place.max()) + 1,), len(group), device=group.device)
    return nowhere.scatter_reduce(0, place, rows, "amin")
