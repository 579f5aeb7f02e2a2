"""The representation of any classifier: what its last layer is given."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError, nearest
from thrifty.forget.base import check_inputs, device_of, logits
from thrifty.forget.data import Batch, Inputs, Labelled, Source, stream
from thrifty.lm.backbone import evaluating


class Representation:
    """Maps inputs to what a classifier's head is given, flattened to one vector an example.

    Parameters
    ----------
    model
        A classifier; whoever calls the representation runs it as it is then.
    head
        The layer whose input is the representation, as :func:`find_head` names it.

    Raises
    ------
    InputError
        When the model has no such layer.
    """

    def __init__(self, model: nn.Module, head: str) -> None:
        self.model, self.head = model, _layer(model, head)

    def __call__(self, x: Inputs) -> Float[Tensor, "batch features"]:
        """The representations of a batch, in float32; gradients flow through them."""
        given: list[Tensor] = []

        def keep(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            given.extend(part for part in (*arguments, *named.values()) if isinstance(part, Tensor))

        handle = self.head.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            logits(self.model, x)
        finally:
            handle.remove()
        if len(given) != 1:
            raise InputError(
                f"the head, a {type(self.head).__name__}, is given {len(given)} tensors when the model runs: name a "
                "layer (head) that runs once, on one tensor"
            )
        return given[0].flatten(1).float()


def find_head(model: nn.Module, x: Inputs) -> str:
    """The name of the linear layer whose output is the logits.

    Parameters
    ----------
    model
        A classifier, of any library.
    x
        Some of its inputs.

    Raises
    ------
    InputError
        When there is none: the logits may be a mean of several heads, or come from a convolution.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    made: dict[str, Tensor] = {}

    def note(name: str) -> Any:
        def keep(*given: Any) -> None:
            made[name] = given[-1]

        return keep

    handles = [layer.register_forward_hook(note(name)) for name, layer in linear.items()]
    try:
        with evaluating(model), torch.no_grad():
            found = logits(model, x)
    finally:
        for handle in handles:
            handle.remove()
    same = partial(torch.allclose, found, rtol=0.0, atol=0.0, equal_nan=True)
    heads = [name for name, output in made.items() if output.shape == found.shape and same(output.float())]
    if not heads:
        there = ", ".join(f"{name} ({layer.in_features} to {layer.out_features})" for name, layer in linear.items())
        raise InputError(
            f"no linear layer of this {type(model).__name__} gives its {found.shape[1]} logits, so it is not known "
            f"where its representation is; name the layer whose input it is (head); linear layers: {there or 'none'}"
        )
    return heads[-1]


@torch.no_grad()
def representations(
    g: Representation, data: Any, name: str = "data", batch_size: int = 256
) -> Float[Tensor, "N features"]:
    """The representations of all examples.

    Parameters
    ----------
    g
        How they are made.
    data
        Any data of the room but token sequences; labels are not looked at.
    name
        What messages call the data.
    batch_size
        Examples in one pass.

    Raises
    ------
    InputError
        When inputs are not finite, or of a kind that the model does not take.
    """
    found: list[Tensor] = []
    examples = 0
    for batch in stream(data, batch_size, name=name):
        check_inputs(batch, examples)
        found.append(g(_without_labels(batch).to(device_of(g.model)).x))
        examples += len(batch)
    return torch.cat(found)


def inputs_of(source: Source, rows: Tensor) -> Labelled:
    """The examples of those numbers without their labels.

    Raises
    ------
    InputError
        When they are token sequences.
    """
    return _without_labels(source.rows(rows))


def _without_labels(batch: Batch) -> Labelled:
    if not isinstance(batch, Labelled):
        raise InputError("a classifier's inputs are needed, and these data are token sequences of a language model")
    return Labelled(batch.x)


def _layer(model: nn.Module, name: str) -> nn.Module:
    layers = dict(model.named_modules())
    if name not in layers:
        said = nearest(name, layers) or "named_modules() lists them"
        raise InputError(f"this {type(model).__name__} has no layer {name!r}: {said}")
    return layers[name]
