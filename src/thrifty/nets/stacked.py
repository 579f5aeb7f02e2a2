"""Networks of one kind as one module: their weights are stacked, and one batched call runs them all."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from thrifty.core.errors import InputError

# A parameter of a module can't have a dot in its name, and the members' have.
_DOT = "/"


class Stacked(nn.Module):
    """E networks that are called, differentiated and optimised as one.

    Every parameter and buffer has a first dimension of E. An elementwise optimizer (SGD, Adam) on the sum of the
    members' losses takes for each member the step that it would take alone. Buffers such as the statistics of batch
    normalisation are the members' own.

    Parameters
    ----------
    members
        Networks of one class and shape, all in training mode or none. They are copied.

    Raises
    ------
    InputError
        When there is none, or they do not stack.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        try:
            weights, buffers = stack_module_state(list(members))
        except RuntimeError as error:
            raise InputError(f"these models can't be stacked: {str(error).splitlines()[0]}") from error
        # In a tuple, so that the weights of the one that lends its code are not among this module's.
        self._code = (copy.deepcopy(members[0]),)
        for name, weight in weights.items():
            self.register_parameter(
                name.replace(".", _DOT), nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            )
        for name, buffer in buffers.items():
            self.register_buffer(name.replace(".", _DOT), buffer.detach().clone())
        self.training = members[0].training

    def __len__(self) -> int:
        return len(next(self.parameters()))

    def state(self) -> dict[str, Tensor]:
        """The stacked parameters and buffers, by the names that they have in a member."""
        return {name.replace(_DOT, "."): value for name, value in (*self.named_parameters(), *self.named_buffers())}

    def forward(self, x: Any, *, own: bool = False) -> Any:
        """What each member returns, with a first dimension of E.

        Parameters
        ----------
        x
            Inputs for all of them, [B, ...]; or a dictionary of such tensors, passed by name.
        own
            Each member has inputs of its own, [E, B, ...].
        """
        code = self._code[0]
        if code.training != self.training:
            code.train(self.training)

        def one(state: dict[str, Tensor], x: Any) -> Any:
            return functional_call(code, state, (), x) if isinstance(x, dict) else functional_call(code, state, (x,))

        # Fused attention has no batching rule and would run one member after the other.
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(one, in_dims=(0, 0 if own else None), randomness="different")(self.state(), x)

    def member(self, index: int) -> nn.Module:
        """One of the networks, as a module of its own."""
        alone = copy.deepcopy(self._code[0])
        alone.load_state_dict({name: value[index] for name, value in self.state().items()}, strict=False)
        return alone


@torch.no_grad()
def clip_each_(stacked: Stacked, most: float) -> Tensor:
    """Scales each member's gradient to a norm of at most ``most``, and returns the norms before, [E].

    Parameters
    ----------
    stacked
        The networks, with gradients.
    most
        Largest norm.
    """
    found = [weight.grad for weight in stacked.parameters() if weight.grad is not None]
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in found]).norm(dim=0)
    # The same small number as in torch.nn.utils.clip_grad_norm_, of which this is the batched form.
    factors = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in found:
        gradient.mul_(factors.view(-1, *[1] * (gradient.ndim - 1)))
    return norms
