"""The protocol of the room, and how its methods ask a model.

A classifier is any module that turns inputs into logits ``[B, C]``, by itself or as ``output.logits``. A causal
language model is one of the Hugging Face kind. Which of the two a function deals with follows from its batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.core.run import Run
from thrifty.forget import texts
from thrifty.forget.data import Batch, Inputs, Texts

Forward: TypeAlias = Callable[..., Any]
Objective: TypeAlias = Callable[[nn.Module, Batch], Tensor]


class Forgetter(Protocol):
    """A method of the room: a registered dataclass with ``forget``.

    ``needs`` names the sets that ``forget`` takes beside the model, out of ``forget_set``, ``retain_set``,
    ``full_set`` (both together) and, for language models, ``refusal_set`` (the forget set's prompts, answered by "I do
    not know" and the like). A ``forget`` with a parameter ``run`` gets the :class:`~thrifty.core.run.Run` too;
    :func:`forget_with` gives each method exactly what it takes. ``needs_labels`` says whether the labels of the sets
    are looked at. The model that was given stays as it was.
    """

    @property
    def needs(self) -> tuple[str, ...]: ...

    @property
    def needs_labels(self) -> bool: ...

    # The arguments behind the model differ between methods, which a plain method could not say.
    @property
    def forget(self) -> Callable[..., nn.Module]: ...


def forget_with(method: Forgetter, model: nn.Module, sets: Mapping[str, Any], run: Run) -> nn.Module:
    """Gives a method the sets that it needs, and the run where its ``forget`` has a parameter of that name.

    Parameters
    ----------
    method
        A method of the room.
    model
        The trained model; it stays as it is.
    sets
        By name, at least those that the method needs.
    run
        For its checkpoints and metrics.

    Raises
    ------
    KeyError
        When a set that the method needs is not among those given.
    """
    taken = {name: sets[name] for name in method.needs}
    if "run" in inspect.signature(method.forget).parameters:
        taken["run"] = run
    return method.forget(model, **taken)


def device_of(model: nn.Module) -> torch.device:
    """Where a model's first parameter is."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have gradients, by name, tied ones once.

    Raises
    ------
    InputError
        When there is none.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise InputError(
            f"no parameter of this {type(model).__name__} requires a gradient: call requires_grad_(True) on those "
            "that may change"
        )
    return found


def logits(forward: Forward, x: Inputs) -> Float[Tensor, "batch classes"]:
    """What a classifier says, in float32.

    Parameters
    ----------
    forward
        The model, or a function that stands for it.
    x
        Its inputs.

    Raises
    ------
    InputError
        When it can't take such inputs, or returns anything but one row of at least two logits an input.
    """
    try:
        output = forward(**x) if isinstance(x, dict) else forward(x)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        shapes = x if isinstance(x, dict) else {"x": x}
        given = ", ".join(f"{k} {v.dtype} {list(v.shape)}" for k, v in shapes.items()).replace("torch.", "")
        raise InputError(f"the model can't take inputs of this kind ({given}): {str(error).splitlines()[0]}") from error
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        raise InputError(f"the model returns a {type(output).__name__} without logits: a classifier is needed")
    if found.ndim != 2 or found.shape[1] < 2:
        raise InputError(
            f"the model returns {list(found.shape)}: a classifier with logits [batch, classes] of at least 2 classes "
            "is needed"
        )
    return found.float()


def cross_entropy(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy of a batch: over its examples, or over all its response tokens.

    Parameters
    ----------
    model
        A classifier or a causal language model.
    batch
        Its examples, with labels.

    Raises
    ------
    InputError
        When labels are missing or no classes of the model, or no token is a response.
    """
    if isinstance(batch, Texts):
        return texts.cross_entropy(model, batch.sequences)
    if batch.y is None:
        raise InputError("the data have no labels: give pairs (x, y), or use a label-free method")
    return functional.cross_entropy(logits(model, batch.x), batch.y.long())


def squared_logits(model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
    """Mean squared norm of the logits of a batch, over its examples or its response tokens; needs no labels."""
    if isinstance(batch, Texts):
        return texts.squared_logits(model, batch.sequences)
    return logits(model, batch.x).square().sum(-1).mean()


def check_labels(y: Tensor, classes: int, before: int = 0) -> None:
    """Checks that labels are classes of a model.

    Parameters
    ----------
    y
        The labels, [B].
    classes
        Number of classes.
    before
        How many examples came before these, for the message.

    Raises
    ------
    InputError
        At the first label outside of ``0 ... classes - 1``; it is named with its position.
    """
    outside = (y < 0) | (y >= classes)
    if outside.any():
        index = int(outside.nonzero()[0, 0])
        raise InputError(
            f"label {int(y[index])} of example {before + index} is no class of the model, which has {classes}: "
            f"labels go from 0 to {classes - 1}"
        )


def check_inputs(batch: Batch, before: int = 0) -> None:
    """Checks that inputs are finite numbers.

    Raises
    ------
    NonFiniteError
        At the first example with NaN or infinity; its position is named.
    """
    if isinstance(batch, Texts):
        return
    for x in batch.x.values() if isinstance(batch.x, dict) else (batch.x,):
        if x.is_floating_point() and not torch.isfinite(x).all():
            bad = ~torch.isfinite(x.flatten(1) if x.ndim > 1 else x[:, None]).all(1)
            raise InputError(
                f"example {before + int(bad.nonzero()[0, 0])} holds NaN or infinity: clean or drop such inputs"
            )


def check_finite(value: Tensor, what: str) -> None:
    """Checks that a number or all of a tensor is finite.

    Raises
    ------
    NonFiniteError
        When it is not; ``what`` names it.
    """
    if not torch.isfinite(value).all():
        raise NonFiniteError(f"{what} is not finite: the model's weights or its inputs hold extreme values")
