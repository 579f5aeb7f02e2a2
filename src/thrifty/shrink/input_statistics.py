"""Running statistics of what goes into a linear map: float32 sums per channel, never the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import NonFiniteError


class InputStatistics:
    r"""Mean, variances and norms of each input channel over sequences of equal length.

    Sequences are merged by Chan's rule, so that a large mean does not swallow a small variance.

    Parameters
    ----------
    hessian
        Whether to sum :math:`X^\top X` too.
    """

    def __init__(self, *, hessian: bool = False) -> None:
        self.sequences = 0
        self.tokens = 0
        self._mean: Tensor | None = None
        self._squares = torch.zeros(0)  # sum over tokens of (x - mean)^2
        self._within = torch.zeros(0)  # sum over sequences of each one's variance
        self._released = torch.zeros(0)
        self._wants_hessian = hessian
        self._hessian: Tensor | None = None

    def add(self, x: Float[Tensor, "*batch channel"]) -> None:
        """Takes in sequences ``[B, T, C]``; tokens alone ``[T, C]`` are one sequence."""
        x = x.detach()
        x = x[None] if x.ndim == 2 else x.flatten(0, -3)
        count, length, channels = x.shape
        # One sequence after the other stays in a processor's cache, which takes a tenth of the time.
        pairs = [_moments(one) for one in (x if x.device.type == "cpu" else [x])]
        variance, means = (torch.stack(found).view(count, channels) for found in zip(*pairs, strict=True))
        self.take_in(variance, means, length)
        if self._wants_hessian:
            rows = x.flatten(0, 1).float()
            if self._hessian is None:
                self._hessian = rows.new_zeros(channels, channels)
            self._hessian.addmm_(rows.t(), rows)

    def take_in(
        self, variance: Float[Tensor, "sequence channel"], means: Float[Tensor, "sequence channel"], length: int
    ) -> None:
        """Merges sequences of ``length`` tokens, of which each channel's population variance and mean are known."""
        count, channels = means.shape
        if self._mean is None:
            self._mean = means.new_zeros(channels)
            self._squares, self._within, self._released = (means.new_zeros(channels) for _ in range(3))
        self._add_released(variance, means, length)
        mean = means.mean(0)
        squares = length * (variance.sum(0) + (means - mean).square().sum(0))
        added, before = count * length, self.tokens
        step = mean - self._mean
        self.tokens += added
        self.sequences += count
        self._squares += squares + step.square() * (before * added / self.tokens)
        self._mean += step * (added / self.tokens)
        self._within += variance.sum(0)

    def _add_released(self, variance: Tensor, means: Tensor, length: int) -> None:
        # With G_k = (k - 1) v_k, the released recursion adds k / (k + 1) times what the new sequence deviates from
        # the mean with that sequence in it.
        assert self._mean is not None
        before = self.sequences
        number = torch.arange(before, before + len(means), device=means.device, dtype=means.dtype)[:, None]
        after = (self._mean * before + means.cumsum(0)) / (number + 1)
        deviation = length * (variance + (means - after).square())
        self._released += (deviation * number / (number + 1)).sum(0)

    @property
    def mean(self) -> Float[Tensor, " channel"]:
        """Over all tokens."""
        assert self._mean is not None
        return self._mean

    @property
    def variance(self) -> Float[Tensor, " channel"]:
        """Unbiased, over all tokens."""
        return self._squares / max(self.tokens - 1, 1)

    @property
    def variance_within(self) -> Float[Tensor, " channel"]:
        """The population variance inside a sequence, averaged over sequences."""
        return self._within / self.sequences

    @property
    def released_fluctuation(self) -> Float[Tensor, " channel"]:
        """What FLAP's released code computes for the variance, in the order in which sequences came."""
        return self._released / max(self.sequences - 1, 1)

    @property
    def sum(self) -> Float[Tensor, " channel"]:
        """A sequence's sum over its tokens, averaged over sequences."""
        return self.mean * (self.tokens / self.sequences)

    @property
    def sum_of_squares(self) -> Float[Tensor, " channel"]:
        """A sequence's sum of squares over its tokens, averaged over sequences."""
        return (self._squares + self.mean.square() * self.tokens) / self.sequences

    @property
    def norm(self) -> Float[Tensor, " channel"]:
        """Root of :attr:`sum_of_squares`."""
        return self.sum_of_squares.sqrt()

    @property
    def hessian(self) -> Float[Tensor, "channel channel"]:
        r""":math:`X^\top X`, a sequence's on average."""
        assert self._hessian is not None
        return self._hessian / self.sequences

    def check(self, name: str) -> None:
        """Raises a :class:`NonFiniteError` where an input was not finite."""
        if not torch.isfinite(self._squares).all():
            raise NonFiniteError(
                f"what goes into {name} is not finite on the calibration text: load the model in bfloat16 or float32"
            )


def _moments(x: Float[Tensor, "*sequence token channel"]) -> tuple[Tensor, Tensor]:
    """Population variance and mean of each channel over tokens, in float32."""
    x = x.float()
    mean = x.mean(-2, keepdim=True)
    deviation = x - mean
    return deviation.mul_(deviation).mean(-2), mean[..., 0, :]


@contextmanager
def watching(
    maps: Mapping[str, nn.Module], make: Callable[[], InputStatistics] = InputStatistics
) -> Iterator[dict[str, InputStatistics]]:
    """Within it the inputs of linear maps are summed up; maps that read the same tensor share what is summed.

    Parameters
    ----------
    maps
        Name to linear map.
    make
        Makes the statistics of one input.

    Yields
    ------
    dict
        Name to statistics; a map that was never called has none.
    """
    found: dict[str, InputStatistics] = {}
    last: list[tuple[Tensor, InputStatistics]] = []

    def hook(name: str) -> Callable[..., None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0]
            if last and last[0][0] is x and found.get(name, last[0][1]) is last[0][1]:
                found[name] = last[0][1]
                return
            statistics = found.setdefault(name, make())
            statistics.add(x)
            last[:] = [(x, statistics)]

        return see

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in maps.items()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
