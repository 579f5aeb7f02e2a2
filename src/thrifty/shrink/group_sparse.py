"""An optimizer of the usual PyTorch kind that brings groups of weights to exactly zero while it trains the rest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.shrink.base import check_sparsity
from thrifty.shrink.directions import Direction, adam_directions, momentum_directions
from thrifty.shrink.zero_groups import GroupSet

Directions = dict[str, Tensor]


class GroupSparse(torch.optim.Optimizer):
    """What the optimizers have in common: directions, the step, which groups are zero, and a state that resumes.

    Parameters
    ----------
    groups
        Of the model that is trained; all its parameters that need a gradient are, whether in a group or not.
    lr
        Learning rate; a scheduler may change it.
    direction
        What the weights move along.
    target
        Share of the groups that shall become zero.
    divisible
        The number of groups that stay in a layer is to be a multiple of it; at least one multiple stays.

    Raises
    ------
    InputError
        When a setting is out of range, or so many groups can't become zero; the largest possible share is said.
    """

    # Names of the attributes that the next step depends on, beside the parameters' own state.
    remembered: ClassVar[tuple[str, ...]] = ("steps", "zero")

    def __init__(
        self, groups: GroupSet, lr: float, direction: Direction | None = None, *, target: float, divisible: int = 1
    ) -> None:
        check_sparsity(target)
        if lr < 0:
            raise InputError(f"the learning rate must be at least 0, not {lr:g}")
        if divisible < 1:
            raise InputError(f"divisible must be at least 1, not {divisible}")
        direction = direction or Direction()
        self.groups, self.variant, self.target, self.divisible = groups, direction.variant, target, divisible
        self._names = [name for name, parameter in groups.parameters.items() if parameter.requires_grad]
        super().__init__([groups.parameters[name] for name in self._names], {"lr": lr, **direction.defaults()})
        self.steps = 0
        self.zero: Bool[Tensor, " G"] = torch.zeros(len(groups), dtype=torch.bool, device=groups.layer.device)
        self.wanted = int(len(groups) * min(target, 0.999))
        self.loss: Any = None  # of the current step, where a training loop calls step() with nothing
        most = int((groups.units - divisible).clamp(min=0).sum()) / len(groups)
        if target > most:
            raise InputError(
                f"a sparsity of {target:g} can't be reached: the largest possible is {most:.3f}, since {divisible} of "
                f"the channels of each of {len(groups.layers)} layers must stay"
            )

    @property
    def expected(self) -> float:
        """The share of the groups that are to be zero in the end."""
        return self.wanted / len(self.groups)

    @property
    def sparsity(self) -> float:
        """The share of the groups that are zero for good."""
        return float(self.zero.float().mean())

    @abstractmethod
    def update(self, directions: Directions, loss: Any) -> None:
        """Makes the step.

        Parameters
        ----------
        directions
            By the name of the parameter; not to be changed.
        loss
            What ``step`` was given or what its closure returned.
        """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; takes a closure that computes the loss and its gradients, or the loss, or nothing."""
        loss = closure
        if callable(closure):
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        self.update(self.directions(), loss)
        return loss

    def directions(self) -> Directions:
        """What each parameter that has a gradient would move along; moves the moments on."""
        group = self.param_groups[0]
        live = [(n, p) for n, p in zip(self._names, group["params"], strict=True) if p.grad is not None]
        if not live:
            return {}
        names, parameters = (list(side) for side in zip(*live, strict=True))
        grads: list[Tensor] = [parameter.grad for parameter in parameters]
        states = [self.state[parameter] for parameter in parameters]
        if group["weight_decay"] and self.variant != "adamw":
            grads = list(torch._foreach_add(grads, parameters, alpha=group["weight_decay"]))
        if self.variant == "sgd":
            found = momentum_directions(grads, states, group["momentum"], group["dampening"])
        else:
            found = adam_directions(grads, states, group["betas"], group["eps"])
        return dict(zip(names, found, strict=True))

    @property
    def decay(self) -> float:
        """What AdamW leaves of a weight in a step; 1 for the others, whose decay is in the direction."""
        group = self.param_groups[0]
        return 1 - group["lr"] * group["weight_decay"] if self.variant == "adamw" else 1.0

    def move(
        self,
        directions: Directions,
        factor: Float[Tensor, " G"] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """``x <- factor x - lr d`` for the weights of groups, ``x <- decay x - lr d`` for all others.

        Parameters
        ----------
        directions
            The d.
        factor
            Of each group; ``decay`` where not given.
        only
            Names of the parameters to move; all where not given.
        """
        names = [name for name in directions if only is None or name in only]
        if not names:
            return
        parameters: list[Tensor] = [self.groups.parameters[name] for name in names]
        if self.decay != 1:
            torch._foreach_mul_(parameters, self.decay)
        if factor is not None:
            self.groups.scale_(factor / self.decay)
        torch._foreach_add_(parameters, [directions[name] for name in names], alpha=-self.param_groups[0]["lr"])

    def hold_zero(self) -> None:
        """Sets what is zero for good to zero again."""
        if bool(self.zero.any()):
            self.groups.zero_(self.zero)

    def state_dict(self) -> dict[str, Any]:
        """The usual state of an optimizer, and which groups are what."""
        return {**super().state_dict(), "groups": {name: getattr(self, name) for name in self.remembered}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes up a state that :meth:`state_dict` gave.

        Raises
        ------
        InputError
            When it is of a model with other groups, or of another optimizer.
        """
        kept = state_dict.get("groups", {})
        if kept.keys() != set(self.remembered) or len(kept["zero"]) != len(self.zero):
            raise InputError(
                f"this is no state of a {type(self).__name__} with {len(self.zero)} groups: it was saved by another "
                "optimizer, or for another model"
            )
        super().load_state_dict(dict(state_dict))
        for name, value in kept.items():
            setattr(self, name, _copied(value, self.zero.device))


def _copied(value: Any, device: torch.device) -> Any:
    """A state's value as an optimizer's own."""
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, dict):
        return {key: _copied(inner, device) for key, inner in value.items()}
    return list(value) if isinstance(value, list) else value
