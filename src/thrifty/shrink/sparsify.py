"""Unstructured and n:m sparsity of a decoder, layer after layer, each on what the sparse layers before it give."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.lm.feed_forward import inputs_of
from thrifty.shrink.calibration import calibrate
from thrifty.shrink.decoder import DecoderLayer, decoder_layers, matrix
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.masks import NM

# A layer, a map's name, its weight in float32 and its input's statistics to the new weight.
Decide = Callable[[DecoderLayer, str, Float[Tensor, "out in"], InputStatistics], Float[Tensor, "out in"]]


def sparsify(
    model: nn.Module,
    windows: Int[Tensor, "window token"] | None,
    decide: Decide,
    *,
    n_m: NM | None = None,
    hessian: bool = False,
    batch_size: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Gives every linear map of the decoder layers the weight that ``decide`` says.

    Parameters
    ----------
    model
        A causal language model.
    windows
        Calibration windows; without them, weights are decided upon without statistics (empty ones are given).
    decide
        The new weight, zero where pruned.
    n_m
        The pattern, whose ``m`` must divide the inputs of all maps.
    hessian
        Whether the statistics hold it.
    batch_size
        Windows that run at once.
    inplace
        Change ``model`` itself instead of a copy.

    Raises
    ------
    InputError
        As :func:`thrifty.shrink.calibration.calibrate`; when ``m`` does not divide.
    """
    check_pattern(model, n_m)
    changed = model if inplace else copy.deepcopy(model)

    def visit(number: int, layer: DecoderLayer, found: dict[str, InputStatistics]) -> None:
        del number
        for name, module in layer.maps.items():
            if windows is not None and name not in found:
                continue  # never called, as an expert that no token went to: nothing is known about it
            weight = matrix(module)
            weight.copy_(decide(layer, name, weight.float(), found.get(name) or InputStatistics()))

    if windows is None:
        with torch.no_grad():
            for number, layer in enumerate(decoder_layers(changed)):
                visit(number, layer, {})
    else:
        make = partial(InputStatistics, hessian=hessian)
        calibrate(changed, windows, visit, again=True, statistics=make, batch_size=batch_size)
    return changed


def check_pattern(model: nn.Module, n_m: NM | None) -> None:
    """Raises an :class:`InputError` that names the first map whose inputs ``m`` does not divide."""
    if n_m is None:
        return
    for number, layer in enumerate(decoder_layers(model)):
        for name, module in layer.maps.items():
            if inputs_of(module) % n_m[1]:
                raise InputError(
                    f"blocks of {n_m[1]} do not divide the {inputs_of(module)} inputs of {name} in layer {number}: "
                    "choose another n:m, or sparsity without a pattern"
                )
