"""Train once: a model is trained and made smaller in one run, from new weights or from trained ones."""

from __future__ import annotations

import copy
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.run import Run
from thrifty.shrink.base import check_sparsity
from thrifty.shrink.directions import Direction, Variant
from thrifty.shrink.group_sparse import GroupSparse
from thrifty.shrink.training import as_training
from thrifty.shrink.zero_groups import GroupSet, construct_subnet, output_difference, partition_groups

_log = logging.getLogger("thrifty")


def step_decay(steps: int, drops: int) -> Callable[[int], float]:
    """A schedule that falls to a tenth so many times, at even distances."""
    return lambda step: 0.1 ** ((drops + 1) * step // max(steps, 1))


@dataclass(frozen=True)
class Plan:
    """How long a training is, for the settings that are given in epochs, and how far it moves.

    Parameters
    ----------
    steps
        Optimizer steps in all.
    per_epoch
        Of one pass over the data.
    rates
        The learning rate of each step.
    """

    steps: int
    per_epoch: int
    rates: tuple[float, ...] = ()

    def of(self, epochs: float) -> int:
        """Steps of so many epochs."""
        return round(epochs * self.per_epoch)


@dataclass(frozen=True)
class TrainOnce(ABC):
    """The fields that methods have in common which train with an optimizer of groups, and their verb.

    Parameters
    ----------
    sparsity
        Share of the groups of channels to remove. The share of the weights that goes is larger: 0.7 of the groups of a
        residual network are about 0.9 of its weights.
    epochs
        Passes over the training data, pruning included.
    learning_rate
        Of the first part of the training.
    drops
        How many times the learning rate falls to a tenth, at even distances.
    batch_size
        Examples in a batch.
    variant
        ``sgd``, ``adam`` or ``adamw``: what the weights move along.
    momentum
        Of SGD.
    weight_decay
        Within the direction; AdamW takes it apart.
    divisible
        The number of channels that stay in a layer is to be a multiple of it.
    skip
        Names of modules or parameters that stay whole, separated by commas.
    """

    kind: ClassVar[str] = "trained"
    needs: ClassVar[tuple[str, ...]] = ("training",)

    sparsity: float = 0.5
    epochs: float = 10.0
    learning_rate: float = 0.1
    drops: int = 1
    batch_size: int = 64
    variant: Variant = "sgd"
    momentum: float = 0.0
    weight_decay: float = 1e-4
    divisible: int = 1
    skip: str = ""

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        for name, least in (("batch_size", 1), ("divisible", 1), ("drops", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        self.direction  # noqa: B018 (checks its constants)

    @property
    def direction(self) -> Direction:
        """What the weights move along."""
        return Direction(self.variant, self.momentum, weight_decay=self.weight_decay)

    def plan(self, per_epoch: int) -> Plan:
        """How long the training is, and its learning rates.

        Parameters
        ----------
        per_epoch
            Steps of one pass over the data.
        """
        steps = max(1, round(self.epochs * per_epoch))
        schedule = step_decay(steps, self.drops)
        return Plan(steps, per_epoch, tuple(self.learning_rate * schedule(step) for step in range(steps)))

    @abstractmethod
    def optimizer(self, groups: GroupSet, plan: Plan) -> GroupSparse:
        """The optimizer of the method over the groups of a model.

        Raises
        ------
        InputError
            When its stages do not fit into the training, or so many groups can't go.
        """

    def train(self, model: nn.Module, training: Any, run: Run) -> tuple[nn.Module, GroupSet]:
        """A copy of the model that was trained until groups of it are zero, and its groups.

        Parameters
        ----------
        model
            With new or trained weights; it stays as it is.
        training
            What it is trained on: inputs and classes ``(x, y)`` of a classifier, or any
            :class:`~thrifty.shrink.training.Training`, examples with a loss.
        run
            For checkpoints and metrics; killed and started again, it goes on.

        Raises
        ------
        InputError
            As :func:`~thrifty.shrink.zero_groups.partition_groups` and :meth:`optimizer` do, and for no examples.
        """
        data = as_training(training)
        # In half precision most steps of a fine-tuning would be rounded away.
        trained = copy.deepcopy(model).float().to(run.device).train()
        example = [value.to(run.device) if isinstance(value, Tensor) else value for value in data.example()]
        skip = [name.strip() for name in self.skip.split(",") if name.strip()]
        groups = partition_groups(trained, *example, skip=skip)
        # A short last batch may be a single example, which batch normalisation can't train on.
        order = Shuffled(len(data), self.batch_size, run.seed, last="drop")
        plan = self.plan(order.per_epoch)
        optimizer = self.optimizer(groups, plan)

        def loss(pupil: nn.Module, step: int) -> Loss:
            value = data.loss(pupil, order(step))
            optimizer.loss = value.detach()
            return Loss(value, {"zero_groups": optimizer.sparsity})

        fit(
            loss,
            trained,
            lambda step: step,
            optimizer,
            run,
            plan.steps,
            clip_norm=None,
            schedule=step_decay(plan.steps, self.drops),
        )
        if int(optimizer.zero.sum()) < optimizer.wanted:
            _log.warning(
                "only %.1f%% of the groups are zero, not %.1f%%: train longer, or raise the penalty",
                100 * optimizer.sparsity,
                100 * optimizer.expected,
            )
        return trained, groups

    def shrink(self, model: nn.Module, training: Any, run: Run) -> nn.Module:
        """The smaller model, of the same class, which computes what the trained model with zeros does.

        Parameters
        ----------
        model, training, run
            As for :meth:`train`.
        """
        trained, groups = self.train(model, training, run)
        smaller = construct_subnet(trained, groups)
        _log.info("the smaller model's outputs differ by %.1e", output_difference(trained, smaller, groups))
        return smaller.to(next(model.parameters()).dtype).eval()
