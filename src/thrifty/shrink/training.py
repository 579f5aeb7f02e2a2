"""What a model is trained on while it is made smaller: examples that are asked for by number, and their loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences
from thrifty.shrink.pictures import Pictures, say


@runtime_checkable
class Training(Protocol):
    """Examples with a loss. Any object with these three can be given."""

    def __len__(self) -> int: ...

    def loss(self, model: nn.Module, rows: Int[Tensor, " batch"]) -> Tensor:
        """The mean loss of the examples of those numbers, a scalar."""
        ...

    def example(self) -> tuple[Any, ...]:
        """What the model is called with to see how it is built: a small batch."""
        ...


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs of a classifier with their classes.

    Parameters
    ----------
    pictures
        The examples; of the model's inputs only the first dimension must be the batch.
    """

    pictures: Pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def loss(self, model: nn.Module, rows: Int[Tensor, " batch"]) -> Tensor:
        """The mean cross-entropy."""
        device = next(model.parameters()).device
        logits = say(model, self.pictures.inputs(rows).to(device))
        return functional.cross_entropy(logits, self.pictures.y[rows].to(device))

    def example(self) -> tuple[Any, ...]:
        """Two inputs at most."""
        return (self.pictures.inputs(torch.arange(min(2, len(self)))),)


@dataclass(frozen=True, eq=False)
class Windows:
    """Text as token ids, which a causal language model learns to go on with.

    Parameters
    ----------
    ids
        [windows, tokens].
    """

    ids: Int[Tensor, "window token"]

    def __len__(self) -> int:
        return len(self.ids)

    def loss(self, model: nn.Module, rows: Int[Tensor, " batch"]) -> Tensor:
        """The mean negative log-likelihood of all tokens but each window's first."""
        ids = self.ids[rows]
        mask = torch.ones_like(ids, dtype=torch.bool)
        spoken = mask.clone()
        spoken[:, 0] = False
        batch = Sequences(ids, mask, spoken).to(next(model.parameters()).device)
        return -token_logps(model, batch).sum() / spoken.sum()

    def example(self) -> tuple[Any, ...]:
        """The first tokens of two windows: how long they are does not matter."""
        return (self.ids[:2, :16],)


def as_training(data: Any) -> Training:
    """Training data from what a user has at hand.

    Parameters
    ----------
    data
        A :class:`Training`; :class:`~thrifty.shrink.pictures.Pictures`; or a pair ``(x, y)`` of a classifier's inputs,
        floats [N, ...], and classes, [N].

    Raises
    ------
    InputError
        When it is none of these, empty, or not finite.
    """
    if isinstance(data, Pictures):
        data = Labelled(data)
    elif isinstance(data, tuple | list) and len(data) == 2:
        x, y = (torch.as_tensor(part) for part in data)
        if not x.is_floating_point() or y.is_floating_point() or y.ndim != 1 or len(x) != len(y):
            raise InputError(
                f"training data must be inputs, floats [N, ...], and classes, integers [N], not {x.dtype} "
                f"{list(x.shape)} and {y.dtype} {list(y.shape)}"
            )
        if not torch.isfinite(x).all():
            raise InputError("the training inputs hold NaN or infinite values")
        data = Labelled(Pictures(x.float(), y.long()))
    if not isinstance(data, Training):
        raise InputError(f"training data must be a pair (x, y) or have loss and example, not a {type(data).__name__}")
    if not len(data):
        raise InputError("there are no examples to train on: the data set is empty")
    return data
