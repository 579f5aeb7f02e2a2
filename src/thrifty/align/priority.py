"""Logged answers in an order of worth: drawn with replacement, the better the more often."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.seeding import generator


def priority_weights(score: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    r"""The probability :math:`\max(s_i, 0) / \sum_j \max(s_j, 0)` of drawing each answer.

    Parameters
    ----------
    score
        What each answer is worth, such as its advantage; one at or below 0 is never drawn.

    Raises
    ------
    InputError
        When none is above 0.
    """
    positive = score.clamp(min=0)
    total = positive.sum()
    if not float(total) > 0:
        raise InputError("no answer is worth more than 0, so none can be drawn by its worth")
    return positive / total


class Weighted:
    """The indices of batch ``step``, drawn with replacement; they depend on the seed and the step only.

    So a run that goes on draws what it would have drawn, as with :class:`thrifty.core.loop.Shuffled`.

    Parameters
    ----------
    weights
        Of each example, at least 0; probabilities are proportional to them.
    batch_size
        Examples in a batch.
    seed
        Of the draws.

    Raises
    ------
    InputError
        When a weight is negative or not finite, or all are 0.
    """

    def __init__(self, weights: Float[Tensor, " N"], batch_size: int, seed: int = 0) -> None:
        self.weights = weights.detach().double().cpu()
        if not bool(torch.isfinite(self.weights).all()) or bool((self.weights < 0).any()):
            raise InputError("sampling weights must be finite and at least 0")
        self.weights = priority_weights(self.weights)
        self.batch_size, self.seed = batch_size, seed

    def __call__(self, step: int) -> Int[Tensor, " B"]:
        """The indices ``[B]`` of batch ``step``."""
        # By inversion, as torch.multinomial takes no more than 2^24 categories.
        uniform = torch.rand(self.batch_size, generator=generator(self.seed, "draw", step), dtype=torch.float64)
        cumulative = self.weights.cumsum(0)
        found = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True)
        return found.clamp(max=int(self.weights.nonzero()[-1]))
