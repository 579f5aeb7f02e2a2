"""What one would do without the room's methods: retrain, train on, climb the loss, or learn from a bad teacher.

Each has the protocol of the room, so that tasks and claims treat them like its methods.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import NonFiniteError
from thrifty.core.loop import Shuffled
from thrifty.core.progress import track
from thrifty.forget.base import cross_entropy, device_of, logits
from thrifty.forget.data import Batch, Joined, Part, Source, Texts, as_source
from thrifty.forget.texts import predicted, response_logits


def descend(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor],
    optimizer: torch.optim.Optimizer,
    steps: int,
    *,
    peak: float | None = None,
    clip_norm: float = 1.0,
    clip: Callable[[], Tensor] | None = None,
    schedule: Callable[[int], float] | None = None,
    label: str = "train",
) -> nn.Module:
    """Takes ``steps`` optimizer steps on ``loss(model, step)``; for training that takes seconds.

    Parameters
    ----------
    model
        Changed in place, in the mode it is in.
    loss
        The scalar to minimise at a step.
    optimizer
        Over the model's parameters.
    steps
        How many steps.
    peak
        Learning rate at the top of a one-cycle schedule that begins and ends near 0; ``None`` keeps the optimizer's.
    clip_norm
        Largest norm of the gradient.
    clip
        Clips the gradients in place of that, and returns their norms.
    schedule
        ``schedule(step)``: what the optimizer's learning rates are multiplied by.
    label
        What the progress bar says.

    Raises
    ------
    NonFiniteError
        When the gradient is not finite.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in track(range(steps), label):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            if peak is not None:
                group["lr"] = peak * one_cycle((step + 1) / (steps + 1))
            elif schedule is not None:
                group["lr"] = rate * schedule(step)
        optimizer.zero_grad(set_to_none=True)
        loss(model, step).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip_norm) if clip is None else clip()
        if not torch.isfinite(norm).all():
            raise NonFiniteError(f"the gradient is not finite at step {step}: try a smaller learning rate")
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model


def one_cycle(share: float) -> float:
    """Factor of the learning rate when ``share`` of the steps are done: up for 30%, then down along a cosine."""
    if share < 0.3:
        return share / 0.3
    return 0.5 * (1 + math.cos(math.pi * (share - 0.3) / 0.7))


def on(source: Source, model: nn.Module, batch_size: int, seed: int) -> Callable[[int], Batch]:
    """Batch of a step, in an order that depends on the seed, where the model is."""
    # A short last batch may be a single example, which batch normalisation can't train on.
    order, device = Shuffled(len(source), batch_size, seed, last="drop"), device_of(model)
    return lambda step: source.rows(order(step)).to(device)


def steps_of(source: Source, batch_size: int, epochs: float) -> int:
    """How many steps so many passes over a source take, at least 1."""
    return max(1, round(epochs * len(source) / batch_size))


@dataclass(frozen=True)
class FineTune:
    """Trains on, on what is kept, and hopes that the rest fades.

    Parameters
    ----------
    learning_rate
        Peak of a one-cycle schedule of SGD with momentum 0.9.
    epochs
        Passes over the retain set.
    batch_size
        Examples in a batch.
    seed
        Of the order.
    """

    learning_rate: float = 0.02
    epochs: float = 1.0
    batch_size: int = 64
    seed: int = 0

    needs: ClassVar[tuple[str, ...]] = ("retain_set",)
    needs_labels: ClassVar[bool] = True

    def forget(self, model: nn.Module, retain_set: Any) -> nn.Module:
        """A trained-on copy of the model."""
        source = as_source(retain_set, "retain set")
        tuned = copy.deepcopy(model).train()
        batch = on(source, tuned, self.batch_size, self.seed)
        optimizer = torch.optim.SGD(tuned.parameters(), lr=self.learning_rate, momentum=0.9)
        steps = steps_of(source, self.batch_size, self.epochs)
        descend(tuned, lambda m, i: cross_entropy(m, batch(i)), optimizer, steps, peak=self.learning_rate)
        return tuned.eval()


@dataclass(frozen=True)
class Retrain:
    """Trains anew without the forget set: the yardstick, and what the room's methods save.

    Parameters
    ----------
    fresh
        Makes a model with new weights.
    learning_rate
        Peak of a one-cycle schedule of SGD with momentum 0.9 and weight decay 5e-4, or of AdamW.
    epochs
        Passes over the retain set.
    batch_size
        Examples in a batch.
    seed
        Of the order.
    adam
        AdamW with weight decay 0.05 instead of SGD: transformers hardly learn from so few pictures with SGD.
    """

    fresh: Callable[[], nn.Module]
    learning_rate: float = 0.1
    epochs: float = 6.0
    batch_size: int = 64
    seed: int = 0
    adam: bool = False

    needs: ClassVar[tuple[str, ...]] = ("retain_set",)
    needs_labels: ClassVar[bool] = True

    def forget(self, model: nn.Module, retain_set: Any) -> nn.Module:
        """A new model where the given one is, trained on the retain set."""
        return self.train(retain_set, device_of(model))

    def train(self, data: Any, device: torch.device) -> nn.Module:
        """A new model, trained on any data with this recipe."""
        source = as_source(data, "training set")
        new = self.fresh().to(device).train()
        batch = on(source, new, self.batch_size, self.seed)
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(new.parameters(), lr=self.learning_rate, weight_decay=0.05)
            if self.adam
            else torch.optim.SGD(
                new.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
            )
        )
        steps = steps_of(source, self.batch_size, self.epochs)
        descend(new, lambda m, i: cross_entropy(m, batch(i)), optimizer, steps, peak=self.learning_rate)
        return new.eval()


