"""A student learns what a teacher says: logits are matched, with labels beside them or without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import NonFiniteError
from thrifty.core.loop import Shuffled


def distillation_loss(
    logits: Float[Tensor, "batch classes"],
    teacher_logits: Float[Tensor, "batch classes"],
    y: Int[Tensor, " batch"] | None = None,
    hard_labels: float = 0.0,
) -> Float[Tensor, ""]:
    r"""``L_KD = mean (student logits - teacher logits)^2``, with labels :math:`L_{KD} + w \, CE(y)`.

    Parameters
    ----------
    logits, teacher_logits
        Of the student and the teacher, before any softmax.
    y
        Classes; looked at where labels have a weight.
    hard_labels
        Weight of the cross-entropy of the labels.
    """
    matched = functional.mse_loss(logits, teacher_logits)
    if y is None or hard_labels == 0:
        return matched
    return matched + hard_labels * functional.cross_entropy(logits, y)


@dataclass(frozen=True, eq=False)
class Lessons:
    """What a student learns from; the teacher was asked once for each example.

    Parameters
    ----------
    inputs
        ``inputs(rows)``: the examples of those numbers, as the student takes them.
    teacher_logits
        What the teacher says of each, [N, classes].
    y
        Their classes, [N].
    hard_labels
        Weight of the labels.
    """

    inputs: Callable[[Int[Tensor, " B"]], Tensor]
    teacher_logits: Float[Tensor, "N classes"]
    y: Int[Tensor, " N"]
    hard_labels: float = 0.0

    def __len__(self) -> int:
        return len(self.y)

    def loss(self, student: nn.Module, rows: Int[Tensor, " B"]) -> Float[Tensor, ""]:
        """Of the examples of those numbers."""
        device = next(student.parameters()).device
        said = student(self.inputs(rows).to(device))
        return distillation_loss(said, self.teacher_logits[rows].to(device), self.y[rows].to(device), self.hard_labels)


def distil(
    student: nn.Module,
    lessons: Lessons,
    *,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> nn.Module:
    """Trains a student by Adam in seconds; for what takes longer there is :func:`thrifty.core.loop.fit`.

    Parameters
    ----------
    student
        Changed in place, and then in evaluation mode.
    lessons
        What it learns from.
    epochs
        Passes over the examples; may be a fraction.
    batch_size
        Examples in a batch.
    learning_rate, weight_decay
        Of Adam, whose decay is part of the gradient.
    seed
        Of the order.

    Raises
    ------
    NonFiniteError
        When the loss is not finite.
    """
    order = Shuffled(len(lessons), batch_size, seed, last="drop")
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate, weight_decay=weight_decay)
    student.train()
    loss = torch.zeros(())
    for step in range(max(1, round(epochs * order.per_epoch))):
        loss = lessons.loss(student, order(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    if not torch.isfinite(loss):
        raise NonFiniteError(f"a student's loss became {float(loss.detach())}: try a smaller learning rate")
    return student.eval()
