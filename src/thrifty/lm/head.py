"""The language-model head as one autograd function that never holds the logits of all tokens.

Logits of ``N`` tokens over a vocabulary of ``V`` are by far the largest tensor of a language model's
step. The forward pass keeps of them only the log-sum-exp of each token; the backward pass computes
each chunk's logits again, in the model's own dtype, turns them in place into their gradient, and adds
that chunk's share to the gradient of the head. Float32 copies exist for a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK_ELEMENTS = 2**24  # logits held at once; 32 MiB in bfloat16
_BLOCK_ELEMENTS = 2**20  # logits in float32 at once on a CPU: 4 MiB stay in its cache
_LEAST_ROWS = 64  # fewer rows make the matrix products of a chunk slow


@dataclass(frozen=True)
class LogitTransform:
    r"""What stands between the head's product and the soft-max.

    .. math:: z = \frac{1}{\tau}\, c \tanh\!\left(\frac{s\,(W h + b)}{c}\right)

    Parameters
    ----------
    scale
        :math:`s`: Cohere's ``logit_scale``, the reciprocal of Granite's ``logits_scaling``.
    softcap
        :math:`c`: Gemma 2's ``final_logit_softcapping``; None leaves the tanh out.
    temperature
        :math:`\tau`, greater than 0.
    """

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform float32 logits in place."""
        if self.softcap is None:
            factor = self.scale / self.temperature
            return logits if factor == 1.0 else logits.mul_(factor)
        return logits.mul_(self.scale / self.softcap).tanh_().mul_(self.softcap / self.temperature)

    def apply(self, logits: Tensor) -> Tensor:
        """Transform logits, out of place and differentiable."""
        if self.softcap is None:
            return logits * (self.scale / self.temperature)
        return torch.tanh(logits * (self.scale / self.softcap)) * (self.softcap / self.temperature)

    def derivative(self, transformed: Tensor) -> Tensor | float:
        """Derivative of the transform, from its result."""
        slope = self.scale / self.temperature
        if self.softcap is None:
            return slope
        tanh = transformed * (self.temperature / self.softcap)
        return (1 - tanh.square_()).mul_(slope)


