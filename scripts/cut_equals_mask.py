"""Prints, for each architecture of the tests, how far the cut model is from the masked one: ours beside Torch-Pruning.

    pip install torch-pruning==1.6.1
    python scripts/cut_equals_mask.py

Half of each group is taken out, drawn at random. "masked" is the model before with everything that makes these channels
set to zero (the weights and biases of a layer's outputs, scale and shift of a norm's); "cut" is the smaller model.
Torch-Pruning is used as its documentation says; heads are told to it, and what a Hugging Face model keeps beside its
weights is left to it, as to ours.
"""

from __future__ import annotations

import copy
import importlib
import logging
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PATIENCE = 90
ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT), str(ROOT / "tests" / "shrink" / "graph")]

from shrink_zoo import ZOO  # noqa: E402

from thrifty.report.tables import print_table  # noqa: E402
from thrifty.shrink.graph import dependency_graph  # noqa: E402
from thrifty.shrink.surgery import arguments, cut, largest_difference, masked  # noqa: E402


def ours(name: str) -> tuple[float, int]:
    """Largest difference of outputs, and parameters of the cut model."""
    model, inputs = ZOO[name]()
    args, kwargs = arguments(inputs)
    graph = dependency_graph(model, *args, **kwargs)
    draw = torch.Generator().manual_seed(0)
    keep = {
        group.name: torch.randperm(group.units, generator=draw)[: max(group.units // 2, 1)].sort().values
        for group in graph.prunable
    }
    smaller = cut(model, keep, graph)
    with torch.no_grad():
        difference = largest_difference(masked(model, keep, graph)(*args, **kwargs), smaller(*args, **kwargs))
    return difference, sum(p.numel() for p in smaller.parameters())


def theirs(name: str) -> tuple[float, int]:
    """The same of Torch-Pruning."""
    torch_pruning: Any = importlib.import_module("torch_pruning")
    model, inputs = ZOO[name]()
    args, kwargs = arguments(inputs)
    zeroed = copy.deepcopy(model)
    names = {module: path for path, module in model.named_modules()}
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", 0)
    projections = ("q_proj", "k_proj", "v_proj", "query", "key", "value")
    attention = {m: heads for m, path in names.items() if path.rpartition(".")[2] in projections and heads}
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        inputs,
        importance=torch_pruning.importance.RandomImportance(),
        pruning_ratio=0.5,
        ignored_layers=[last],
        num_heads=attention,
        prune_num_heads=bool(attention),
        head_pruning_ratio=0.5 if attention else 0.0,
        output_transform=lambda output: getattr(output, "logits", output).sum(),
    )
    for group in pruner.step(interactive=True):
        for dependency, index in group:
            target = (
                zeroed.get_submodule(names[dependency.target.module]) if dependency.target.module in names else None
            )
            if "out_channels" in dependency.handler.__name__ and target is not None:
                _zero(target, index)
        group.prune()
    with torch.no_grad():
        difference = largest_difference(zeroed(*args, **kwargs), model(*args, **kwargs))
    return difference, sum(p.numel() for p in model.parameters())


@torch.no_grad()
def _zero(module: nn.Module, index: list[int]) -> None:
    for parameter in (getattr(module, "weight", None), getattr(module, "bias", None)):
        if isinstance(parameter, Tensor):
            parameter[index] = 0


def _said(way: str, name: str) -> str:
    """What one way gives for one architecture, in a process of its own: some of them never end."""
    try:
        done = subprocess.run(
            [sys.executable, __file__, way, name], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return f"does not end within {PATIENCE} s"
    if done.returncode:
        return "fails: " + done.stderr.strip().splitlines()[-1][:70]
    return done.stdout.strip()


def main() -> None:
    """Prints the table, or one entry of it."""
    logging.disable()
    warnings.simplefilter("ignore")
    if len(sys.argv) == 3:
        difference, parameters = {"ours": ours, "theirs": theirs}[sys.argv[1]](sys.argv[2])
        print(f"{difference:.1e} ({parameters:,} left)")
        return
    rows = []
    for name in ZOO:
        parameters = sum(p.numel() for p in ZOO[name]()[0].parameters())
        row = {"architecture": name, "parameters": f"{parameters:,}", "ours": _said("ours", name)}
        rows.append(row | {"Torch-Pruning": _said("theirs", name)})
    print_table(rows, title="largest difference between the cut and the masked model")


if __name__ == "__main__":
    main()
