"""FLAP and DSnoT the plain way: hooks on all layers of the whole model, run a batch of windows at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.shrink.decoder import decoder_layers, matrices, matrix
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP, mean_replacement_bias
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.structured import Part, choose, cut_parts


class Recorder(InputStatistics):
    """What a hook records of one map, as one writes it down: everything in float32 at once."""

    def see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """The hook."""
        x = inputs[0].float()
        variance, mean = torch.var_mean(x, 1, correction=0)
        self.take_in(variance, mean, x.shape[1])


@torch.no_grad()
def _run(model: Any, windows: Tensor, batch: int, maps: dict[str, nn.Module]) -> dict[str, Recorder]:
    """Statistics of some maps from the model's own forward pass, logits and all."""
    found = {name: Recorder() for name in maps}
    handles = [module.register_forward_pre_hook(found[name].see) for name, module in maps.items()]
    for part in windows.split(batch):
        model(input_ids=part, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def plain_flap(method: FLAP, model: Any, windows: Tensor, batch: int, *, inplace: bool = False) -> Any:
    """FLAP with the statistics of all layers from one pass of the whole model."""
    changed = model if inplace else copy.deepcopy(model)
    modules = [module for layer in decoder_layers(changed) for module in layer.parts.values()]
    found = _run(changed, windows, batch, {str(at): module.output for at, module in enumerate(modules)})
    parts = [Part.scored(module, method.score, found[str(at)]) for at, module in enumerate(modules)]
    total = sum(weight.numel() for weight in matrices(changed))
    bias = mean_replacement_bias if method.compensate else None
    cut_parts(changed, parts, choose(parts, total, method.sparsity, method.structure, method.remove_heads), bias)
    return changed


@torch.no_grad()
def plain_dsnot(
    method: DSnoT, model: Any, windows: Tensor, batch: int, *, most: int | None = None, inplace: bool = False
) -> Any:
    """DSnoT with the whole model run again for each layer, since its inputs follow from the layers pruned before.

    ``most`` ends after so many layers.
    """
    changed = model if inplace else copy.deepcopy(model)
    for layer in decoder_layers(changed)[:most]:
        found = _run(changed, windows, batch, layer.maps)
        for name, module in layer.maps.items():
            weight = matrix(module)
            weight.masked_fill_(method.mask(weight.float(), found[name]), 0)
    return changed
