"""Output matching: a model is tuned to targets that each example of a pool has, by index."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled
from thrifty.forget.base import device_of
from thrifty.forget.baselines import descend
from thrifty.forget.data import Joined, Labelled, Part, Source, as_source
from thrifty.forget.overlap import warn_of_overlap
from thrifty.forget.retraining import said

Loss = Literal["mse", "ce"]


@dataclass(frozen=True)
class Matching:
    """How a model is tuned to given outputs; shared by datamodel and oracle matching.

    The pool, its order and the learning rate are the authors' for CIFAR-10 or their code's; they take 4 or 5 epochs of
    batches of 512, which on forget sets of ten or a hundred examples would be a handful of steps.

    Parameters
    ----------
    loss
        ``"mse"``: squared distance of the logits, averaged over batch and classes; ``"ce"``: cross-entropy to the
        softmax of the targets.
    epochs
        Passes over the pool.
    learning_rate
        Of Adam; it falls by 5% after each epoch.
    batch_size
        Examples in a batch.
    penalty
        What the squared distance from the original's weights is multiplied by.
    retain_multiplier
        Examples of the retain set in the pool, for each of the forget set.
    forget_multiplier
        How often the forget set is in the pool; of a fraction, its first examples once more.
    shuffle
        Draw batches in random order; off, they follow the pool: forget set, then retain set.
    """

    loss: Loss = "mse"
    epochs: int = 15
    learning_rate: float = 5e-4
    batch_size: int = 64
    penalty: float = 0.0
    retain_multiplier: float = 20.0
    forget_multiplier: float = 5.0
    shuffle: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("penalty", "retain_multiplier", "forget_multiplier"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if self.retain_multiplier == self.forget_multiplier == 0:
            raise InputError("retain_multiplier and forget_multiplier are both 0: there is nothing to learn from")

    def match(self, model: nn.Module, pool: Pool, targets: Float[Tensor, "*models queries classes"]) -> nn.Module:
        """A copy of the model that was tuned to the targets, on a pool of these settings."""
        return match_outputs(
            model,
            Part(pool.queries, pool.order),
            targets[..., pool.order, :],
            loss=self.loss,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            penalty=self.penalty,
            shuffle=pool.seed if self.shuffle else None,
        )

    def pool(self, forget_set: Any, retain_set: Any, draw: torch.Generator) -> Pool:
        """The examples on which the model is tuned.

        Raises
        ------
        InputError
            When a set is empty.
        """
        gone, kept = as_source(forget_set, "forget set"), as_source(retain_set, "retain set")
        warn_of_overlap(gone, kept)
        sample = torch.randperm(len(kept), generator=draw)[: round(self.retain_multiplier * len(gone))]
        return Pool(
            Joined(gone, kept),
            len(gone),
            torch.cat([torch.arange(len(gone)), len(gone) + sample]),
            pool_order(len(gone), len(sample), self.forget_multiplier),
            draw.initial_seed(),
        )


@dataclass(frozen=True, eq=False)
class Pool:
    """What a model is tuned on: rows of the training data, each with an index that its target has too.

    Parameters
    ----------
    full
        The forget set, and the retain set behind it.
    forgotten
        How many belong to the forget set.
    numbers
        Which examples of ``full`` are asked about, without repetition, [P].
    order
        Which of those, and how often, make an epoch.
    seed
        Of the order, when shuffled.
    """

    full: Source
    forgotten: int
    numbers: Int[Tensor, " queries"]
    order: Int[Tensor, " pool"]
    seed: int

    @property
    def queries(self) -> Part:
        """The examples that are asked about."""
        return Part(self.full, self.numbers)

    def sample(self) -> Labelled:
        """All examples that are asked about, as one batch.

        Raises
        ------
        InputError
            When they are texts.
        """
        found = self.queries.rows(torch.arange(len(self.numbers)))
        if not isinstance(found, Labelled):
            raise InputError("datamodel matching is for classifiers: give inputs (x, y), no texts")
        return found


def matching_loss(
    logits: Float[Tensor, "*models batch classes"], targets: Float[Tensor, "*#models batch classes"], loss: Loss = "mse"
) -> Float[Tensor, "*models"]:
    """How far a batch of outputs is from its targets: mean over batch and classes of squares, or cross-entropy.

    Parameters
    ----------
    logits
        What is said.
    targets
        What should be said; [B, C] where all models have the same.
    loss
        ``"mse"`` or ``"ce"``.
    """
    if loss == "mse":
        return (logits - targets).square().mean((-2, -1))
    return -(targets.softmax(-1) * functional.log_softmax(logits, -1)).sum(-1).mean(-1)


def pool_order(forgotten: int, sampled: int, forget_multiplier: float) -> Int[Tensor, " pool"]:
    """The order of an epoch: the forget set so many times, the first part of it for a fraction, then the sample."""
    whole, part = divmod(forget_multiplier, 1)
    gone = torch.arange(forgotten)
    return torch.cat([gone.repeat(int(whole)), gone[: int(part * forgotten)], forgotten + torch.arange(sampled)])


def match_outputs(
    model: nn.Module,
    pool: Source,
    targets: Float[Tensor, "*models pool classes"],
    *,
    loss: Loss = "mse",
    epochs: int = 5,
    learning_rate: float = 5e-4,
    batch_size: int = 512,
    penalty: float = 0.0,
    shuffle: int | None = None,
) -> nn.Module:
    """Tunes a copy of a model until it says what it should, example by example.

    Adam, its learning rate 5% smaller after each epoch; batch normalisation in training mode, as the authors do.

    Parameters
    ----------
    model
        A classifier, or stacked ones, which learn side by side.
    pool
        Inputs; a row of it belongs to the same row of the targets.
    targets
        What should be said; [P, C] where stacked models have the same.
    loss, epochs, learning_rate, batch_size, penalty
        As for :class:`Matching`.
    shuffle
        Seed of the order; ``None`` for that of the pool.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    InputError
        When there are not as many targets as rows.
    NonFiniteError
        When the gradient is not finite.
    """
    if targets.shape[-2] != len(pool):
        raise InputError(f"there are {targets.shape[-2]} targets for {len(pool)} examples: each needs one")
    tuned, device = copy.deepcopy(model).train(), device_of(model)
    before = [weight.detach().clone() for weight in tuned.parameters()] if penalty else []
    # A last batch of one example can't be trained on by batch normalisation.
    alone = len(pool) > batch_size and len(pool) % batch_size == 1
    order = Shuffled(len(pool), batch_size, shuffle or 0, last="drop" if alone else "keep")
    groups = torch.arange(len(pool)).split(order.batch_size)

    def objective(members: nn.Module, step: int) -> Tensor:
        rows = groups[step % order.per_epoch] if shuffle is None else order(step)
        batch = pool.rows(rows).to(device)
        assert isinstance(batch, Labelled)
        distance = matching_loss(said(members, batch.x), targets[..., rows, :].to(device), loss).sum()
        if not penalty:
            return distance
        pairs = zip(members.parameters(), before, strict=True)
        return distance + penalty * torch.stack([(weight - old).square().sum() for weight, old in pairs]).sum()

    optimizer = torch.optim.Adam(tuned.parameters(), lr=learning_rate)
    descend(
        tuned,
        objective,
        optimizer,
        epochs * order.per_epoch,
        clip_norm=math.inf,
        schedule=lambda step: 0.95 ** (step // order.per_epoch),
        label="match",
    )
    return tuned.eval()


def drawn() -> torch.Generator:
    """Random numbers that follow from the global generator, which the run has seeded."""
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))
