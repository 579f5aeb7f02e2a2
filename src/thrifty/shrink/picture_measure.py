"""How large, how fast and how good a classifier of pictures is."""

from __future__ import annotations

import time

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.threads import one_thread
from thrifty.lm.backbone import evaluating
from thrifty.shrink.graph.build import dependency_graph
from thrifty.shrink.pictures import Pictures, accuracy

_BATCH = 64


def size(model: nn.Module, x: Float[Tensor, "batch channels height width"]) -> dict[str, float]:
    """What a model holds and does: ``parameters`` in millions, ``gflops`` for one picture.

    Parameters
    ----------
    model
        Any module.
    x
        At least one picture as it takes them.
    """
    with evaluating(model):
        operations = dependency_graph(model, x[:1]).flops()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "gflops": operations / 1e9,
    }


@torch.no_grad()
def latency(model: nn.Module, x: Float[Tensor, "batch channels height width"], runs: int = 15) -> float:
    """Milliseconds of a forward pass over a batch on one thread: the fastest of several, as others can only slow it."""
    found = []
    with evaluating(model), one_thread():
        for _ in range(runs + 1):
            started = time.perf_counter()
            output = model(x)
            float((output if isinstance(output, Tensor) else output.logits)[0, 0])  # waits for the device
            found.append(time.perf_counter() - started)
    return 1e3 * min(found[1:])


def measured(model: nn.Module, test: Pictures) -> dict[str, float]:
    """All of the above and the ``accuracy`` in one row.

    Parameters
    ----------
    model
        A classifier.
    test
        Pictures with their classes; ``milliseconds`` are those of a batch of up to 64 of them.
    """
    x = test.inputs(torch.arange(min(_BATCH, len(test)))).to(next(model.parameters()).device)
    return {"accuracy": accuracy(model, test)} | size(model, x) | {"milliseconds": latency(model, x)}
