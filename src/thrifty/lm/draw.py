"""Drawing tokens from logits: one uniform number per row, no noise over the vocabulary, no sort unless asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.lm.head import LogitTransform

_BLOCK = 256  # entries under one number of the coarse cumulative sum
_SCRATCH_ELEMENTS = 2**20  # float32 probabilities at once on a CPU, so that they stay in its cache
_TOP = 2048  # candidates looked at for top-p before the whole row is sorted


@dataclass(frozen=True)
class Draw:
    r"""The distribution that tokens are drawn from.

    Logits are divided by the temperature; then only the ``top_k`` most likely tokens stay; then, of what
    stays, the smallest set of most likely tokens whose renormalised probability reaches ``top_p``.

    Parameters
    ----------
    temperature
        Greater than 0.
    top_k
        At least 1; None keeps the whole vocabulary. Among equal logits at the border the lower ids stay.
    top_p
        In (0, 1]; None or 1 keeps all.
    greedy
        Take the most likely token; the distribution is then that of temperature 1, so that the
        log-probabilities are the model's own.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be greater than 0, got {self.temperature}: use greedy=True for 0")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1 (or None for all tokens), got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be in (0, 1], got {self.top_p}")

    def __call__(
        self, logits: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"], transform: LogitTransform
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """Draw one token per row.

        Parameters
        ----------
        logits
            The head's products, of any float dtype.
        uniforms
            Numbers in [0, 1), float64; not looked at when greedy.
        transform
            What the model does to these products; its temperature is replaced by this one's.

        Returns
        -------
        tuple
            Token ids, and their log-probabilities under the distribution drawn from (float32).
        """
        temperature = 1.0 if self.greedy else self.temperature
        transform = LogitTransform(transform.scale, transform.softcap, temperature)
        ids = torch.empty(len(logits), dtype=torch.long, device=logits.device)
        logps = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        for part, z in _scratch(logits):
            transform.apply_(z)
            if self.greedy:
                drawn = z.argmax(1)
                logps[part] = torch.log_softmax(z, 1).gather(1, drawn[:, None]).squeeze(1)
            elif self.top_k is None and (self.top_p is None or self.top_p == 1.0):
                p = torch.softmax(z, 1, out=z)
                drawn = inverse_cdf(p, uniforms[part])
                logps[part] = p.gather(1, drawn[:, None]).squeeze(1).log_()
            else:
                drawn, logps[part] = self._truncated(z, uniforms[part])
            ids[part] = drawn
        return ids, logps

    def _truncated(self, z: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        vocabulary = z.shape[1]
        count = min(vocabulary, self.top_k if self.top_k is not None else _TOP)
        best, ids = z.topk(count, dim=1)
        total = best.logsumexp(1) if self.top_k is not None else z.logsumexp(1)
        p = (best - total[:, None]).double().exp_()
        if self.top_p is not None and self.top_p < 1.0:
            kept = p.cumsum(1).sub_(p) < self.top_p
            if count < vocabulary and self.top_k is None and bool(kept[:, -1].any()):
                best, ids = z.sort(dim=1, descending=True)
                p = (best - total[:, None]).double().exp_()
                kept = p.cumsum(1).sub_(p) < self.top_p
            p = p * kept
        p = p / p.sum(1, keepdim=True)
        rank = inverse_cdf(p, uniforms)[:, None]
        return ids.gather(1, rank).squeeze(1), p.gather(1, rank).squeeze(1).log_().float()


def inverse_cdf(p: Float[Tensor, "row outcome"], uniforms: Float[Tensor, " row"]) -> Int[Tensor, " row"]:
    r"""Draw an outcome per row by inverting the cumulative sum in two levels.

    .. math:: y = \min \{ v : \textstyle\sum_{w \le v} p_w > u \sum_w p_w \}

    The coarse level sums blocks of 256 outcomes, the fine level the one block that is hit; both
    accumulate in float64. The draw is exact, and an outcome of probability 0 is never drawn.

    Parameters
    ----------
    p
        Non-negative weights, not all 0 in any row; they need not sum to 1.
    uniforms
        In [0, 1), float64.
    """
    rows, outcomes = p.shape
    blocks = -(-outcomes // _BLOCK)
    if blocks * _BLOCK != outcomes:
        p = torch.nn.functional.pad(p, (0, blocks * _BLOCK - outcomes))
    fine = p.view(rows, blocks, _BLOCK)
    coarse = fine.sum(2).double().cumsum_(1)
    aim = uniforms.double() * coarse[:, -1]
    block = _first_above(coarse, aim)
    below = coarse.gather(1, (block - 1).clamp(min=0)[:, None]).squeeze(1) * (block > 0)
    inside = fine[torch.arange(rows, device=p.device), block].double().cumsum_(1)
    return block * _BLOCK + _first_above(inside, aim - below)


def _first_above(cumulative: Tensor, aim: Tensor) -> Tensor:
    """First index where ``cumulative`` exceeds ``aim``; rounding at the end gives the last that has weight."""
    last = (1 - torch.finfo(cumulative.dtype).eps) * cumulative[:, -1]
    return torch.searchsorted(cumulative, torch.minimum(aim, last)[:, None], right=True).squeeze(1)


def _scratch(logits: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield float32 copies of a few rows at a time, in one reused buffer."""
    rows, vocabulary = logits.shape
    step = rows if logits.device.type != "cpu" else max(1, _SCRATCH_ELEMENTS // vocabulary)
    buffer = torch.empty((min(step, rows), vocabulary), dtype=torch.float32, device=logits.device)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        yield part, buffer[: part.stop - first].copy_(logits[part])


class RowUniforms:
    """Uniform numbers that depend on the seed, the row and the step only.

    Not on the batch a row is in, nor on which rows have ended: so a sample does not change with the
    batch size.

    Parameters
    ----------
    seed
        Of all rows.
    rows
        How many there are in all.
    """

    def __init__(self, seed: int, rows: int) -> None:
        self.seed, self.rows = seed, rows
        self._generator = torch.Generator()

    def __call__(self, step: int, rows: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
        """Numbers in [0, 1), float64, for these rows (indices on the CPU) at this step."""
        # Seeds a large odd number apart: consecutive ones give related streams in a Mersenne twister.
        self._generator.manual_seed((self.seed + step * 0x9E3779B97F4A7C15) % 2**63)
        return torch.rand(self.rows, generator=self._generator, dtype=torch.float64)[rows]
