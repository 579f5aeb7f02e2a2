"""Multilayer perceptrons of which a whole ensemble is one batched product.

A loop over two critics of 256 units spends as much time in Python as in arithmetic; one ``baddbmm`` a layer
over all members does not, and on an accelerator it starts one kernel instead of many.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Init = Literal["uniform", "orthogonal"]
M = TypeVar("M", bound=nn.Module)


def orthogonal_(weight: Float[Tensor, "members inputs outputs"], gain: float = 1.0) -> Tensor:
    """Fills each member's matrix with a (semi-)orthogonal one, in place.

    Parameters
    ----------
    weight
        One matrix a member.
    gain
        What the matrices are scaled by.

    Returns
    -------
    Tensor
        ``weight``.
    """
    for matrix in weight.unbind():
        nn.init.orthogonal_(matrix, gain)
    return weight


class EnsembleMLP(nn.Module):
    """``members`` perceptrons with ReLU, each layer of all of them one batched product.

    Parameters
    ----------
    members
        How many networks there are, E.
    inputs, outputs
        Features that go in and come out of each.
    hidden
        Widths of the hidden layers.
    dropout
        Share of the last hidden layer's units that training leaves out.
    init
        ``"uniform"``: as :class:`torch.nn.Linear`; ``"orthogonal"``: orthogonal matrices, zero biases.
    """

    def __init__(
        self,
        members: int,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (256, 256),
        *,
        dropout: float = 0.0,
        init: Init = "uniform",
    ) -> None:
        super().__init__()
        self.members, self.dropout = members, dropout
        sizes = [inputs, *hidden, outputs]
        self.weights = nn.ParameterList(
            torch.empty(members, fan_in, fan_out) for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.biases = nn.ParameterList(torch.zeros(members, 1, size) for size in sizes[1:])
        with torch.no_grad():
            for weight, bias in zip(self.weights, self.biases, strict=True):
                if init == "orthogonal":
                    orthogonal_(weight)
                else:
                    bound = 1 / math.sqrt(weight.shape[1])
                    weight.uniform_(-bound, bound)
                    bias.uniform_(-bound, bound)

    def forward(
        self,
        x: Float[Tensor, "batch inputs"] | Float[Tensor, "members batch inputs"],
        *,
        first: int | None = None,
        frozen: bool = False,
    ) -> Float[Tensor, "members batch outputs"]:
        """The outputs of all members.

        Parameters
        ----------
        x
            One batch for all members, or a batch of its own for each.
        first
            Only this many of the members, counted from the first.
        frozen
            Let the gradient through to ``x`` but not into the weights, which saves computing it.
        """
        members = self.members if first is None else first
        x = x.expand(members, *x.shape) if x.dim() == 2 else x
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if frozen:
                weight, bias = weight.detach(), bias.detach()
            if first is not None:
                weight, bias = weight[:first], bias[:first]
            if i == last and self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
            # A batched product with one column runs ten times slower than what memory allows on a processor.
            single = weight.shape[-1] == 1
            x = (x * weight.mT).sum(-1, keepdim=True) + bias if single else torch.baddbmm(bias, x, weight)
            if i < last:
                x = functional.relu(x, inplace=True)
        return x


class EnsembleCritic(EnsembleMLP):
    """E state-action value functions ``Q_e(s, a)``.

    Parameters
    ----------
    members
        How many critics, E.
    observation_dim, action_dim
        Sizes of what they judge.
    hidden
        Widths of the hidden layers.
    init
        As for :class:`EnsembleMLP`.
    """

    def __init__(
        self,
        members: int,
        observation_dim: int,
        action_dim: int,
        hidden: Sequence[int] = (256, 256),
        *,
        init: Init = "uniform",
    ) -> None:
        super().__init__(members, observation_dim + action_dim, 1, hidden, init=init)

    def value(
        self,
        observation: Float[Tensor, "batch observation"],
        action: Float[Tensor, "batch action"],
        *,
        first: int | None = None,
        frozen: bool = False,
    ) -> Float[Tensor, "members batch"]:
        """What each member holds the action to be worth; arguments as for :meth:`EnsembleMLP.forward`."""
        return self(torch.cat([observation, action], -1), first=first, frozen=frozen).squeeze(-1)


def target_of(network: M) -> M:
    """A copy of a network that no gradient reaches, to be moved with :func:`follow`."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module, rate: float) -> None:
    """Moves a target network towards the online one: ``target <- target + rate (online - target)``.

    Parameters
    ----------
    target, online
        Two networks of the same shape.
    rate
        Share of the way, in [0, 1].
    """
    torch._foreach_lerp_(list(target.parameters()), list(online.parameters()), rate)
