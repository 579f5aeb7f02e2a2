"""Finding what can be cut and cutting it, beside Torch-Pruning, on models of everyday size with random weights.

Both find the groups, keep the half of each with the largest norms, and cut. Ours also runs the result without values
to see that its code follows. Torch-Pruning deletes channels of the model it is given, which is a copy made
outside of the measured time; ours gives back a copy.
"""

from __future__ import annotations

import copy
import importlib
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.bench._measure import paired, row
from thrifty.shrink.graph.build import dependency_graph
from thrifty.shrink.graph.groups import DependencyGraph, Keep
from thrifty.shrink.surgery import cut

MOST_TIME = 1.0


def graph_rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measures on transformers' ResNet-50 and ViT-B, one thread.

    Parameters
    ----------
    quick
        One pair of runs instead of five.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        for name, build in (("ResNet-50", _resnet), ("ViT-B", _vit)):
            model, x = build(), torch.randn(1, 3, 224, 224)
            _ours(model, x)  # what is done once in a process is nobody's
            pairs = paired(partial(_ours, model, x), partial(_theirs, model, x), 1 if quick else 5)
            rows.append(row(f"{name}: graph, groups and cut / Torch-Pruning, time", pairs, "s", most=MOST_TIME))
        return rows
    finally:
        torch.set_num_threads(threads)


def _resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    model: nn.Module = ResNetForImageClassification(ResNetConfig()).eval()
    return model


def _vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    model: nn.Module = ViTForImageClassification(ViTConfig()).eval()
    return model


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _ours(model: nn.Module, x: Tensor) -> float:
    def work() -> nn.Module:
        graph = dependency_graph(model, x)
        return cut(model, half(graph, model), graph)

    return _seconds(work)


@torch.no_grad()
def half(graph: DependencyGraph, model: nn.Module) -> Keep:
    """The half of each group whose producers have the largest norms."""
    parameters = dict(model.named_parameters())
    keep = {}
    for group in graph.prunable:
        squares = torch.zeros(group.units)
        for part in group.producers:
            squares += part.gather(parameters[part.name]).square().sum(1)
        keep[group.name] = squares.topk(max(group.units // 2, 1)).indices
    return keep


def _theirs(model: nn.Module, x: Tensor) -> float:
    torch_pruning: Any = importlib.import_module("torch_pruning")  # untyped, and not always there

    copied = copy.deepcopy(model)
    last = [module for module in copied.modules() if isinstance(module, nn.Linear) and module.out_features == 2]
    heads = {
        module: 12
        for name, module in copied.named_modules()
        if name.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj", "query", "key", "value")
    }

    def work() -> None:
        pruner = torch_pruning.pruner.MetaPruner(
            copied,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=last,
            num_heads=heads,
            prune_num_heads=bool(heads),
            head_pruning_ratio=0.5,
            output_transform=lambda output: output.logits,
        )
        pruner.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _seconds(work)
