"""N2N: one policy removes layers of a trained network, another shrinks what is left, both rewarded for the result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.shrink.architecture_search import Scores
from thrifty.shrink.controllers import Form, Scale
from thrifty.shrink.n2n_stages import best_student, removal_search, shrinkage_search, train_policy
from thrifty.shrink.students import Students

Stages = Literal["both", "remove", "shrink"]
Constraint = Literal["hard", "relaxed", "released"]
RELAXED_UNTIL = 15


@register("n2n")
@dataclass(frozen=True)
class N2N:
    r"""Finds a smaller student of a trained convolutional classifier by policy gradients, and trains it on its logits.

    .. math::
        C = 1 - \frac{|student|}{|teacher|}, \qquad R = C (2 - C) \frac{A_{student}}{A_{teacher}}, \qquad
        \nabla J = \frac1N \sum_k \sum_t \nabla \log \pi(a_t \mid \cdot) (R_k - b)

    An episode goes over the layers of the teacher. The removal policy, a bidirectional LSTM, says which of them stay;
    of the best student it finds, the shrinkage policy scales kernel, stride, channels and padding of each layer by
    factors of a table, one after the other. The child is made anew, trained for a few epochs to match the teacher's
    logits, ``mean (student logits - teacher logits)^2``, and its accuracy A on held-out pictures and its number of
    parameters make the reward; one that can't exist gets -1. b is a moving average of rewards. Each network is trained
    once, whatever policy draws it how often.

    First and last layer, linear layers, average pooling and convolutions with a stride stay; in residual blocks only
    numbers of channels change, and shortcuts follow.

    Parameters
    ----------
    stages
        ``both``, or ``remove`` or ``shrink`` alone.
    iterations
        Updates of each policy.
    rollouts
        Episodes in each, N.
    removal_rate, shrinkage_rate
        Of Adam on the policies; the released code takes 0.1 for shrinkage.
    hidden, depth
        Size and number of the LSTMs' layers.
    form
        Of the removal policy: ``bidirectional``; ``autoregressive``, where each action depends on those before; or
        ``encoder-decoder``.
    critic
        Actor-critic for removal: a value for each layer takes the place of b.
    skips
        Show the policies where in its residual block a layer is.
    scale
        Of what the policies see: ``raw`` numbers, which saturate them where channels are hundreds, or ``log2``.
    multipliers
        What shrinkage chooses from: the ``paper``'s 0.1 to 1.0, or the ``released`` code's, five of whose eleven are
        0.5.
    fixed_actions
        Actions that change nothing: ``forced``, so that they carry no gradient; or ``sampled``, as in the released
        code.
    update
        ``paper`` (above), or ``released``: every rollout gets the iteration's mean reward less the sum of the means of
        earlier ones divided by one too many, and a step of its own.
    baseline_decay
        Of the moving average.
    max_parameters, min_accuracy
        What a student must keep to, if given; where both stages run, the size counts in the second one only.
    constraint
        What a student that does not keep to it gets: ``hard`` -1; ``relaxed``, a reward that falls to that in 15
        iterations; ``released``, the same formula, which rises again after them.
    reward_base
        What shrinkage is compared with: the ``teacher``, or the student of the first stage (``parent``), from which it
        then learns too, as in the released code.
    child_epochs, child_rate, child_decay
        How a child is trained for its reward: passes, learning rate and weight decay of Adam.
    hard_labels
        Weight of the labels' cross-entropy beside the teacher's logits.
    examples
        Training pictures for a child; all when not given.
    batch_size
        Pictures in a batch.
    student_epochs
        Passes in which the student found is trained.
    fewest_channels
        Layers are not made narrower than that.
    start_from
        The run of another search whose policies to begin with: one for a smaller teacher, say.

    Raises
    ------
    InputError
        When a setting is out of its range; the teacher is no chain of layers with or without residual blocks (the
        module is named); pictures do not fit the teacher; or policies to begin with are of another shape.

    References
    ----------
    Ashok, Rhinehart, Beainy and Kitani, N2N Learning: Network to Network Compression via Policy Gradient
    Reinforcement Learning, ICLR 2018, arXiv 1709.06030.
    """

    kind: ClassVar[str] = "classifier"
    needs: ClassVar[tuple[str, ...]] = ("train", "valid")

    stages: Stages = "both"
    iterations: int = 100
    rollouts: int = 5
    removal_rate: float = 0.003
    shrinkage_rate: float = 0.01
    hidden: int = 30
    depth: int = 2
    form: Form = "bidirectional"
    critic: bool = False
    skips: bool = False
    scale: Scale = "raw"
    multipliers: Literal["paper", "released"] = "paper"
    fixed_actions: Literal["forced", "sampled"] = "forced"
    update: Literal["paper", "released"] = "paper"
    baseline_decay: float = 0.9
    max_parameters: int | None = None
    min_accuracy: float | None = None
    constraint: Constraint = "hard"
    reward_base: Literal["teacher", "parent"] = "teacher"
    child_epochs: float = 5.0
    child_rate: float = 5e-4
    child_decay: float = 5e-4
    hard_labels: float = 0.0
    examples: int | None = None
    batch_size: int = 64
    student_epochs: float = 50.0
    fewest_channels: int = 10
    start_from: str | None = None

    def __post_init__(self) -> None:
        for name in ("iterations", "rollouts", "hidden", "depth", "batch_size", "fewest_channels"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("removal_rate", "shrinkage_rate", "child_epochs", "child_rate", "student_epochs"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("child_decay", "hard_labels"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if not 0 <= self.baseline_decay < 1:
            raise InputError(f"baseline_decay must be at least 0 and below 1, not {self.baseline_decay:g}")
        for name in ("max_parameters", "examples"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.min_accuracy is not None and not 0 < self.min_accuracy <= 1:
            raise InputError(f"min_accuracy must be above 0 and at most 1, not {self.min_accuracy:g}")

    def shrink(self, model: nn.Module, train: Any, valid: Any, run: Run) -> nn.Module:
        """A student of the teacher, trained; a :class:`thrifty.nets.chain.ChainNet`.

        Parameters
        ----------
        model
            The teacher, a classifier; it stays as it is.
        train
            What students learn from: pictures ``(x, y)`` with x as the teacher takes it, [N, channels, height, width].
        valid
            What their accuracy is measured on; no part of ``train``.
        run
            For its seed, device, checkpoints and metrics. ``search.json`` in it says what was found in each stage, and
            ``policies`` holds the policies.

        Raises
        ------
        InputError
            As above.
        """
        students = Students.of(self, model, train, valid, run)
        config, scores = students.config, Scores(students.score)
        found: dict[str, Any] = {"teacher": students.teacher}
        if self.stages != "shrink":
            stage = run.stage("removal")
            # How small is for the last stage to say: what removal leaves is still to shrink.
            first = replace(self, max_parameters=None) if self.stages == "both" else self
            search = train_policy(removal_search(first, config, students, scores), self.iterations, stage, run)
            config, found["removal"] = best_student(first, search, students)
        if self.stages == "both" and self.reward_base == "parent":
            students = Students.of(self, students.taught(config, run.stage("parent")), train, valid, run)
            scores = Scores(students.score)
        if self.stages != "remove":
            stage = run.stage("shrinkage")
            search = train_policy(shrinkage_search(self, config, students, scores), self.iterations, stage, run)
            config, found["shrinkage"] = best_student(self, search, students)
        write_json(run.directory / "search.json", found)
        return students.taught(config, run.stage("student"))

    def rewards(
        self, students: Students, accuracy: Float[Tensor, " N"], parameters: Float[Tensor, " N"], relaxed: float = 0.0
    ) -> Float[Tensor, " N"]:
        """The rewards of students of a teacher under these constraints.

        Parameters
        ----------
        students
            Of the teacher that they are compared with.
        accuracy, parameters
            Of each.
        relaxed
            Epsilon.
        """
        return compression_reward(
            accuracy,
            parameters,
            students.accuracy,
            students.parameters,
            max_parameters=self.max_parameters,
            min_accuracy=self.min_accuracy,
            relaxation=relaxed,
        )

    def relaxed(self, iteration: int) -> float:
        """Epsilon at an iteration; see :func:`relaxation`."""
        return relaxation(iteration, self.constraint)


def compression_reward(
    accuracy: Float[Tensor, " N"],
    parameters: Float[Tensor, " N"],
    base_accuracy: float,
    base_parameters: float,
    *,
    max_parameters: float | None = None,
    min_accuracy: float | None = None,
    relaxation: float = 0.0,
) -> Float[Tensor, " N"]:
    r"""``R = C (2 - C) A / A_base`` with ``C = 1 - parameters / base_parameters``.

    Where a constraint is broken, :math:`(\varepsilon - 1) + \varepsilon R`, which is -1 for a relaxation of 0.

    Parameters
    ----------
    accuracy, parameters
        Of the students.
    base_accuracy, base_parameters
        Of what they are compared with.
    max_parameters, min_accuracy
        The constraints, if there are some.
    relaxation
        Epsilon, from 0 to 1; see :func:`relaxation`.
    """
    compression = 1 - parameters / base_parameters
    reward = compression * (2 - compression) * accuracy / base_accuracy
    broken = torch.zeros_like(reward, dtype=torch.bool)
    if max_parameters is not None:
        broken |= parameters > max_parameters
    if min_accuracy is not None:
        broken |= accuracy < min_accuracy
    return torch.where(broken, (relaxation - 1) + relaxation * reward, reward)


def relaxation(iteration: int, constraint: Constraint = "relaxed") -> float:
    """Epsilon at an iteration: ``(1 - t/15)^4``, and 0 from the fifteenth on; always 0 for a ``hard`` constraint.

    The ``released`` code has no end at the fifteenth: the even power rises again, and is 1 at the thirtieth.
    """
    if constraint == "hard":
        return 0.0
    left = 1 - iteration / RELAXED_UNTIL
    return min(1.0, (left if constraint == "released" else max(left, 0.0)) ** 4)
