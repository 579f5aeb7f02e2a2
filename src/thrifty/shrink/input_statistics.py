"""Running statistics of what goes into a linear map: float32 sums per channel, never the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import NonFiniteError
from thrifty.nets.moments import RunningMoments
from thrifty.shrink.sparsegpt import inverse_root


class InputStatistics(RunningMoments):
    r"""Mean, variances and norms of each input channel over sequences of equal length.

    Parameters
    ----------
    hessian
        Whether to sum :math:`X^\top X` too.
    """

    def __init__(self, *, hessian: bool = False) -> None:
        super().__init__()
        self.sequences = 0
        self._within = torch.zeros(())  # sum over sequences of each one's variance
        self._released = torch.zeros(())
        self._wants_hessian = hessian
        self._hessian: Tensor | None = None
        self._root: tuple[float, Tensor] | None = None

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
            self._root = None

    def take_in(
        self, variance: Float[Tensor, "sequence channel"], means: Float[Tensor, "sequence channel"], length: int
    ) -> None:
        """Merges sequences of ``length`` tokens, of which each channel's population variance and mean are known."""
        self._add_released(variance, means, length)
        mean = means.mean(0)
        self.merge(len(means) * length, mean, length * (variance.sum(0) + (means - mean).square().sum(0)))
        self.sequences += len(means)
        self._within = self._within + variance.sum(0)

    def _add_released(self, variance: Tensor, means: Tensor, length: int) -> None:
        # With G_k = (k - 1) v_k, the released recursion adds k / (k + 1) times what the new sequence deviates from
        # the mean with that sequence in it.
        before = self.sequences
        number = torch.arange(before, before + len(means), device=means.device, dtype=means.dtype)[:, None]
        after = (self.mean * before + means.cumsum(0)) / (number + 1)
        deviation = length * (variance + (means - after).square())
        self._released = self._released + (deviation * number / (number + 1)).sum(0)

    @property
    def variance(self) -> Float[Tensor, " channel"]:
        """Unbiased, over all tokens."""
        return self.squares / max(self.tokens - 1, 1)

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
        return (self.squares + self.mean.square() * self.tokens) / self.sequences

    @property
    def norm(self) -> Float[Tensor, " channel"]:
        """Root of :attr:`sum_of_squares`."""
        return self.sum_of_squares.sqrt()

    @property
    def hessian(self) -> Float[Tensor, "channel channel"]:
        r""":math:`X^\top X`, a sequence's on average."""
        assert self._hessian is not None
        return self._hessian / self.sequences

    def inverse_root(self, dampening: float = 0.01) -> Float[Tensor, "channel channel"]:
        """The Hessian's :func:`~thrifty.shrink.sparsegpt.inverse_root`, made once for all maps that read this input."""
        if self._root is None or self._root[0] != dampening:
            self._root = dampening, inverse_root(self.hessian, dampening)
        return self._root[1]

    def check(self, name: str) -> None:
        """Raises a :class:`NonFiniteError` where an input was not finite."""
        if not torch.isfinite(self.squares).all():
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
