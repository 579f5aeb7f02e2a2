"""OVOR: "OVOR: OnePrompt with Virtual Outlier Regularization for Rehearsal-Free Class-Incremental Learning" (Huang,
Chen & Hsu, 2024, arXiv 2402.04129): one set of prompts for all tasks, and a head calm about made-up outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from thrifty.adapt.prompted import PromptedViT, tokens_of
from thrifty.adapt.task_learner import TaskLearner
from thrifty.adapt.virtual_outliers import Centre
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register
from thrifty.core.run import Run

EARLY, LATER = (0, 1), (2, 3, 4)
"""Layers of the two groups of prompts."""


@register("ovor")
@dataclass(frozen=True)
class OVOR:
    r"""Learns tasks of new classes one after the other, with no old data and no task told at the end.

    **OnePrompt**: learnt keys and values in some layers of a frozen vision transformer, the same for all tasks and
    updated with each; with a linear layer they learn the cross-entropy among a task's own classes.
    **Virtual outliers**: then the linear layer alone goes on, and is kept from being sure about features that are made
    up around the task's own.

    .. math::
        E(z) = -\mathrm{logsumexp}_{c \in task} h(z)_c, \qquad
        L = \mathrm{CE}(h(z_{in}), y) + \lambda \left( H(\mathrm{relu}(E(z_{in}) - \tau_{in}))
            + H(\mathrm{relu}(\tau_{out} - E(z_{out}))) \right)

    On features instead of pictures the linear layer is all there is, and the second part regularises it.

    Parameters
    ----------
    epochs
        Passes over a task with prompts and linear layer (16 on CIFAR-100, 40 on ImageNet-R).
    outlier_epochs
        Further passes of the linear layer with the regulariser (4 and 10); 0 for OnePrompt alone.
    warmup_epochs
        Of ``epochs``, those in which the linear layer learns alone.
    task_batch
        Examples in a batch.
    learning_rate
        Of Adam, a fresh one for each task; falls along a cosine, epoch by epoch.
    early_prompts, later_prompts
        Rows of prompts in the layers 0 and 1, and in 2 to 4, as far as the model has them; half are keys, half values.
    outlier_weight
        λ.
    sigma
        Deviation of outliers from their centre, in the unit of the features.
    tau_in, tau_out
        The energies that examples should stay below and outliers above, in the unit of the logits. ``None``: taken from
        each task's energies after ``epochs``, which is advisable for other features than a ViT-B/16's.
    neighbours
        K of the K-th neighbour.
    boundary
        S, how many of a task's outermost examples outliers are made around.
    offsets
        Gaussian offsets from each of them.
    per_class
        Outliers for each class of a task.
    center
        boundary: around these examples, as the paper says. origin: around zero, as the released code does.
    huber
        Whether energies cost Huber's function; the square otherwise.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    arXiv 2402.04129. The released code finds the boundary examples and then does not use them (``center="origin"``).
    """

    epochs: int = 16
    outlier_epochs: int = 4
    warmup_epochs: int = 0
    task_batch: int = 128
    learning_rate: float = 1e-3
    early_prompts: int = 10
    later_prompts: int = 40
    outlier_weight: float = 0.1
    sigma: float = 0.1
    tau_in: float | None = -15.0
    tau_out: float | None = -3.0
    neighbours: int = 50
    boundary: int = 50
    offsets: int = 600
    per_class: int = 40
    center: Centre = "boundary"
    huber: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "task_batch", "neighbours", "boundary", "offsets", "per_class"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("outlier_epochs", "warmup_epochs", "outlier_weight", "sigma"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, not {getattr(self, name):g}")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate:g}")
        for name in ("early_prompts", "later_prompts"):
            if getattr(self, name) < 0 or getattr(self, name) % 2:
                raise InputError(f"{name} must be even, half keys and half values, not {getattr(self, name)}")
        if (self.tau_in is None) != (self.tau_out is None):
            raise InputError("tau_in and tau_out are both given or both taken from the energies")
        if self.center not in get_args(Centre):
            raise InputError(f"center {self.center!r} is unknown: {nearest(str(self.center), get_args(Centre))}")

    def learner(self, run: Run, encoder: nn.Module | None = None) -> TaskLearner:
        """What learns a stream, session by session: it has ``partial_fit`` and ``predict``.

        Parameters
        ----------
        run
            Each session is a stage of it; killed, the same sessions go on where they were.
        encoder
            A network of pictures in [-1, 1] around a vision transformer of transformers (see
            :class:`thrifty.nets.picture_encoders.HubEncoder`), which is frozen and gets the prompts. Without it the
            learner takes features ``[N, D]``.

        Raises
        ------
        InputError
            When the encoder holds no such transformer.
        """
        if encoder is None:
            return TaskLearner(self, run, None)
        depth = len(tokens_of(encoder)[1])
        lengths = dict.fromkeys(EARLY, self.early_prompts) | dict.fromkeys(LATER, self.later_prompts)
        there = {layer: length for layer, length in lengths.items() if layer < depth and length}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.generator("prompts").initial_seed())
            prompted = PromptedViT(encoder, there)
        return TaskLearner(self, run, prompted.to(run.device))

    def demonstrate(self, inputs: Any, run: Run) -> dict[str, Any]:
        """What ``thrifty run ovor`` does (see :mod:`thrifty.adapt.ovor_job`)."""
        from thrifty.adapt.ovor_job import demonstrate

        return demonstrate(self, inputs, run)
