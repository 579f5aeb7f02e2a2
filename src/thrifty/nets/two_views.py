"""An online network whose projections of one view of a picture predict a teacher's of the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.loop import Loss
from thrifty.nets.representations import spread
from thrifty.nets.self_supervised import Teacher, ViewLearner, byol_loss


class TwoViews(ViewLearner):
    """An online network whose projections of one view predict a teacher's of the other (BYOL, SimSiam, DirectPred).

    Parameters
    ----------
    encoder
        Maps pictures to features ``[B, D]`` (or maps, which are flattened).
    projector
        Maps features to projections.
    predictor
        Maps online projections to predictions. If it has a method ``update(projections, targets)``, that is called
        behind each step with those of both views, as they were before it; the targets are those of the other view.
    momentum
        The teacher's momentum at a step; ``None`` for no teacher, where the online projections themselves are the
        targets.
    statistics
        ``each``: batch normalisation sees one view at a time; ``joint``: both in one pass, which is faster.
    predictor_rate
        The predictor's learning rate, as a multiple of that of the rest.
    precision
        What encoder, projector and teacher compute in, by autocast: float32, or bfloat16 where the machine multiplies
        it fast. Weights, predictor and loss are float32.
    """

    def __init__(
        self,
        encoder: nn.Module,
        projector: nn.Module,
        predictor: nn.Module,
        momentum: Callable[[int], float] | None,
        *,
        statistics: Literal["each", "joint"] = "each",
        predictor_rate: float = 1.0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.online = nn.Sequential(encoder, nn.Flatten(1), projector)
        self.predictor = predictor
        self.teacher = None if momentum is None else Teacher(self.online)
        self.momentum, self.predictor_rate, self.precision = momentum, predictor_rate, precision
        self.passes = 1 if statistics == "joint" else 2
        self._seen: tuple[Tensor, Tensor] | None = None

    @property
    def encoder(self) -> nn.Module:
        """What is wanted in the end."""
        return self.online[0]

    def loss(self, views: Float[Tensor, "views channels height width"]) -> Loss:
        """The loss of both directions."""
        with torch.autocast(views.device.type, self.precision, enabled=self.precision != torch.float32):
            f = self._through(self.online, views).float()
            targets = f.detach() if self.teacher is None else self._through(self.teacher, views).float()
        # A predictor works on rows one by one unless it normalises over the batch, which then sees one view at a time.
        p = self._through(self.predictor, f)
        value = byol_loss(*p.chunk(2), *targets.chunk(2))
        first, second = targets.chunk(2)
        self._seen = f.detach(), torch.cat([second, first])
        return Loss(value, {"spread": spread(f.detach())})

    def _through(self, net: nn.Module, x: Tensor) -> Tensor:
        parts = [net(part) for part in x.chunk(self.passes)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def after_step(self) -> None:
        """Gives the predictor what was seen, and lets the teacher follow."""
        update = getattr(self.predictor, "update", None)
        if update is not None and self._seen is not None:
            update(*self._seen)
        if self.teacher is not None and self.momentum is not None:
            self.teacher.follow(self.online, self.momentum(int(self.steps_taken)))
        super().after_step()

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """The online network, and the predictor at its own rate where it is trained."""
        found = [{"params": list(self.online.parameters()), "lr": learning_rate}]
        trained = [weight for weight in self.predictor.parameters() if weight.requires_grad]
        if trained:
            found.append({"params": trained, "lr": learning_rate * self.predictor_rate})
        return found
