"""What self-supervised training on two views of a picture shares: heads, the teacher, losses, the loop.

A batch of views is one tensor ``[2B, C, H, W]``: the first view of each picture, then the second of each.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.run import Run
from thrifty.core.schedules import warmup_constant, warmup_cosine

Augment = Callable[[Tensor], Tensor]
"""``augment(pictures [B, C, H, W] from 0 to 1) -> views`` of the same range, each picture on its own."""


def mlp_head(sizes: Sequence[int], *, last_norm: bool = False, last_bias: bool = True) -> nn.Sequential:
    """Linear, batch normalisation, ReLU, again and again, and a linear layer last: a projector or a predictor.

    Parameters
    ----------
    sizes
        Features from the input to the output.
    last_norm
        Whether batch normalisation follows the last layer too.
    last_bias
        Whether the last layer has a bias.
    """
    layers: list[nn.Module] = []
    for number, (inside, outside) in enumerate(pairwise(sizes), start=2):
        last = number == len(sizes)
        layers.append(nn.Linear(inside, outside, bias=last_bias if last else True))
        if not last or last_norm:
            layers.append(nn.BatchNorm1d(outside))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def negative_cosine(
    p: Float[Tensor, "*batch features"], z: Float[Tensor, "*#batch features"]
) -> Float[Tensor, "*batch"]:
    """``-cos(p, sg z)`` row by row; no gradient reaches z."""
    return -functional.cosine_similarity(p, z.detach(), dim=-1)


def byol_loss(
    p1: Float[Tensor, "batch features"],
    p2: Float[Tensor, "batch features"],
    t1: Float[Tensor, "batch features"],
    t2: Float[Tensor, "batch features"],
) -> Float[Tensor, ""]:
    r"""Each view predicts the other, :math:`\frac1B\sum_i -2\cos(p_{1i}, t_{2i}) - 2\cos(p_{2i}, t_{1i})`.

    It is the squared distance of unit vectors, summed over both directions, less 4.

    Parameters
    ----------
    p1, p2
        Predictions from the first and the second view.
    t1, t2
        The teacher's projections of the first and the second view; no gradient reaches them.
    """
    return 2 * (negative_cosine(p1, t2) + negative_cosine(p2, t1)).mean()


class Teacher(nn.Module):
    """A copy of a network that follows it as an exponential moving average, and has no gradient.

    Parameters are averaged; batch normalisation keeps statistics of its own.

    Parameters
    ----------
    student
        The network to follow, copied as it is now.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(student).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """What the copy makes of it."""
        out: Tensor = self.net(x)
        return out

    @torch.no_grad()
    def follow(self, student: nn.Module, momentum: float) -> None:
        """``teacher <- momentum teacher + (1 - momentum) student``, for all parameters at once."""
        theirs: list[Tensor] = list(self.net.parameters())
        ours: list[Tensor] = list(student.parameters())
        torch._foreach_lerp_(theirs, ours, 1 - momentum)


def cosine_momentum(start: float, end: float, steps: int) -> Callable[[int], float]:
    """A teacher's momentum that goes from ``start`` to ``end`` along half a cosine in so many steps."""

    def momentum(step: int) -> float:
        share = min(1.0, step / max(steps, 1))
        return end - (end - start) * 0.5 * (1 + math.cos(math.pi * share))

    return momentum


class ViewLearner(nn.Module):
    """What :func:`train_views` trains: a loss on two views, and what follows each step of the optimizer.

    A subclass has its networks as children and whatever it remembers (a memory, statistics) as buffers, so that all of
    it is in the checkpoints.
    """

    steps_taken: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps_taken", torch.zeros((), dtype=torch.long))

    def loss(self, views: Float[Tensor, "views channels height width"]) -> Loss:
        """The loss of a batch of views in [-1, 1], with what to log."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called behind each step of the optimizer; a subclass that has more to do calls this too."""
        self.steps_taken += 1

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer; one of everything that takes a gradient unless a subclass says more."""
        return [{"params": [weight for weight in self.parameters() if weight.requires_grad], "lr": learning_rate}]


@dataclass(frozen=True)
class ViewTraining:
    """How :func:`train_views` trains.

    Parameters
    ----------
    epochs
        Passes over the pictures.
    batch_size
        Pictures in a batch, at least 2.
    learning_rate
        Of SGD.
    momentum
        Of SGD.
    weight_decay
        Of SGD.
    schedule
        ``constant``, or ``cosine``: the rate falls to 0.
    warmup
        Share of the steps in which the rate rises.
    """

    epochs: float = 100.0
    batch_size: int = 128
    learning_rate: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 4e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = 0.0

    def steps(self, count: int) -> int:
        """Steps on so many pictures, at least 1."""
        return max(1, round(self.epochs * count / min(self.batch_size, count)))

    def factor(self, steps: int) -> Callable[[int], float]:
        """What the learning rate is multiplied by at a step."""
        warmup = round(self.warmup * steps)
        return warmup_cosine(steps, warmup) if self.schedule == "cosine" else warmup_constant(warmup)


def train_views(
    learner: ViewLearner,
    pictures: UInt8[Tensor, "count channels height width"],
    augment: Augment,
    run: Run,
    training: ViewTraining,
    *,
    save_every: int | None = 200,
    label: str = "self-supervised",
) -> ViewLearner:
    """Trains a learner on two views of each picture; resumable, in place.

    Parameters
    ----------
    learner
        Its ``loss`` and ``after_step`` are called once a step.
    pictures
        Grey levels or colours 0-255.
    augment
        Makes a view of each of the pictures that it is given, 0 to 1; both views of a batch come from one call.
    run
        For its device, seed, checkpoints and metrics.
    training
        Epochs, batch, rates.
    save_every
        Steps between checkpoints; ``None`` for none.
    label
        What the progress bar says.

    Raises
    ------
    InputError
        When there are fewer than 2 pictures, or a batch would hold fewer.
    NonFiniteError
        When the loss is not finite.
    """
    if len(pictures) < 2 or training.batch_size < 2:
        raise InputError(
            f"two views of at least 2 pictures are needed in a batch, not of {min(len(pictures), training.batch_size)}:"
            " batch normalisation knows nothing of a single one"
        )
    order = Shuffled(len(pictures), training.batch_size, run.seed, last="drop")
    steps = training.steps(len(pictures))
    learner.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    held = pictures.to(run.device)

    def views(rows: Tensor) -> Tensor:
        x = held[rows.to(held.device)].float().div_(255)
        both = augment(torch.cat([x, x])).mul(2).sub_(1)
        return both.contiguous(memory_format=torch.channels_last)

    def optimizer(net: nn.Module) -> torch.optim.Optimizer:
        assert isinstance(net, ViewLearner)
        groups = net.groups(training.learning_rate)
        sgd = torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay, foreach=True)
        sgd.register_step_post_hook(lambda *_: net.after_step())
        return sgd

    fit(
        lambda net, rows: net.loss(views(rows)),  # type: ignore[operator]
        learner,
        order,
        optimizer,
        run,
        steps,
        clip_norm=None,
        schedule=training.factor(steps),
        save_every=save_every,
        log_every=10,
        label=label,
    )
    return learner
