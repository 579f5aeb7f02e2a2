"""The one training loop.

:func:`loop` repeats any update and makes it resumable; :func:`fit` is the usual update (loss, backward,
clip, step) on top of it. Batches are addressed by their step number, so there is no position in the data to
save: batch 117 is the same batch in every life of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from thrifty.core import processes, sharding
from thrifty.core.errors import InputError, NonFiniteError, RunError
from thrifty.core.progress import Progress
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed, seed_everything
from thrifty.core.stopping import asked_to_stop

Batch = TypeVar("Batch")
Scalars = Mapping[str, float | Tensor]


class Stateful(Protocol):
    """Whatever has a state to save: modules, optimizers, schedulers, buffers."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Loss(NamedTuple):
    """A loss with what is worth logging beside it."""

    value: Tensor
    metrics: Scalars = MappingProxyType({})


class StoppedError(RunError):
    """The run was asked to stop (SIGTERM or Ctrl-C); its checkpoint is on the disk."""


class Shuffled:
    """The indices of batch ``step`` of an endless shuffled pass over ``size`` examples.

    Every epoch is a fresh permutation that depends on the seed and the epoch only. The last, short batch of
    an epoch is kept as it is, left out, or filled from the next epoch.

    Parameters
    ----------
    size
        Number of examples.
    batch_size
        Examples in a batch; at most ``size`` are given.
    seed
        Seed of the order.
    last
        ``keep``, ``drop`` or ``fill``: what becomes of a short last batch. With ``fill``, two batches of half the
        size hold what one of the whole size does.

    Raises
    ------
    InputError
        When there is no example.
    """

    def __init__(
        self, size: int, batch_size: int, seed: int = 0, *, last: Literal["keep", "drop", "fill"] = "keep"
    ) -> None:
        if size < 1:
            raise InputError("there are no examples to train on: the data set is empty")
        if batch_size < 1:
            raise InputError(f"batch size must be at least 1, not {batch_size}")
        self.size, self.batch_size, self.seed = size, min(batch_size, size), seed
        self.last = last
        self.per_epoch = self.size // self.batch_size if last == "drop" else math.ceil(self.size / self.batch_size)
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.long)

    def __call__(self, step: int) -> Tensor:
        """The indices ``[B]`` of batch ``step``."""
        if self.last == "fill":
            first = step * self.batch_size
            epoch, start = divmod(first, self.size)
            head = self._permutation(epoch)[start : start + self.batch_size]
            missing = self.batch_size - len(head)
            return torch.cat([head, self._permutation(epoch + 1)[:missing]]) if missing else head
        epoch, batch = divmod(step, self.per_epoch)
        return self._permutation(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]

    def _permutation(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            self._order, self._epoch = torch.randperm(self.size, generator=generator), epoch
        return self._order


def loop(
    update: Callable[[int], Scalars],
    run: Run,
    steps: int,
    state: Mapping[str, Stateful],
    *,
    save_every: int | None = 200,
    log_every: int = 1,
    label: str = "train",
) -> None:
    """Calls ``update(step)`` until ``steps`` are done, from where an earlier life of the run left off.

    Parameters
    ----------
    update
        Does one step and returns what to log; a value that is not finite ends the run with an error that
        names the step.
    run
        Where metrics and checkpoints go.
    steps
        How many steps there are in all.
    state
        Everything whose state the next step depends on: modules, optimizers, schedulers, buffers. Global
        generators are kept without being named.
    save_every
        Steps between checkpoints; one more is made at the end. ``None``: none at all, for short parts of a job that
        starts them anew.
    log_every
        Steps between lines of metrics.
    label
        What the progress bar says.

    Raises
    ------
    NonFiniteError
        When an update returns NaN or infinity.
    StoppedError
        After SIGTERM or Ctrl-C, once the state is saved.
    """
    start = _restore(run, state)
    with Progress(label, steps, start) as progress, asked_to_stop() as asked:
        for step in range(start, steps):
            scalars = {name: float(value) for name, value in update(step).items()}
            for name, value in scalars.items():
                if not math.isfinite(value):
                    raise NonFiniteError(
                        f"{name} is {value} at step {step} (batch {step}): try a smaller learning rate, or look at "
                        "that batch; the checkpoint before it is kept"
                    )
            if step % log_every == 0 or step + 1 == steps:
                run.log(step, **scalars)
            progress.update(note="  ".join(f"{k} {v:.4g}" for k, v in list(scalars.items())[:3]))
            done, stopping = step + 1, any(processes.gather(asked()))
            if save_every is not None and (done % save_every == 0 or done == steps or stopping):
                run.save(done, _collect(state), wait=done == steps or stopping)
            if stopping and done < steps:
                raise StoppedError(f"stopped at step {done} of {steps}: the same command goes on from there")


def _collect(state: Mapping[str, Stateful]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in state.items()}


def _restore(run: Run, state: Mapping[str, Stateful]) -> int:
    found = run.latest()
    if found is None:
        return 0
    step, saved = found
    for name, part in state.items():
        part.load_state_dict(saved[name])
    return step


def fit(
    loss: Callable[[nn.Module, Batch], Loss | Tensor],
    model: nn.Module,
    batches: Callable[[int], Batch] | Sequence[Batch],
    optimizer: torch.optim.Optimizer | Callable[[nn.Module], torch.optim.Optimizer],
    run: Run,
    steps: int,
    *,
    clip_norm: float | None = 1.0,
    clip_each: Sequence[str] = (),
    accumulate: int = 1,
    combine: Literal["mean", "sum"] = "mean",
    schedule: Callable[[int], float] | None = None,
    state: Mapping[str, Stateful] | None = None,
    save_every: int | None = 200,
    log_every: int = 1,
    label: str = "train",
) -> nn.Module:
    """Trains ``model`` on ``loss`` for ``steps`` optimizer steps; resumable, data-parallel under ``torchrun``.

    Under ``accelerate launch --use_fsdp`` parameters, gradients and optimizer state are sharded over the processes.

    Parameters
    ----------
    loss
        ``loss(model, batch)``: a scalar tensor, or :class:`Loss` with metrics to log. It uses the model that it is
        given, which is a sharded copy where parameters are sharded.
    model
        What is trained, in place. Between the steps, see :func:`thrifty.core.sharding.gathered`.
    batches
        ``batches(i)``: batch number ``i``, the same each time it is asked for; or a list of batches, which is
        gone through again and again. Step ``s`` uses the batches from ``s * accumulate`` on; of several processes
        each takes every so many'th.
    optimizer
        Builds it over the parameters of the model that it is given; or the optimizer, where nothing is sharded.
    run
        Where metrics and checkpoints go, and which device is used.
    steps
        Optimizer steps in all.
    clip_norm
        Largest norm of the gradient; ``None`` leaves it.
    clip_each
        Children of the model by name, of each of which this is the largest norm; of the whole where none is named.
    accumulate
        Batches that make one step, over all processes.
    combine
        ``mean``: a step's loss is the mean over its batches; ``sum``: their sum, for losses whose terms already
        carry the weight that they have in the whole step.
    schedule
        ``schedule(step)``: what the learning rates are multiplied by.
    state
        More to save beside model and optimizer.
    save_every, log_every, label
        As for :func:`loop`.

    Returns
    -------
    nn.Module
        ``model``.

    Raises
    ------
    InputError
        When a step's batches can't be dealt out evenly to the processes, or an optimizer has parameters to be sharded.
    NonFiniteError
        When a loss or the gradient's norm is not finite; the weights keep their last good values.
    StoppedError
        As for :func:`loop`.
    """
    from accelerate import Accelerator

    rank, world = processes.rank(), processes.world()
    if accumulate % world:
        raise InputError(f"{accumulate} batches a step can't be dealt out evenly to {world} processes")
    fetch = batches if callable(batches) else _cycled(batches)
    accelerator, sharded = Accelerator(cpu=run.device.type == "cpu"), sharding.on()
    model.to(accelerator.device)
    # The loss is the forward pass, whatever it calls the model for, so that gradients are exchanged behind it.
    if sharded:
        if isinstance(optimizer, torch.optim.Optimizer):
            raise InputError("the optimizer is built before the parameters are sharded: give a function that builds it")
        forward = prepared = sharding.shard(model, partial(_Forward, loss=loss))
        waiting: Callable[[], Any] = nullcontext  # gradients that wait to be exchanged would not be sharded meanwhile
    else:
        forward = _Forward(model, loss)
        prepared = accelerator.prepare_model(forward)
        waiting = partial(accelerator.no_sync, prepared)
    trained = forward.model
    if not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = optimizer(trained)
    rates = [group["lr"] for group in optimizer.param_groups]
    clipped = {f"{name}_gradient_norm": trained.get_submodule(name) for name in clip_each}
    clipped = clipped or {"gradient_norm": prepared}
    # Gradients are averaged over the processes.
    share = world / accumulate if combine == "mean" else world
    if rank:
        seed_everything(derive_seed(run.seed, "rank", rank))  # dropout differs between them

    def update(step: int) -> Scalars:
        trained.train()
        measured: dict[str, list[float]] = {}
        for part in range(rank, accumulate, world):
            index = step * accumulate + part
            last = part + world >= accumulate
            with nullcontext() if last else waiting():
                value, metrics = prepared(_Held(fetch(index)))
                if not torch.isfinite(value):
                    raise NonFiniteError(
                        f"the loss is {float(value.detach())} at step {step}, batch {index}: try a smaller learning "
                        "rate, or look at that batch; the checkpoint before it is kept"
                    )
                accelerator.backward(value * share)
            for name, scalar in {"loss": value.detach(), **metrics}.items():
                measured.setdefault(name, []).append(float(scalar))
        # Of the loss what it is combined to, of the rest the mean over the batches that have it.
        logged = {
            name: sum(given) / (1 if name == "loss" and combine == "sum" else len(given))
            for name, given in processes.merged(measured).items()
        }
        for name, module in (clipped if clip_norm is not None else {}).items():
            norm = accelerator.clip_grad_norm_(module.parameters(), clip_norm)
            logged[name] = float(sharding.full(norm))
            if not math.isfinite(logged[name]):
                raise NonFiniteError(f"the gradient is not finite at step {step}: try a smaller learning rate")
        if schedule is not None:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return logged

    saved: dict[str, Stateful] = {"model": trained, "optimizer": optimizer, **(state or {})}
    if sharded:
        saved = {name: sharding.Whole(part) for name, part in saved.items()}
    loop(update, run, steps, saved, save_every=save_every, log_every=log_every, label=label)
    sharding.gather(model)
    return model.eval()


@dataclass(frozen=True)
class _Held:
    """A batch that wrappers do not move to the device: it may be indices of data elsewhere."""

    batch: Any


class _Forward(nn.Module):
    """A model under its loss."""

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Any], Loss | Tensor]) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, held: _Held) -> tuple[Tensor, Scalars]:
        result = self.loss(self.model, held.batch)
        return (result.value, result.metrics) if isinstance(result, Loss) else (result, {})


def _cycled(batches: Sequence[Batch]) -> Callable[[int], Batch]:
    if not len(batches):
        raise InputError("there are no batches to train on: the data set is empty")
    return lambda index: batches[index % len(batches)]
