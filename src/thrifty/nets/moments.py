"""Mean and spread of channels over numbers that come in batches."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class RunningMoments:
    """How many tokens came, each channel's mean over them and its summed squared deviations from that.

    Batches are merged by Chan's rule, in float32, so that a large mean does not swallow a small variance.
    """

    def __init__(self) -> None:
        self.tokens = 0
        # Of one number until the first batch says how many channels there are, and where.
        self.mean: Float[Tensor, " channel"] = torch.zeros(())
        self.squares: Float[Tensor, " channel"] = torch.zeros(())

    def merge(self, tokens: int, mean: Float[Tensor, " channel"], squares: Float[Tensor, " channel"]) -> None:
        """Takes in a batch.

        Parameters
        ----------
        tokens
            How many, at least 1.
        mean
            Of each channel over them.
        squares
            Their squared deviations from that mean, summed.
        """
        before, self.tokens = self.tokens, self.tokens + tokens
        step = mean - self.mean
        self.squares = self.squares + squares + step.square() * (before * tokens / self.tokens)
        self.mean = self.mean + step * (tokens / self.tokens)
