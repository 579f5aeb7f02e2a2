"""Rectangles of pictures blotted out, as BECLR's student sees them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

ATTEMPTS = 10
"""Rectangles that may fail one after the other before a picture's mask is taken as it is."""
ASPECT = 0.3
"""The flattest rectangle; the steepest is its inverse."""


def block_masks(
    count: int, height: int, width: int, ratio: float, spread: float, generator: torch.Generator | None = None
) -> Bool[Tensor, "N H W"]:
    """Rectangles of patches that cover about a share of each picture, as in BEiT; all pictures at once.

    Parameters
    ----------
    count
        N.
    height, width
        Patches.
    ratio, spread
        The share of a picture is drawn evenly from ``ratio ± spread``, within [0, 1].
    generator
        Where the random numbers come from.

    Returns
    -------
    Tensor
        True where a patch is masked. A rectangle that would cover more than the share is not drawn, so masks may be
        a little smaller.

    References
    ----------
    Bao et al., BEiT, 2021, arXiv 2106.08254, Algorithm 1.
    """

    def uniform() -> Tensor:
        return torch.rand(count, generator=generator)

    aim = (ratio + spread * (2 * uniform() - 1)).clamp(0, 1) * height * width
    smallest = float((min(height, width) // 3) ** 2)
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    covered, failed = torch.zeros(count), torch.zeros(count, dtype=torch.int64)
    while (going := (covered < aim) & (failed < ATTEMPTS)).any():
        left = aim - covered
        area = smallest + (left - smallest) * uniform()
        steepness = torch.exp(math.log(ASPECT) * (2 * uniform() - 1))
        high, wide = (area * steepness).sqrt().round(), (area / steepness).sqrt().round()
        top = (uniform() * (height - high + 1)).floor().view(-1, 1, 1)
        start = (uniform() * (width - wide + 1)).floor().view(-1, 1, 1)
        block = (rows >= top) & (rows < top + high.view(-1, 1, 1))
        block = block & (columns >= start) & (columns < start + wide.view(-1, 1, 1)) & ~masks
        new = block.sum((1, 2))
        drawn = going & (high < height) & (wide < width) & (new > 0) & (new <= left)
        masks |= block & drawn.view(-1, 1, 1)
        covered += new * drawn
        failed = torch.where(drawn, 0, failed + 1)
    return masks


def blotted(pictures: Float[Tensor, "N C H W"], masks: Bool[Tensor, "N h w"], patch: int) -> Float[Tensor, "N C H W"]:
    """The pictures with masked patches at zero; what is beyond the last whole patch stays."""
    pixels = masks.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    missing = (pictures.shape[3] - pixels.shape[2], pictures.shape[2] - pixels.shape[1])
    pixels = torch.nn.functional.pad(pixels, (0, missing[0], 0, missing[1]))
    return pictures.masked_fill(pixels.unsqueeze(1).to(pictures.device), 0.0)
