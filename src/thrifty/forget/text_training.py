"""Training of a language model on several sets of texts at once, with one forward pass for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.precision import MasterWeights
from thrifty.core.run import Run
from thrifty.core.schedules import warmup_linear
from thrifty.core.seeding import derive_seed
from thrifty.forget.base import device_of
from thrifty.forget.data import Texts, as_source
from thrifty.forget.overlap import warn_of_overlap
from thrifty.forget.preference import ascent_loss
from thrifty.lm.backbone import evaluating
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.sequences import Sequences

REFERENCE = "reference_logps"
Step = Mapping[str, Sequences]


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model being trained says of the answers of some rows.

    Parameters
    ----------
    logps
        Log-probability of each answer token, [B, T]; 0 elsewhere.
    mask
        True at answer tokens, [B, T].
    reference
        Log-probability of each whole answer before training, [B]; nothing where no loss asks for it.
    """

    logps: Float[Tensor, "row time"]
    mask: Bool[Tensor, "row time"]
    reference: Float[Tensor, " row"]

    @property
    def total(self) -> Float[Tensor, " row"]:
        """Log-probability of each whole answer: the sum over its tokens, never the mean."""
        return sequence_logps(self.logps, self.mask, "sum")

    @property
    def nll(self) -> Float[Tensor, ""]:
        """Cross-entropy: the mean over all answer tokens."""
        return -ascent_loss(self.logps, self.mask)


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Parameters
    ----------
    learning_rate
        Of AdamW, at its highest: it rises over the warm-up and falls linearly to 0.
    weight_decay
        Decoupled.
    epochs, warmup_epochs
        Passes over the forget set, in all and while the rate rises.
    batch_size, micro_batch_size
        Examples of each set in an optimizer step, and in a forward pass.
    """

    learning_rate: float
    weight_decay: float
    epochs: float
    warmup_epochs: float
    batch_size: int
    micro_batch_size: int


def text_sets(given: Mapping[str, Any]) -> dict[str, Sequences]:
    """All rows of sets of texts, by name.

    Parameters
    ----------
    given
        Any data of the room that are texts.

    Raises
    ------
    InputError
        When a set is missing, empty or holds no texts, a row has no answer, or the refusals are not as many as the
        answers that they take the place of.
    """
    sets = {}
    for name, data in given.items():
        spoken = name.replace("_", " ")
        if data is None:
            raise InputError(f"these settings need a {spoken}: give {name}")
        source = as_source(data, spoken)
        batch = source.rows(torch.arange(len(source)))
        if not isinstance(batch, Texts):
            raise InputError(f"the {spoken} holds no token sequences: give Sequences, for example from lm.from_records")
        rows = batch.sequences
        empty = (rows.response_lengths == 0).nonzero()
        if len(empty):
            raise InputError(f"example {int(empty[0, 0])} of the {spoken} has no answer: give it a completion")
        sets[name] = rows.without_columns(*rows.columns).to("cpu")
    if "retain_set" in sets:
        warn_of_overlap(sets["forget_set"], sets["retain_set"])
    if "refusal_set" in sets and len(sets["refusal_set"]) != len(sets["forget_set"]):
        raise InputError(
            f"there are {len(sets['refusal_set'])} refusals for {len(sets['forget_set'])} answers to forget: give one "
            "for each, in the same order"
        )
    return sets


def width(model: Any) -> int:
    """Features of a token in a language model."""
    return int(model.get_input_embeddings().weight.shape[1])


@torch.no_grad()
def with_reference(model: nn.Module, rows: Sequences, batch_size: int = 32) -> Sequences:
    """Adds what the model says of each answer now, as a column, so that it need not be kept as it is.

    Parameters
    ----------
    model
        In whatever mode; it speaks without dropout.
    rows
        On any device.
    batch_size
        Rows read at once.
    """
    found = []
    with evaluating(model):
        for first in range(0, len(rows), batch_size):
            part = rows.select(slice(first, first + batch_size)).trim().to(device_of(model))
            found.append(sequence_logps(token_logps(model, part), part.response_mask, "sum").cpu())
    return rows.with_columns(**{REFERENCE: torch.cat(found)})


def answers(model: nn.Module, step: Step) -> dict[str, Answers]:
    """What a model says of the answers of several sets, in one forward pass.

    Parameters
    ----------
    model
        The model being trained.
    step
        Rows by the name of their set, on its device.
    """
    plain = {name: rows.without_columns(REFERENCE) for name, rows in step.items()}
    together = Sequences.cat(plain.values())
    sizes = [len(rows) for rows in step.values()]
    logps, masks = token_logps(model, together).split(sizes), together.response_mask.split(sizes)
    return {
        name: Answers(said, mask, rows.columns.get(REFERENCE, said.new_empty(0)))
        for (name, rows), said, mask in zip(step.items(), logps, masks, strict=True)
    }


def train_texts(
    model: nn.Module,
    objective: Callable[[nn.Module, Step], Loss],
    sets: Step,
    run: Run,
    schedule: Schedule,
    *,
    apart: Collection[str] = (),
    save_every: int | None = 50,
    label: str = "forget",
) -> nn.Module:
    """Trains a model in place on an objective over rows of several sets; resumable.

    Every step takes as many rows of each set. Sets share one order, so that row n of the refusal set goes with row n of
    the forget set, but for those that stand ``apart``.

    Parameters
    ----------
    model
        On the run's device.
    objective
        ``objective(model, step)``.
    sets
        Rows by name. Epochs are those of the first set.
    run
        For the seed, metrics and checkpoints.
    schedule
        How long and how fast.
    apart
        Names of sets that have an order of their own.
    save_every
        Steps between checkpoints; ``None`` for none.
    label
        What the progress bar says.
    """
    size = len(next(iter(sets.values())))
    batch = min(schedule.batch_size, size)
    parts = math.ceil(batch / schedule.micro_batch_size)
    micro = math.ceil(batch / parts)

    def order(name: str) -> Shuffled:
        seed = derive_seed(run.seed, name if name in apart else "answers")
        return Shuffled(len(sets[name]), micro, seed, last="fill")

    orders = {name: order(name) for name in sets}

    def rows_of(index: int) -> Step:
        return {name: rows.select(orders[name](index)).trim().to(run.device) for name, rows in sets.items()}

    steps = max(1, round(schedule.epochs * size / batch))
    return fit(
        objective,
        model,
        rows_of,
        lambda net: MasterWeights(
            net.parameters(),
            lambda p: torch.optim.AdamW(p, lr=schedule.learning_rate, weight_decay=schedule.weight_decay),
        ),
        run,
        steps,
        accumulate=parts,
        schedule=warmup_linear(steps, min(steps - 1, round(schedule.warmup_epochs * size / batch))),
        save_every=save_every,
        label=label,
    )
