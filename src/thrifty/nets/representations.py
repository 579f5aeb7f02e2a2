"""What representations of pictures are like: their size, how evenly they are spread, how many directions they use."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.nets.encoders import evaluating


def spread(z: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    """Root of the dimension times the mean deviation of unit vectors: 1 evenly spread, 0 all in one direction."""
    return functional.normalize(z.float(), dim=1).std(0).mean() * math.sqrt(z.shape[1])


def effective_rank(z: Float[Tensor, "batch features"]) -> Float[Tensor, ""]:
    """How many directions vectors use: the exponential of the entropy of their covariance's eigenvalues.

    Between 1 and the dimension; 1 for vectors that are all the same.
    """
    centred = (z - z.mean(0)).double()
    share = torch.linalg.eigvalsh(centred.T @ centred).clamp(min=0)
    share = share / share.sum().clamp(min=1e-30)
    return torch.special.entr(share).sum().exp()


def feature_size(encoder: nn.Module, example: Float[Tensor, "batch channels height width"]) -> int:
    """How many features an encoder gives for a picture.

    Raises
    ------
    InputError
        When it can't take the pictures, or gives something else than finite numbers for each.
    """
    try:
        with evaluating(encoder):
            out = encoder(example)
    except (RuntimeError, ValueError) as error:
        shape = list(example.shape[1:])
        raise InputError(f"the encoder can't take pictures {shape}: {str(error).splitlines()[0]}") from error
    if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != len(example) or not torch.isfinite(out).all():
        raise InputError("the encoder must give finite features [B, D] for pictures [B, C, H, W]")
    return int(out.flatten(1).shape[1])


def encoded(
    encoder: nn.Module, pictures: UInt8[Tensor, "count channels height width"], batch_size: int = 512
) -> Float[Tensor, "count features"]:
    """Features of pictures 0-255 by a trained encoder, in evaluation mode, on the CPU."""
    device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
    with evaluating(encoder):
        parts = [
            encoder(part.to(device).float().div_(127.5).sub_(1)).flatten(1).float().cpu()
            for part in pictures.split(batch_size)
        ]
    # Out of inference mode, so that a head can be trained on them.
    return torch.cat(parts).clone()
