"""Training through a Fréchet mean: gradients for a decision that is a step function.

``exact`` needs none of this: the scores ``S(x) = −p D²`` are differentiable, and serve as logits. The estimators here
decode a one-hot prediction z and say which gradient its argument gets for the gradient g of the loss at z.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.adapt.frechet import frechet_scores

Estimator = Literal["straight-through", "negative-identity", "polytope"]


def frechet_logits(probs: Float[Tensor, "B K"], sq_dist: Float[Tensor, "K N"]) -> Float[Tensor, "B N"]:
    """``S(x) = −p D²``: the argmax of these logits is the Fréchet mean (the paper's LokiExact)."""
    return -frechet_scores(probs, sq_dist)


def project_simplex(x: Float[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """The nearest point of the probability simplex to each row, exactly, all rows at once."""
    falling = x.sort(1, descending=True).values
    excess = (falling.cumsum(1) - 1) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype, device=x.device)
    support = (falling > excess).sum(1, keepdim=True)
    return (x - excess.gather(1, support - 1)).clamp(min=0)


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, through: Tensor, estimator: Estimator, eta: float) -> Tensor:
        del through  # what takes the gradient
        z = torch.nn.functional.one_hot(scores.argmax(1), scores.shape[1]).to(scores.dtype)
        ctx.save_for_backward(z)
        ctx.estimator, ctx.eta = estimator, eta
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor, None, None]:
        (z,), (g,) = ctx.saved_tensors, gradients
        if ctx.estimator == "polytope":
            return None, z - project_simplex(z - ctx.eta * g), None, None
        return None, g if ctx.estimator == "straight-through" else -g, None, None


def decode(
    scores: Float[Tensor, "B N"],
    estimator: Estimator = "straight-through",
    *,
    eta: float = 0.01,
    through: Float[Tensor, "B N"] | None = None,
) -> Float[Tensor, "B N"]:
    """The one-hot prediction ``z = onehot(argmax S)``, with a gradient.

    Parameters
    ----------
    scores
        ``S = −p D²``.
    estimator
        ``straight-through``: g. ``negative-identity``: −g. ``polytope``: ``z − Proj(z − η g)`` on the simplex.
    eta
        η, the step of ``polytope``.
    through
        What gets that gradient: the scores, from where the chain rule takes it on to the probabilities. The authors'
        code gives it to the probabilities themselves, as if D² were the identity (then K = N): pass them here.
    """
    z: Tensor = _Decode.apply(scores.detach(), scores if through is None else through, estimator, eta)
    return z
