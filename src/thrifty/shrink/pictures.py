"""Pictures with their classes, and what a classifier says of them: what methods for classifiers work on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.data.images import images
from thrifty.lm.backbone import evaluating
from thrifty.nets.vision import pixels

_AT_ONCE = 256


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures with their classes; turned into a model's inputs only when asked for.

    Parameters
    ----------
    images
        As they are stored, first dimension N.
    y
        Classes from 0, int64.
    transform
        Makes the model's inputs of some of the images; without it the images are these inputs.
    """

    images: Any
    y: Int[Tensor, " N"]
    transform: Callable[[Any], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.y)

    def inputs(self, indices: Int[Tensor, " B"]) -> Float[Tensor, "B channels height width"]:
        """The pictures of those numbers, as the model takes them."""
        if self.transform is None:
            chosen: Tensor = self.images[indices]
            return chosen
        return self.transform(self.images[indices.numpy()])

    def part(self, indices: Int[Tensor, " B"]) -> Pictures:
        """Some of the pictures."""
        images = self.images[indices if isinstance(self.images, Tensor) else indices.numpy()]
        return replace(self, images=images, y=self.y[indices])

    def split(self, share: float, draw: torch.Generator) -> tuple[Pictures, Pictures]:
        """Two parts drawn at random; the second one holds that share, at least one picture.

        Raises
        ------
        InputError
            When nothing would be left for the first one.
        """
        order = torch.randperm(len(self), generator=draw)
        held = max(1, round(share * len(self)))
        if held >= len(self):
            raise InputError(f"{len(self)} pictures are too few to hold some out: give more")
        return self.part(order[held:]), self.part(order[:held])


def as_pictures(data: Any, name: str) -> Pictures:
    """Pictures from pictures, or from a pair of arrays.

    Parameters
    ----------
    data
        :class:`Pictures`, or ``(x, y)``: inputs of the model, float [N, channels, height, width], and classes, [N].
    name
        What messages call it, such as ``training pictures``.

    Raises
    ------
    InputError
        When it is neither, or empty, not finite, or the classes are no class numbers.
    """
    if isinstance(data, Pictures):
        found = data
    else:
        try:
            x, y = (torch.as_tensor(part) for part in data)
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} must be a pair (x, y) of arrays, not a {type(data).__name__}") from error
        if x.ndim != 4 or not x.is_floating_point() or y.shape != x.shape[:1]:
            raise InputError(
                f"{name}: x must be floats [N, channels, height, width] and y [N], not {x.dtype} {list(x.shape)} and "
                f"{list(y.shape)}"
            )
        if not torch.isfinite(x).all():
            raise InputError(f"{name}: x has NaN or infinite values")
        found = Pictures(x.float(), y)
    if not len(found):
        raise InputError(f"there are no {name}: give at least one")
    if found.y.is_floating_point() or found.y.dtype == torch.bool or int(found.y.min()) < 0:
        raise InputError(f"{name}: classes must be numbers from 0, not {found.y.dtype}")
    return replace(found, y=found.y.long())


def check_classes(pictures: Pictures, classes: int, name: str) -> None:
    """Raises an :class:`InputError` when a picture's class is none of the model's."""
    wrong = (pictures.y >= classes).nonzero()[:, 0]
    if len(wrong):
        at = int(wrong[0])
        raise InputError(f"{name}: class {int(pictures.y[at])} of picture {at} is none of the model's {classes}")


def say(model: nn.Module, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B classes"]:
    """The logits of a classifier, in float32.

    Raises
    ------
    InputError
        When it can't take such pictures, or returns no logits.
    """
    try:
        output = model(x)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = str(error).splitlines()[0]
        raise InputError(f"the model can't take pictures {list(x.shape)}: {reason}") from error
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(found, Tensor) or found.ndim != 2 or found.shape[1] < 2:
        raise InputError("the model returns no logits [batch, classes] of at least 2 classes: a classifier is needed")
    return found.float()


@torch.no_grad()
def answers(model: nn.Module, pictures: Pictures) -> Float[Tensor, "N classes"]:
    """What a classifier says of all pictures, in evaluation mode; on the CPU."""
    device = next(model.parameters()).device
    with evaluating(model):
        parts = torch.arange(len(pictures)).split(_AT_ONCE)
        return torch.cat([say(model, pictures.inputs(part).to(device)).cpu() for part in parts])


def accuracy(model: nn.Module, pictures: Pictures) -> float:
    """The share of the pictures that a classifier puts into their class."""
    return float((answers(model, pictures).argmax(1) == pictures.y).float().mean())


def drawn(name: str, seed: int, train: int, valid: int, test: int) -> tuple[Pictures, Pictures, Pictures]:
    """Pictures of an image set for training, for choosing settings and for the scores, drawn anew for each seed."""
    data = images(name)
    order = torch.randperm(len(data.train_x), generator=generator(seed, "shrink", name))[: train + valid].numpy()
    everything = Pictures(pixels(data.train_x[order]), torch.from_numpy(data.train_y[order]))
    final = Pictures(pixels(data.test_x[:test]), torch.from_numpy(data.test_y[:test]))
    held = torch.arange(len(everything) - valid, len(everything))
    return everything.part(torch.arange(min(train, len(everything) - valid))), everything.part(held), final
