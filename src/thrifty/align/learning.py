"""The loop under every method of the room: optimizer steps on batches of prepared sequences."""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from thrifty.align.base import ActorCritic, Objective, Training
from thrifty.align.priority import Weighted
from thrifty.core import processes
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss, Shuffled, Stateful, fit
from thrifty.core.run import Run
from thrifty.lm.memory import activations_of
from thrifty.lm.sequences import Sequences


class Source(Protocol):
    """Where a step's sequences come from."""

    metrics: dict[str, float]

    def rows(self) -> int:
        """Rows in a batch."""
        ...

    def batch(self, step: int) -> Sequences:
        """The prepared sequences of a step, on the CPU; the same each time it is asked for."""
        ...


class Logged:
    """Batches of prepared logged sequences, in an order that depends on the seed only.

    Parameters
    ----------
    data
        Prepared sequences; a column ``sampling_weight`` makes it draws with replacement instead of shuffled passes.
    batch_size
        Rows in a batch.
    seed
        Of the order.
    rows
        Neighbouring rows that stay together.
    """

    def __init__(self, data: Sequences, batch_size: int, seed: int, rows: int = 1) -> None:
        if len(data) % rows:
            raise InputError(f"{len(data)} sequences can't be taken {rows} at a time: examples are not complete")
        self.data, self.rows_each = data, rows
        size, weights = max(1, batch_size // rows), data.columns.get("sampling_weight")
        self.order: Shuffled | Weighted
        if weights is None:
            self.order = Shuffled(len(data) // rows, size, seed, last="fill")
        else:
            self.order = Weighted(weights[::rows], size, seed)
        self.metrics: dict[str, float] = {}

    def rows(self) -> int:
        """See :class:`Source`."""
        return self.order.batch_size * self.rows_each

    def batch(self, step: int) -> Sequences:
        """See :class:`Source`."""
        first = self.order(step)[:, None] * self.rows_each
        return self.data.select((first + torch.arange(self.rows_each)).flatten())


def learn(
    model: nn.Module,
    objective: Objective,
    source: Source,
    run: Run,
    training: Training,
    steps: int,
    *,
    critic: nn.Module | None = None,
    state: dict[str, Stateful] | None = None,
    save_every: int | None = 50,
) -> None:
    """The loop under :func:`thrifty.align.training.train`: steps on batches of a source.

    Parameters
    ----------
    model, objective, run, training, save_every
        As for :func:`thrifty.align.training.train`.
    source
        Where batches come from.
    steps
        Optimizer steps.
    critic
        What the objective's ``critic`` gave: trained beside the policy, with a gradient that is clipped by itself.
    state
        What else the next step depends on.
    """
    rows = objective.rows_per_example
    parts = _parts(source.rows(), training.micro_batch_size, rows)

    def part_of(index: int) -> tuple[Sequences, Sequences, float]:
        whole = source.batch(index // parts)
        mine = _teaching(objective.teaches(whole), parts, rows).tensor_split(parts)[index % parts]
        # A part without an example has a forward pass all the same, because processes wait for each other's.
        counts = float(len(mine) > 0)
        mine = mine if len(mine) else torch.zeros(1, dtype=torch.long)
        return whole.select((mine[:, None] * rows + torch.arange(rows)).flatten()).trim(), whole, counts

    def loss(net: nn.Module, given: tuple[Sequences, Sequences, float]) -> Loss:
        part, whole, counts = given
        part = part.to(run.device)
        with activations_of(training.activation_gib):
            if isinstance(net, ActorCritic):
                found, valued = objective.loss(net.policy, part, whole), objective.value_loss(net.critic, part, whole)
                found = Loss(found.value + valued.value, {**found.metrics, **valued.metrics})
            else:
                found = objective.loss(net, part, whole)
        return Loss(found.value * counts, {**found.metrics, **source.metrics})

    rate = objective.value_learning_rate
    fit(
        loss,
        model if critic is None else ActorCritic(model, critic),
        part_of,
        partial(training.build_optimizer, rates={} if critic is None or rate is None else {"critic": rate}),
        run,
        steps,
        clip_norm=training.clip_norm,
        clip_each=() if critic is None else ("policy", "critic"),
        accumulate=parts,
        combine="sum",
        schedule=training.factors(steps),
        state=state,
        save_every=save_every,
    )


def _parts(batch: int, most: int, rows: int) -> int:
    """Into how many parts of at most ``most`` rows a step's batch is cut, as many for each process."""
    world = processes.world()
    parts = math.ceil(batch / (max(most, rows) // rows * rows * world)) * world
    if parts > batch // rows:
        raise InputError(f"a batch of {batch} can't be dealt out to {world} processes: give a larger --batch-size")
    return parts


def _teaching(teaches: Tensor, parts: int, rows: int) -> Tensor:
    """Examples with a row that teaches, filled up with others so that every part has one."""
    whole = teaches.view(-1, rows).any(1)
    chosen, others = whole.nonzero()[:, 0], (~whole).nonzero()[:, 0]
    return torch.cat([chosen, others[: max(0, parts - len(chosen))]]).sort().values
