"""What every method of the room is made of: an objective on sequences, and how long and how fast to train.

A method is a setting of four slots: where sequences come from, what they are worth, how worth becomes per-token
credit, and the loss that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.precision import MasterWeights
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class Training:
    """How long and how fast to train.

    Parameters
    ----------
    optimizer
        ``adamw`` or ``adafactor`` (less memory).
    learning_rate
        Of the optimizer; constant after the warm-up.
    batch_size
        Answers in one optimizer step.
    micro_batch_size
        Answers in one forward pass; their gradients are added up.
    epochs
        Passes over the data; may be a fraction.
    clip_norm
        Largest norm of the gradient.
    weight_decay
        Decoupled weight decay.
    warmup_steps
        Steps over which the learning rate rises.
    """

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 1e-5
    batch_size: int = 16
    micro_batch_size: int = 16
    epochs: float = 1.0
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "batch_size", "micro_batch_size", "epochs", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        if self.batch_size % min(self.micro_batch_size, self.batch_size):
            raise InputError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )

    def steps(self, examples: int) -> int:
        """Optimizer steps for that many examples, at least one."""
        return max(1, round(self.epochs * examples / min(self.batch_size, examples)))

    def as_many_steps(self, examples: int, kept: int) -> Training:
        """The training that takes as many steps on ``kept`` examples as this one on ``examples``.

        So that a method that drops answers gets the same budget as one that learns from all of them.
        """
        return replace(self, epochs=self.steps(examples) * min(self.batch_size, kept) / kept)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over float32 copies of what is trained.

        Raises
        ------
        InputError
            When no parameter of the model needs a gradient.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError("no parameter of the model is trained: all have requires_grad=False")
        if self.optimizer == "adafactor":
            return MasterWeights(
                parameters,
                lambda p: torch.optim.Adafactor(p, lr=self.learning_rate, weight_decay=self.weight_decay, foreach=True),
            )
        return MasterWeights(
            parameters,
            lambda p: torch.optim.AdamW(p, lr=self.learning_rate, weight_decay=self.weight_decay, foreach=True),
        )


def train_last_layers(model: nn.Module, count: int | None) -> None:
    """Leaves only the last ``count`` decoder layers and the final norm to train, or everything when ``None``.

    The backward pass ends at the lowest trained layer, so fewer layers take less time as well as less memory.

    Raises
    ------
    InputError
        When the model has fewer layers, or its layers are not found.
    """
    if count is None:
        return
    body = getattr(model, "base_model", model)
    layers = next((part for part in (getattr(body, name, None) for name in ("layers", "h")) if part is not None), None)
    if not isinstance(layers, nn.ModuleList) or not 1 <= count <= len(layers):
        found = len(layers) if isinstance(layers, nn.ModuleList) else "no list of"
        raise InputError(f"can't train the last {count} layers: the model has {found} layers")
    model.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)
    for name in ("norm", "ln_f", "final_layernorm"):
        if isinstance(getattr(body, name, None), nn.Module):
            getattr(body, name).requires_grad_(True)


def overridden(training: Training, given: object) -> Training:
    """The training with those fields replaced that ``given`` has under the same name and not ``None``."""
    names = {field.name for field in fields(Training)}
    changes = {name: getattr(given, name) for name in names if getattr(given, name, None) is not None}
    return replace(training, **changes)


class Objective(Protocol):
    """What a method of the room is to the training loop."""

    training: ClassVar[Training]
    mean_over: ClassVar[Literal["answers", "tokens"]]
    """What the loss of a batch is the mean over: decides what a part of a step's batch weighs."""

    def prepare(self, data: Sequences) -> Sequences:
        """Turns logged columns into those that the loss uses; called once, before training."""
        ...

    def loss(self, model: nn.Module, batch: Sequences) -> Loss:
        """The loss of a batch of prepared sequences."""
        ...
