"""What an optimizer would move weights along: the directions of SGD, Adam and AdamW, apart from the step itself.

An optimizer that drives groups of weights to zero needs the direction before the step is made. The step
``x - lr * direction`` is that of :class:`torch.optim.SGD`, :class:`~torch.optim.Adam` and :class:`~torch.optim.AdamW`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from thrifty.core.errors import InputError

Variant = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class Direction:
    """Which direction, and its constants.

    Parameters
    ----------
    variant
        ``sgd``, ``adam`` or ``adamw``, which takes the weight decay apart from the direction.
    momentum, dampening
        Of SGD.
    betas
        Of Adam and AdamW.
    weight_decay
        By default 0.01 for AdamW, else 0.
    eps
        Added to Adam's denominator.
    """

    variant: Variant = "sgd"
    momentum: float = 0.0
    dampening: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float | None = None
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.variant not in ("sgd", "adam", "adamw"):
            raise InputError(f"variant must be sgd, adam or adamw, not {self.variant!r}")
        if not (0 <= self.momentum < 1 and 0 <= self.dampening <= 1 and all(0 <= beta < 1 for beta in self.betas)):
            raise InputError("momentum and betas must lie in [0, 1), dampening in [0, 1]")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise InputError(f"weight_decay must be at least 0, not {self.weight_decay:g}")

    def defaults(self) -> dict[str, Any]:
        """What a parameter group holds: the constants that the variant reads, so that schedulers can change them."""
        decay = self.weight_decay if self.weight_decay is not None else 0.01 if self.variant == "adamw" else 0.0
        if self.variant == "sgd":
            return {"weight_decay": decay, "momentum": self.momentum, "dampening": self.dampening}
        return {"weight_decay": decay, "betas": self.betas, "eps": self.eps}


def momentum_directions(
    grads: Sequence[Tensor], states: Sequence[dict[str, Any]], momentum: float, dampening: float
) -> list[Tensor]:
    """SGD's: the gradient, or its sum with what is left of the earlier ones, ``m = momentum m + (1 - dampening) g``.

    Parameters
    ----------
    grads
        Of each parameter, with the weight decay in it.
    states
        Of each parameter, in which ``momentum`` is kept; the first gradient begins it undampened, as in PyTorch.
    momentum, dampening
        Constants.
    """
    if momentum == 0:
        return list(grads)
    later = [(state["momentum"], grad) for state, grad in zip(states, grads, strict=True) if "momentum" in state]
    for state, grad in zip(states, grads, strict=True):
        if "momentum" not in state:
            state["momentum"] = grad.clone()
    if later:
        buffers, new = (list(side) for side in zip(*later, strict=True))
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, new, alpha=1 - dampening)
    return [state["momentum"] for state in states]


def adam_directions(
    grads: Sequence[Tensor], states: Sequence[dict[str, Any]], betas: tuple[float, float], eps: float
) -> list[Tensor]:
    """Adam's: ``m / (sqrt(v) + eps)`` of bias-corrected moving means of the gradient and its square.

    The released optimizers begin both means with the first gradient itself, not with its share of ``1 - beta``, and
    correct them all the same, which makes the first direction a third as long; here they are PyTorch's.

    Parameters
    ----------
    grads
        Of each parameter.
    states
        Of each parameter, in which ``step``, ``mean`` and ``square`` are kept.
    betas, eps
        Constants.
    """
    for state, grad in zip(states, grads, strict=True):
        if "step" not in state:
            state |= {"step": torch.zeros(()), "mean": torch.zeros_like(grad), "square": torch.zeros_like(grad)}
        state["step"] += 1
    means, squares = ([state[name] for state in states] for name in ("mean", "square"))
    torch._foreach_lerp_(means, list(grads), 1 - betas[0])
    torch._foreach_mul_(squares, betas[1])
    torch._foreach_addcmul_(squares, list(grads), list(grads), 1 - betas[1])
    corrections = [[1 - beta ** float(state["step"]) for state in states] for beta in betas]
    scales = torch._foreach_sqrt(squares)
    torch._foreach_div_(scales, [correction**0.5 for correction in corrections[1]])
    torch._foreach_add_(scales, eps)
    found = torch._foreach_div(means, scales)
    torch._foreach_div_(found, corrections[0])
    return list(found)
