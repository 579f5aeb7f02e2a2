"""How much each weight matters to a set of examples: diagonal Fisher information and gradient magnitude."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError
from thrifty.forget.base import (
    Objective,
    check_finite,
    check_inputs,
    check_labels,
    device_of,
    logits,
    trainable,
)
from thrifty.forget.data import Batch, Inputs, Labelled
from thrifty.lm.backbone import evaluating

# Per-example gradients of this many bytes are held at once.
_ROOM = 256 * 2**20
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Importances:
    """The importance of every weight for one set, with how it was measured.

    Parameters
    ----------
    values
        Parameter name to importance, float32, of the parameter's shape, at least 0.
    examples
        How many examples the set had.
    batch_size
        Examples of the largest batch.
    measure
        What was measured, such as ``"squared gradient of mini-batches"``; only equal measures compare.
    """

    values: dict[str, Tensor]
    examples: int
    batch_size: int
    measure: str

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, so that the data need not be kept."""
        save_tree(Path(path), {**vars(self)})

    @classmethod
    def load(cls, path: str | Path) -> Importances:
        """Reads what :meth:`save` wrote.

        Raises
        ------
        InputError
            When the file is damaged or holds something else.
        """
        tree = load_tree(Path(path))
        try:
            return cls(**tree)
        except TypeError as error:
            raise InputError(f"{path} holds no importances: give a file that Importances.save wrote") from error


def importance(
    model: nn.Module,
    batches: Iterable[Batch],
    objective: Objective,
    *,
    power: int = 2,
    per_sample: bool = False,
) -> Importances:
    r"""Mean of :math:`|\partial\,\text{objective} / \partial\theta_i|^p` over mini-batches, or over examples.

    Measured in evaluation mode and accumulated in float32, with one backward pass a batch. A short last batch
    counts like any other. Frozen parameters, and those the objective does not reach, get 0.

    Parameters
    ----------
    model
        A classifier or a causal language model.
    batches
        The set.
    objective
        ``objective(model, batch)``: a scalar that is a mean over the batch.
    power
        2 for the diagonal of the empirical Fisher information, 1 for gradient magnitude.
    per_sample
        ``False``: the gradient of each batch's mean, as the method's authors do; it shrinks with the batch size.
        ``True``: the mean over examples of their own gradients' powers.

    Returns
    -------
    Importances
        Of every named parameter.

    Raises
    ------
    InputError
        For labels that are no classes of the model, inputs that are not finite, or no trainable parameter.
    NonFiniteError
        When the gradients are not finite although the inputs are.
    """
    weights = trainable(model)
    totals = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in model.named_parameters()}
    gradients = _per_sample if per_sample else _per_batch
    terms = examples = largest = classes = 0
    with evaluating(model):
        for given in batches:
            check_inputs(given, examples)
            batch = given.to(device_of(model))
            if isinstance(batch, Labelled):
                classes = classes or _classes(model, batch.x)
                if batch.y is not None:
                    check_labels(batch.y, classes, examples)
            terms += gradients(model, weights, batch, objective, power, totals)
            examples += len(batch)
            largest = max(largest, len(batch))
    if not terms:
        raise InputError("there are no examples to measure importances on: the set is empty")
    for total in totals.values():
        check_finite(total.div_(terms), "the importance of a weight")
    kind = "squared gradient" if power == 2 else "gradient magnitude"
    what = getattr(objective, "__name__", "objective").replace("_", " ")
    return Importances(totals, examples, largest, f"{kind} of {what}, {'examples' if per_sample else 'mini-batches'}")


@torch.no_grad()
def _classes(model: nn.Module, x: Inputs) -> int:
    first = {k: v[:1] for k, v in x.items()} if isinstance(x, dict) else x[:1]
    return logits(model, first).shape[1]


def _add(total: Tensor, gradient: Tensor, power: int) -> None:
    # In float32 before the square: half precision would underflow.
    exact = gradient.detach().float()
    total.addcmul_(exact, exact) if power == 2 else total.add_(exact.abs())


def _per_batch(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batch: Batch,
    objective: Objective,
    power: int,
    totals: Mapping[str, Tensor],
) -> int:
    found = torch.autograd.grad(objective(model, batch), list(weights.values()), allow_unused=True)
    for name, gradient in zip(weights, found, strict=True):
        if gradient is not None:
            _add(totals[name], gradient, power)
    return 1


def _per_sample(
    model: nn.Module,
    weights: Mapping[str, nn.Parameter],
    batch: Batch,
    objective: Objective,
    power: int,
    totals: Mapping[str, Tensor],
) -> int:
    size = sum(weight.numel() for weight in weights.values()) * 4
    group = min(len(batch), _ROOM // size)
    if group < 2 or not isinstance(batch, Labelled):
        # One example's gradient fills the room there is: batching would only move the same work.
        for index in range(len(batch)):
            _per_batch(model, weights, batch.rows(torch.tensor([index])), objective, power, totals)
        return len(batch)
    detached = {name: weight.detach() for name, weight in weights.items()}
    each = vmap(
        grad(partial(_of_one, model, objective)),
        in_dims=(None, 0, None if batch.y is None else 0),
        randomness="different",
    )
    for rows in torch.arange(len(batch)).split(group):
        part = batch.rows(rows)
        with sdpa_kernel(SDPBackend.MATH):  # fused attention has no batching rule and would run a sample at a time
            found = each(detached, part.x, part.y)
        for name, gradient in found.items():
            exact = gradient.float()
            totals[name].add_((exact.square() if power == 2 else exact.abs()).sum(0))
    return len(batch)


def _of_one(model: nn.Module, objective: Objective, weights: Weights, x: Inputs, y: Tensor | None) -> Tensor:
    one = {k: v[None] for k, v in x.items()} if isinstance(x, dict) else x[None]
    return objective(_With(model, weights), Labelled(one, None if y is None else y[None]))


class _With(nn.Module):
    """A model as it would be with other weights."""

    def __init__(self, model: nn.Module, weights: Weights) -> None:
        super().__init__()
        # Kept in a tuple, so that the model does not become a part of this module.
        self._held: tuple[nn.Module, Weights] = (model, weights)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        model, weights = self._held
        return functional_call(model, dict(weights), args, kwargs)


def named(importances: Importances | Weights) -> Weights:
    """The tensors by parameter name, of :class:`Importances` or of a plain dictionary."""
    return importances.values if isinstance(importances, Importances) else importances