def head_logps(
    hidden: Float[Tensor, "token width"],
    weight: Float[Tensor, "vocab width"],
    bias: Float[Tensor, " vocab"] | None,
    targets: Int[Tensor, " token"],
    transform: LogitTransform | None = None,
    *,
    chunk: int | None = None,
    entropy: bool = False,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"] | None]:
    r"""Log-probabilities (and entropies) of tokens from hidden states, in chunks.

    .. math:: \log p_n = z_{n,y_n} - \log \sum_v e^{z_{n,v}}, \qquad
        H_n = \log \sum_v e^{z_{n,v}} - \sum_v p_{n,v} z_{n,v}

    with :math:`z = ` :class:`LogitTransform` of :math:`W h + b`. Differentiable in ``hidden``,
    ``weight`` and ``bias``, for both results.

    Parameters
    ----------
    hidden
        Last hidden states, of the model's dtype.
    weight, bias
        The head. Products run in its dtype (under autocast, in autocast's); the log-sum-exp is float32.
    targets
        Token ids in ``[0, vocab)``.
    transform
        Scaling, soft cap and temperature; None is the identity.
    chunk
        Tokens whose logits exist at once; None chooses about 32 MiB of them in bfloat16.
    entropy
        Whether to compute the entropies too.

    Returns
    -------
    tuple
        Log-probabilities and, if asked for, entropies in nats; float32, shape ``[token]``.
    """
    transform = transform or LogitTransform()
    chunk = chunk or max(_LEAST_ROWS, _CHUNK_ELEMENTS // weight.shape[0])
    logps, entropies = _HeadLogps.apply(hidden, weight, bias, targets, transform, chunk, entropy)
    return logps, entropies if entropy else None


class _HeadLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.dtype = _product_dtype(weight)
        ctx.transform, ctx.chunk, ctx.entropy = transform, chunk, entropy
        logps = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        entropies = torch.empty_like(logps) if entropy else logps.new_empty(0)
        lse = torch.empty_like(logps)
        cast_weight = weight.to(ctx.dtype)
        for start, states, logits in _logit_chunks(hidden, cast_weight, bias, chunk, 1.0):  # noqa: B007 (not needed forwards)
            for rows, z in _blocks(logits):
                part = slice(start + rows.start, start + rows.stop)
                transform.apply_(z)
                picked = z.gather(1, targets[part, None]).squeeze(1)
                top = z.amax(1)
                # The most likely entry's probability is exp(top - lse): one fused soft-max and one
                # maximum are half the time of exponentials, their sum and its logarithm.
                p = torch.softmax(z, 1)
                lse[part] = top - p.amax(1).log_()
                logps[part] = picked - lse[part]
                if entropy:
                    entropies[part] = lse[part] - torch.linalg.vecdot(p, z)
        ctx.save_for_backward(hidden, weight, bias, targets, lse, logps, entropies)
        return logps, entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, lse, logps, entropies = ctx.saved_tensors
        grad_logps, grad_entropies = upstream
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        cast_weight = weight.to(ctx.dtype)
        grad_hidden = torch.empty_like(hidden) if for_hidden else None
        grad_weight = torch.zeros_like(cast_weight) if for_weight else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if for_bias else None
        transform: LogitTransform = ctx.transform
        simple = transform.softcap is None and not ctx.entropy
        slope = transform.scale / transform.temperature
        for start, states, logits in _logit_chunks(hidden, cast_weight, bias, ctx.chunk, slope if simple else 1.0):
            part = slice(start, start + len(states))
            if simple:
                # The gradient of row n is -g_n (p_n - onehot_n): the factor g_n goes to the narrow side
                # of each product, so that the wide side is a plain soft-max.
                torch.softmax(logits, 1, out=logits)
                at_target = torch.arange(len(states), device=logits.device), targets[part]
                logits.index_put_(at_target, torch.expm1(logps[part]).to(logits.dtype))
                outer = (grad_logps[part] * -slope)[:, None]
                states = (states * outer).to(logits.dtype)
            else:
                outer = None
                for rows, z in _blocks(logits):
                    at = slice(start + rows.start, start + rows.stop)
                    gradient = _logit_gradient(
                        transform,
                        transform.apply_(z),
                        targets[at],
                        lse[at],
                        grad_logps[at],
                        entropies[at] if ctx.entropy else None,
                        grad_entropies[at] if ctx.entropy else None,
                    )
                    logits[rows].copy_(gradient)
            if grad_hidden is not None:
                product = logits @ cast_weight
                grad_hidden[part] = product if outer is None else product * outer
            if grad_weight is not None:
                grad_weight.addmm_(logits.t(), states)
            if grad_bias is not None:
                grad_bias += logits.sum(0) if outer is None else outer.to(logits.dtype)[:, 0] @ logits
        return (
            grad_hidden,
            grad_weight.to(weight.dtype) if grad_weight is not None else None,
            grad_bias.to(bias.dtype) if grad_bias is not None else None,
            None,
            None,
            None,
            None,
        )


def _logit_gradient(
    transform: LogitTransform,
    z: Tensor,
    targets: Tensor,
    lse: Tensor,
    grad_logps: Tensor,
    entropies: Tensor | None,
    grad_entropies: Tensor | None,
) -> Tensor:
    """Gradient in the head's product: ``(g (onehot - p) - g_H p (log p + H)) dz``."""
    slope = transform.derivative(z)
    log_p = z - lse[:, None]
    p = log_p.exp()
    weights = grad_logps[:, None]
    if entropies is not None and grad_entropies is not None:
        weights = log_p.add_(entropies[:, None]).mul_(grad_entropies[:, None]).add_(grad_logps[:, None])
    gradient = p.mul_(weights).neg_().scatter_add_(1, targets[:, None], grad_logps[:, None])
    return gradient.mul_(slope)


def _product_dtype(weight: Tensor) -> torch.dtype:
    kind = weight.device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def _logit_chunks(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, chunk: int, factor: float
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (first row, states, ``factor`` times logits); the next chunk uses the logits' memory again.

    First-touched memory costs more than the product that fills it, which is why one buffer serves all.
    """
    hidden = hidden.detach()
    weight = weight.detach()
    buffer = weight.new_empty((min(chunk, len(hidden)), len(weight)))
    shift = weight.new_zeros(1) if bias is None else bias.detach().to(weight.dtype)
    with torch.autocast(weight.device.type, enabled=False):
        for start in range(0, len(hidden), chunk):
            states = hidden[start : start + chunk].to(weight.dtype)
            logits = buffer[: len(states)]
            beta = 0.0 if bias is None else factor
            torch.addmm(shift, states, weight.t(), beta=beta, alpha=factor, out=logits)
            yield start, states, logits


def _blocks(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield float32 copies of a few rows of ``logits`` at a time, in one reused buffer."""
    rows, vocabulary = logits.shape
    step = rows if logits.device.type != "cpu" else max(1, _BLOCK_ELEMENTS // vocabulary)
    buffer = torch.empty((min(step, rows), vocabulary), dtype=torch.float32, device=logits.device)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        yield part, buffer[: part.stop - part.start].copy_(logits[part])
