"""Float32 master weights for models that compute in bfloat16 or float16.

A bfloat16 weight has eight bits of precision: an update of a thousandth of it is rounded away. So the optimizer
works on float32 copies, which are rounded into the model after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core import sharding


class MasterWeights(torch.optim.Optimizer):
    """An optimizer over float32 copies of low-precision parameters.

    Parameters
    ----------
    parameters
        The model's parameters; those that need no gradient are left alone.
    make
        Builds the optimizer over the float32 copies: ``lambda p: torch.optim.AdamW(p, lr=1e-5)``.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], make: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    ) -> None:
        self.live = [parameter for parameter in parameters if parameter.requires_grad]
        # A parameter that is float32 already is its own master: it costs no second copy.
        self.master = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.live]
        self.inner = make(self.master)
        sharding.accept_whole(self.inner)
        super().__init__(self.live, self.inner.defaults)
        # Learning rates are set here and read there: one list of groups for both.
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of the inner optimizer, rounded into the model; a closure is not supported."""
        if closure is not None:
            raise ValueError("MasterWeights takes no closure")
        pairs = [(live, master) for live, master in zip(self.live, self.master, strict=True) if live is not master]
        for live, master in pairs:
            master.grad = None if live.grad is None else live.grad.float()
            live.grad = None  # both at once would be what a step's memory peaks at
        self.inner.step()
        if pairs:
            live_parts, master_parts = ([sharding.local(p.data) for p in side] for side in zip(*pairs, strict=True))
            torch._foreach_copy_(live_parts, master_parts)
        for _, master in pairs:
            master.grad = None

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the model's gradients."""
        for parameter in self.live:
            if set_to_none:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and the master weights, which the model alone can't give back."""
        masters: list[Tensor | None] = [
            None if live is master else master.data for live, master in zip(self.live, self.master, strict=True)
        ]
        return {"inner": self.inner.state_dict(), "master": masters}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up a state that :meth:`state_dict` gave."""
        self.inner.load_state_dict(state_dict["inner"])
        self.param_groups = self.inner.param_groups
        for master, saved in zip(self.master, state_dict["master"], strict=True):
            if saved is not None:
                master.data.copy_(sharding.share_of(saved, master))
