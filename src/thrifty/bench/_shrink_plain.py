"""FLAP and DSnoT the plain way: hooks on all layers of the whole model, run a batch of windows at a time."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.shrink.decoder import decoder_layers, matrix
from thrifty.shrink.decoder_surgery import cut
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP, mean_replacement_bias
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.structured import Part, choose


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
    layers = decoder_layers(changed)
    modules = [
        (number, module)
        for number, layer in enumerate(layers)
        for module in (layer.attention, layer.feed_forward)
        if module is not None
    ]
    found = _run(changed, windows, batch, {str(at): module.output for at, (_, module) in enumerate(modules)})
    parts = []
    for at, (number, module) in enumerate(modules):
        heads = getattr(module, "queries", 0)
        channels = heads * module.head_size if heads else 1  # type: ignore[union-attr]
        score = method.score(matrix(module.output).float(), found[str(at)], bool(heads))
        units = score.unflatten(0, (-1, channels)).mean(1)
        parts.append(Part(number, module, units, channels, module.cost, found[str(at)].mean, heads))
    total = sum(matrix(module).numel() for layer in layers for module in layer.maps.values())
    for part, keep in zip(parts, choose(parts, total, method.sparsity, method.structure, 0), strict=True):
        weight = matrix(part.module.output).float()
        cut(part.module, keep, mean_replacement_bias(weight, part.mean, ~part.channels(keep)))
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