@dataclass(frozen=True)
class GradientAscent:
    """Climbs the loss of the forget set.

    Batch normalisation keeps its statistics (evaluation mode): on the forget set alone they would drift and harm
    what is kept more than the method itself does.

    Parameters
    ----------
    learning_rate
        Of plain SGD.
    epochs
        Passes over the forget set.
    batch_size
        Examples in a batch.
    seed
        Of the order.
    """

    learning_rate: float = 0.01
    epochs: float = 1.0
    batch_size: int = 64
    seed: int = 0

    needs: ClassVar[tuple[str, ...]] = ("forget_set",)
    needs_labels: ClassVar[bool] = True

    def forget(self, model: nn.Module, forget_set: Any) -> nn.Module:
        """A copy of the model that has climbed."""
        source = as_source(forget_set, "forget set")
        climbed = copy.deepcopy(model).eval()
        batch = on(source, climbed, self.batch_size, self.seed)
        optimizer = torch.optim.SGD(climbed.parameters(), lr=self.learning_rate)
        steps = steps_of(source, self.batch_size, self.epochs)
        return descend(climbed, lambda m, i: -cross_entropy(m, batch(i)), optimizer, steps)


@dataclass(frozen=True)
class BadTeacher:
    """Learns from an untrained model on the forget set and from the original on a part of what is kept.

    Parameters
    ----------
    learning_rate
        Of Adam.
    epochs
        Passes over the forget set and the chosen part of the retain set.
    share
        Part of the retain set that is used.
    batch_size
        Examples in a batch.
    seed
        Of the order and of the untrained model.

    References
    ----------
    Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv 2205.08096.
    """

    learning_rate: float = 1e-4
    epochs: float = 1.0
    share: float = 0.3
    batch_size: int = 256
    seed: int = 0

    needs: ClassVar[tuple[str, ...]] = ("forget_set", "retain_set")
    needs_labels: ClassVar[bool] = False

    def forget(self, model: nn.Module, forget_set: Any, retain_set: Any) -> nn.Module:
        """A copy of the model that has listened to both teachers."""
        gone, kept = as_source(forget_set, "forget set"), as_source(retain_set, "retain set")
        count = max(1, round(self.share * len(kept)))
        chosen = torch.randperm(len(kept), generator=torch.Generator().manual_seed(self.seed))[:count]
        # One forward pass for both kinds: batch normalisation must see them mixed.
        both = Joined(gone, Part(kept, chosen))
        student, good = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
        bad = untrained(model, self.seed).eval()
        pick, device = Shuffled(len(both), self.batch_size, self.seed, last="drop"), device_of(model)

        def loss(pupil: nn.Module, step: int) -> Tensor:
            numbers = pick(step)
            return imitation(pupil, good, bad, both.rows(numbers).to(device), (numbers < len(gone)).to(device))

        optimizer = torch.optim.Adam(student.parameters(), lr=self.learning_rate)
        return descend(student, loss, optimizer, steps_of(both, self.batch_size, self.epochs)).eval()


def imitation(student: nn.Module, good: nn.Module, bad: nn.Module, batch: Batch, gone: Tensor) -> Tensor:
    """Mean ``KL(teacher || student)`` of the predictions on a batch, in nats.

    Parameters
    ----------
    student
        Who learns.
    good, bad
        The teacher of the examples to keep, and of those to forget.
    batch
        Examples; their labels are not looked at.
    gone
        True for those to forget, [B].
    """
    with torch.no_grad():
        wanted = torch.where(gone[_owners(batch)][:, None], _says(bad, batch), _says(good, batch))
    return functional.kl_div(_says(student, batch), wanted, reduction="batchmean", log_target=True)


def _says(model: nn.Module, batch: Batch) -> Tensor:
    if isinstance(batch, Texts):
        return torch.cat([found.log_softmax(-1) for found, _ in response_logits(model, batch.sequences)])
    return logits(model, batch.x).log_softmax(-1)


def _owners(batch: Batch) -> Tensor:
    """Which example each prediction belongs to."""
    if isinstance(batch, Texts):
        return predicted(batch.sequences).nonzero()[:, 0]
    return torch.arange(len(batch))


def untrained(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy of a model with new weights: each layer resets itself, weights outside of layers become small noise."""
    fresh = copy.deepcopy(model)
    reset: set[int] = set()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in fresh.modules():
            again = getattr(module, "reset_parameters", None)
            if callable(again):
                again()
                reset |= {id(parameter) for parameter in module.parameters(recurse=False)}
        for parameter in fresh.parameters():
            if id(parameter) not in reset:
                parameter.normal_(std=0.02)
    return fresh
