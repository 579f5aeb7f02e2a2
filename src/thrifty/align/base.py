"""What every method of the room is made of: an objective on sequences, and how long and how fast to train.

A method is a setting of four slots: where sequences come from, what they are worth, how worth becomes per-token
credit, and the loss that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from thrifty.core.errors import InputError, nearest
from thrifty.core.loop import Loss
from thrifty.core.precision import MasterWeights
from thrifty.core.schedules import warmup_constant, warmup_cosine, warmup_linear
from thrifty.lm.sequences import Sequences


def check_choices(settings: Any) -> None:
    """Checks the fields of a dataclass that may have certain values only.

    Raises
    ------
    InputError
        When a field typed as a ``Literal`` has none of its values; the nearest are named.
    """
    for name, kind in get_type_hints(type(settings)).items():
        value = getattr(settings, name, None)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise InputError(f"{name} is {value!r}: {nearest(str(value), get_args(kind))}")


@dataclass(frozen=True)
class Training:
    """How long and how fast to train.

    Parameters
    ----------
    optimizer
        ``adamw`` or ``adafactor`` (less memory).
    learning_rate
        Of the optimizer, at its highest.
    batch_size
        Answers in one optimizer step.
    micro_batch_size
        Answers in one forward pass; their gradients are added up.
    epochs
        Passes over the data; may be a fraction.
    clip_norm
        Largest norm of the gradient.
    weight_decay
        Decoupled weight decay.
    warmup_steps
        Steps over which the learning rate rises.
    warmup_ratio
        The same as a share of all steps; used where ``warmup_steps`` is 0.
    schedule
        What the learning rate does after the warm-up: ``constant``, or ``linear`` or ``cosine`` down to
        ``final_ratio`` of its height.
    final_ratio
        Of the learning rate, what is left of it in the last step of a cosine.
    betas
        Decay of AdamW's two averages.
    epsilon
        AdamW's.
    activation_gib
        GiB that the activations of a forward pass may take; what is beyond is computed again in the backward pass, so
        more is faster. By default 0.875 on a CPU and half of the free memory on a GPU.
    """

    optimizer: Literal["adamw", "adafactor"] = "adamw"
    learning_rate: float = 1e-5
    batch_size: int = 16
    micro_batch_size: int = 16
    epochs: float = 1.0
    clip_norm: float = 1.0
    weight_decay: float = 0.0
    warmup_steps: int = 0
    warmup_ratio: float = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    final_ratio: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    activation_gib: float | None = None

    def __post_init__(self) -> None:
        if self.activation_gib is not None and not self.activation_gib > 0:
            raise InputError(f"activation_gib must be above 0, not {self.activation_gib:g}")
        for name in ("learning_rate", "batch_size", "micro_batch_size", "epochs", "clip_norm"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        if self.batch_size % min(self.micro_batch_size, self.batch_size):
            raise InputError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch_size {self.micro_batch_size}"
            )

    def steps(self, examples: int) -> int:
        """Optimizer steps for that many examples, at least one."""
        return max(1, round(self.epochs * examples / min(self.batch_size, examples)))

    def as_many_steps(self, examples: int, kept: int) -> Training:
        """The training that takes as many steps on ``kept`` examples as this one on ``examples``.

        So that a method that drops answers gets the same budget as one that learns from all of them.
        """
        return replace(self, epochs=self.steps(examples) * min(self.batch_size, kept) / kept)

    def build_optimizer(self, model: nn.Module, rates: Mapping[str, float] | None = None) -> torch.optim.Optimizer:
        """The optimizer over float32 copies of what is trained.

        Parameters
        ----------
        model
            Those of its parameters that need a gradient are trained.
        rates
            Learning rates of children of the model by their names, where they differ from ``learning_rate``.

        Raises
        ------
        InputError
            When no parameter of the model needs a gradient.
        """
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            raise InputError("no parameter of the model is trained: all have requires_grad=False")
        own = {id(p): rate for name, rate in (rates or {}).items() for p in model.get_submodule(name).parameters()}

        def groups(masters: list[nn.Parameter]) -> list[dict[str, Any]]:
            by_rate: dict[float, list[nn.Parameter]] = {}
            for parameter, master in zip(parameters, masters, strict=True):
                by_rate.setdefault(own.get(id(parameter), self.learning_rate), []).append(master)
            return [{"params": given, "lr": rate} for rate, given in by_rate.items()]

        if self.optimizer == "adafactor":
            return MasterWeights(
                parameters,
                lambda p: torch.optim.Adafactor(
                    groups(p), lr=self.learning_rate, weight_decay=self.weight_decay, foreach=True
                ),
            )
        return MasterWeights(
            parameters,
            lambda p: torch.optim.AdamW(
                groups(p),
                lr=self.learning_rate,
                betas=self.betas,
                eps=self.epsilon,
                weight_decay=self.weight_decay,
                # One pass over memory instead of ten; elsewhere foreach is chosen.
                fused=True if all(part.device.type in {"cpu", "cuda"} for part in p) else None,
            ),
        )

    def factors(self, steps: int) -> Callable[[int], float] | None:
        """What the learning rate is multiplied by in each of so many steps; ``None`` where it stays the same."""
        warmup = self.warmup_steps or round(self.warmup_ratio * steps)
        if self.schedule == "linear":
            return warmup_linear(steps, warmup)
        if self.schedule == "cosine":
            return warmup_cosine(steps, warmup, self.final_ratio)
        return warmup_constant(warmup) if warmup else None


def overridden(training: Training, given: object) -> Training:
    """The training with those fields replaced that ``given`` has under the same name and not ``None``."""
    names = {field.name for field in fields(Training)}
    changes = {name: getattr(given, name) for name in names if getattr(given, name, None) is not None}
    return replace(training, **changes)


class NothingToLearnError(InputError):
    """A method has left no answer to learn from; in rounds of sampling, that round is skipped."""


class Objective:
    """What a method of the room is to the training loop: a base class of which a method says what is new.

    ``prepare`` turns what is known of answers into what the loss uses (worth and credit), once for logged answers and
    once for each rollout; ``loss`` is the rest.
    """

    training: ClassVar[Training] = Training()
    """How long and how fast the paper trains."""
    embedded: ClassVar[str] = "arithmetic"
    """The data of the package that the command takes where the user gives none."""
    rows_per_example: ClassVar[int] = 1
    """Neighbouring rows that stay together in a batch: 2 for pairs, 3 for triples."""
    value_learning_rate: float | None = None
    """Of the critic; the policy's when ``None``."""

    def needs(self) -> frozenset[str]:
        """Columns that the loop must bring where the data have none.

        ``behaviour_logps``: under the policy that gave the answers; ``reference_logps``: under the reference model;
        ``values``: of the critic, after each token (so that the one before token t stands at t - 1).
        """
        return frozenset()

    def prepare(self, data: Sequences) -> Sequences:
        """Turns logged or sampled columns into those that the loss uses; may leave answers out.

        A column ``sampling_weight [N]`` lets logged answers be drawn with replacement, with probabilities
        proportional to it, instead of in shuffled passes.

        Raises
        ------
        NothingToLearnError
            When no answer is left.
        """
        return data

    def measured(self, answers: Sequences) -> Mapping[str, float]:
        """What to log of the answers of a round of sampling, beside their mean reward."""
        del answers
        return {}

    def teaches(self, batch: Sequences) -> Bool[Tensor, " N"]:
        """Which of a step's prepared sequences the loss depends on: the others need no forward pass."""
        return torch.ones(len(batch), dtype=torch.bool)

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's batch.

        Parameters
        ----------
        model
            The policy.
        batch
            Prepared sequences on the model's device.
        whole
            All sequences of the step, of which ``batch`` is a part: sums are divided by what the step holds (answers,
            tokens, weights), so that the losses of its parts add up to the step's. Equal to ``batch`` where the
            step has one part.
        """
        raise NotImplementedError

    def critic(self, model: nn.Module) -> nn.Module | None:
        """What values the states of the policy, and is trained beside it; ``None`` where the method has no critic.

        Parameters
        ----------
        model
            The policy before training.

        Returns
        -------
        nn.Module or None
            Called with sequences it gives ``[N, T]``: the value after each token.
        """
        del model
        return None

    def value_loss(self, critic: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The critic's loss of a part of a step's batch, which is added to :meth:`loss`."""
        raise NotImplementedError


class ActorCritic(nn.Module):
    """What is trained where a method has a critic.

    Parameters
    ----------
    policy
        The language model.
    critic
        Of its states.
    """

    def __init__(self, policy: nn.Module, critic: nn.Module) -> None:
        super().__init__()
        self.policy, self.critic = policy, critic
