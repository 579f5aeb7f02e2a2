"""Diagonal Normals squashed by a hyperbolic tangent, the usual density over bounded actions, and policies.

``x ~ N(mean, std^2)``, ``a = tanh(x)`` in (-1, 1), so ``log p(a) = sum_d [log N(atanh a_d; mean_d, std_d) -
log(1 - a_d^2)]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from numpy.polynomial.hermite import hermgauss
from torch import Tensor, nn
from torch.nn import functional

from thrifty.nets.mlp import EnsembleMLP, Init

EDGE = 1e-6  # actions are kept this far from the border, where the density is infinite
_LOG_SQRT_TWO_PI = 0.5 * math.log(2 * math.pi)


def bounded_log_std(
    raw: Float[Tensor, "*batch action"], low: float = -5.0, high: float = 2.0
) -> Float[Tensor, "*batch action"]:
    """``low + (high - low) (tanh(raw) + 1) / 2``: any number becomes a log standard deviation in range."""
    return low + 0.5 * (high - low) * (torch.tanh(raw) + 1)


def _log_jacobian(x: Tensor) -> Tensor:
    # log(1 - tanh(x)^2) without the cancellation that makes it -inf from |x| = 9 on.
    return 2 * (math.log(2.0) - x - functional.softplus(-2 * x))


def _normal_log_prob(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    return -0.5 * ((x - mean) * torch.exp(-log_std)).square() - log_std - _LOG_SQRT_TWO_PI


def squashed_log_prob(
    action: Float[Tensor, "*batch action"],
    mean: Float[Tensor, "*batch action"],
    log_std: Float[Tensor, "*batch action"],
) -> Float[Tensor, "*batch"]:
    """The log-likelihood of actions under a tanh-squashed Normal, summed over their dimensions.

    Parameters
    ----------
    action
        In [-1, 1]; values within 1e-6 of the border are moved inside.
    mean, log_std
        Of the Normal before squashing.
    """
    x = torch.atanh(action.clamp(-1 + EDGE, 1 - EDGE))
    return (_normal_log_prob(x, mean, log_std) - _log_jacobian(x)).sum(-1)


def squashed_sample(
    mean: Float[Tensor, "*batch action"], log_std: Float[Tensor, "*batch action"], count: int | None = None
) -> tuple[Float[Tensor, "*samples action"], Float[Tensor, "*samples"]]:
    """Reparameterised draws and their log-likelihoods.

    Parameters
    ----------
    mean, log_std
        Of the Normal before squashing.
    count
        Draws for each row, in a new first dimension; one without that dimension when ``None``.

    Returns
    -------
    tuple
        Actions in (-1, 1), and ``log p`` of each.
    """
    shape = mean.shape if count is None else (count, *mean.shape)
    x = mean + torch.exp(log_std) * torch.randn(shape, dtype=mean.dtype, device=mean.device)
    return torch.tanh(x), (_normal_log_prob(x, mean, log_std) - _log_jacobian(x)).sum(-1)


def squashed_std(
    mean: Float[Tensor, "*batch action"], log_std: Float[Tensor, "*batch action"], points: int = 32
) -> Float[Tensor, "*batch action"]:
    """The standard deviation of ``tanh(x)``, by Gauss-Hermite quadrature.

    Parameters
    ----------
    mean, log_std
        Of the Normal before squashing.
    points
        Nodes of the quadrature.
    """
    nodes, weights = hermgauss(points)
    total, square = torch.zeros_like(mean), torch.zeros_like(mean)
    for node, weight in zip(nodes, weights / math.sqrt(math.pi), strict=True):
        value = torch.tanh(mean + torch.exp(log_std) * (math.sqrt(2) * float(node)))
        total += float(weight) * value
        square += float(weight) * value.square()
    return (square - total.square()).clamp_min(0).sqrt()


class GaussianPolicy(nn.Module):
    """A tanh-squashed Gaussian policy: one perceptron gives mean and log standard deviation.

    Parameters
    ----------
    observation_dim, action_dim
        Sizes of what it sees and does.
    hidden
        Widths of the hidden layers.
    init
        As for :class:`thrifty.nets.mlp.EnsembleMLP`.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256), *, init: Init = "uniform"
    ) -> None:
        super().__init__()
        self.net = EnsembleMLP(1, observation_dim, 2 * action_dim, hidden, init=init)

    def forward(
        self, observation: Float[Tensor, "batch observation"]
    ) -> tuple[Float[Tensor, "batch action"], Float[Tensor, "batch action"]]:
        """Mean and log standard deviation before squashing."""
        mean, raw = self.net(observation)[0].chunk(2, -1)
        return mean, bounded_log_std(raw)


class DeterministicPolicy(nn.Module):
    """``a = tanh(f(s))``.

    Parameters
    ----------
    observation_dim, action_dim
        Sizes of what it sees and does.
    hidden
        Widths of the hidden layers.
    init
        As for :class:`thrifty.nets.mlp.EnsembleMLP`.
    """

    def __init__(
        self, observation_dim: int, action_dim: int, hidden: Sequence[int] = (256, 256), *, init: Init = "uniform"
    ) -> None:
        super().__init__()
        self.net = EnsembleMLP(1, observation_dim, action_dim, hidden, init=init)

    def forward(self, observation: Float[Tensor, "batch observation"]) -> Float[Tensor, "batch action"]:
        """The action, in (-1, 1)."""
        return torch.tanh(self.net(observation)[0])
