"""LAMB: Adam whose step is rescaled, tensor by tensor, to the norm of the weights it changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """``w <- w - lr (|w| / |r|) r`` with ``r = m^ / (sqrt(v^) + eps) + weight_decay w``.

    Parameters
    ----------
    params
        What is optimised.
    lr
        Learning rate.
    betas
        Decay of the two moments.
    eps
        Added to the square root of the second moment.
    weight_decay
        Share of the weights that joins the update.

    References
    ----------
    You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", arXiv 1904.00962.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all tensors that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step(group)
        return loss

    def _step(self, group: dict[str, Any]) -> None:
        weights = [p for p in group["params"] if p.grad is not None]
        if not weights:
            return
        states = [self.state[p] for p in weights]
        for weight, state in zip(weights, states, strict=True):
            if not state:
                state |= {"step": 0, "first": torch.zeros_like(weight), "second": torch.zeros_like(weight)}
            state["step"] += 1
        gradients = [p.grad for p in weights]
        first, second = [s["first"] for s in states], [s["second"] for s in states]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)
        scale = torch._foreach_div(second, [1 - beta2 ** s["step"] for s in states])
        torch._foreach_sqrt_(scale)
        torch._foreach_add_(scale, group["eps"])
        update = torch._foreach_div(first, scale)
        torch._foreach_div_(update, [1 - beta1 ** s["step"] for s in states])
        torch._foreach_add_(update, weights, alpha=group["weight_decay"])
        norms, sizes = torch._foreach_norm(weights), torch._foreach_norm(update)
        trust = [torch.where((w > 0) & (u > 0), w / u, torch.ones_like(w)) for w, u in zip(norms, sizes, strict=True)]
        torch._foreach_mul_(update, trust)
        torch._foreach_add_(weights, update, alpha=-group["lr"])
