"""Many models trained at once, each on a part of the data of its own, and what many models say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled
from thrifty.core.seeding import derive_seed
from thrifty.forget.base import device_of, logits
from thrifty.forget.baselines import descend, steps_of, untrained
from thrifty.forget.data import Inputs, Labelled, Part, as_source, stream
from thrifty.lm.backbone import evaluating
from thrifty.nets.stacked import Stacked, clip_each_


def subsets(count: int, examples: int, share: float, draw: torch.Generator) -> Bool[Tensor, "count examples"]:
    """Random parts of the data, all of one size.

    Parameters
    ----------
    count
        How many parts.
    examples
        How many examples there are.
    share
        Share of the examples in each part, in (0, 1).
    draw
        Where the random numbers come from.

    Returns
    -------
    Tensor
        True where an example is in a part.

    Raises
    ------
    InputError
        When no part would differ from another.
    """
    size = round(share * examples)
    if not 0 < size < examples:
        raise InputError(f"a share of {share:g} of {examples} examples is no part of them: give one between 0 and 1")
    order = torch.rand(count, examples, generator=draw).argsort(1)
    return torch.zeros(count, examples, dtype=torch.bool).scatter_(1, order[:, :size], True)


@dataclass(frozen=True)
class Retraining:
    """How models are trained anew, many at once; the recipe of :class:`~thrifty.forget.baselines.Retrain`.

    Parameters
    ----------
    fresh
        ``fresh(seed)``: a model with new weights.
    learning_rate
        Peak of a one-cycle schedule of SGD with momentum 0.9 and weight decay 5e-4.
    epochs
        Passes of each model over its examples.
    batch_size
        Examples in a model's batch.
    """

    fresh: Callable[[int], nn.Module]
    learning_rate: float = 0.1
    epochs: float = 6.0
    batch_size: int = 64

    def train(
        self, data: Any, rows: Int[Tensor, "models examples"], seeds: Sequence[int], device: torch.device
    ) -> Stacked:
        """Trains one model for each row of ``rows``.

        Parameters
        ----------
        data
            Labelled examples.
        rows
            Numbers of the examples that each model is trained on.
        seeds
            Of each model's weights and order.
        device
            Where to train.

        Returns
        -------
        Stacked
            In evaluation mode.
        """
        source, size = as_source(data, "training set"), rows.shape[1]
        models = Stacked([self.fresh(seed).train() for seed in seeds]).to(device)
        # A short last batch may be a single example, which batch normalisation can't train on.
        orders = [Shuffled(size, self.batch_size, seed, last="drop") for seed in seeds]
        optimizer = torch.optim.SGD(
            models.parameters(), lr=self.learning_rate, momentum=0.9, weight_decay=5e-4, nesterov=True
        )

        def loss(members: nn.Module, step: int) -> Tensor:
            chosen = rows.gather(1, torch.stack([order(step) for order in orders]))
            batch = source.rows(chosen.flatten()).to(device)
            if not isinstance(batch, Labelled) or batch.y is None:
                raise InputError("models are trained anew on labelled inputs: give pairs (x, y)")
            return cross_entropies(said(members, _each(batch.x, chosen), own=True), batch.y.view_as(chosen)).sum()

        steps = steps_of(Part(source, rows[0]), self.batch_size, self.epochs)
        clip = partial(clip_each_, models, 1.0)
        descend(models, loss, optimizer, steps, peak=self.learning_rate, clip=clip, label=f"retrain {len(seeds)}")
        return models.eval()


def like(model: nn.Module) -> Callable[[int], nn.Module]:
    """Makes models of the kind of one, with new weights that depend on the seed."""
    return lambda seed: untrained(model, derive_seed(seed, "untrained") % 2**31)


def _each(x: Inputs, chosen: Int[Tensor, "models batch"]) -> Inputs:
    shape = chosen.shape
    return (
        {k: v.view(*shape, *v.shape[1:]) for k, v in x.items()} if isinstance(x, dict) else x.view(*shape, *x.shape[1:])
    )


def cross_entropies(
    logits: Float[Tensor, "*models batch classes"], y: Int[Tensor, "*models batch"]
) -> Float[Tensor, "*models"]:
    """Each model's mean cross-entropy.

    Parameters
    ----------
    logits
        What any number of models say about a batch each.
    y
        True classes; of one batch, [B], where all models saw the same.
    """
    each = functional.cross_entropy(
        logits.flatten(0, -2), y.long().expand(logits.shape[:-1]).flatten(), reduction="none"
    )
    return each.view(logits.shape[:-1]).mean(-1)


def said(model: nn.Module, x: Inputs, *, own: bool = False) -> Float[Tensor, "*models batch classes"]:
    """The logits of a classifier, or of each of a stack of them, in float32.

    Parameters
    ----------
    model
        A classifier, or :class:`~thrifty.nets.stacked.Stacked` ones.
    x
        Inputs.
    own
        Each stacked model has inputs of its own.

    Raises
    ------
    InputError
        When the model can't take such inputs, returns no logits, or can't run stacked.
    """
    if not isinstance(model, Stacked):
        return logits(model, x)
    try:
        output = model(x, own=own)
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"models of this kind can't run several at once ({str(error).splitlines()[0]}): attribute by gradients "
            "instead, with attribution='trak' and models=0"
        ) from error
    found: Tensor = output if isinstance(output, Tensor) else output.logits
    return found.float()


@torch.no_grad()
def outputs(
    models: Stacked | nn.Module | Sequence[nn.Module], data: Any, batch_size: int = 256
) -> Float[Tensor, "*models points classes"]:
    """What models say about all examples of a set, in evaluation mode.

    Parameters
    ----------
    models
        One classifier, stacked ones, or a list of them.
    data
        Any data of the room; labels are not looked at.
    batch_size
        Examples asked about at once.

    Returns
    -------
    Tensor
        Logits on the CPU, float32; for one classifier without the first dimension.
    """
    if not isinstance(models, nn.Module):
        return torch.stack([outputs(model, data, batch_size) for model in models])
    found = []
    with evaluating(models):
        for given in stream(data, batch_size):
            batch = given.to(device_of(models))
            if not isinstance(batch, Labelled):
                raise InputError("these models are classifiers: give inputs (x, y), no texts")
            found.append(said(models, batch.x).cpu())
    return torch.cat(found, -2)
