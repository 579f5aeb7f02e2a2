"""A linear layer that grows, and prompts before it, learnt task after task (see :mod:`thrifty.adapt.ovor`)."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.prompted import PromptedViT
from thrifty.adapt.virtual_outliers import (
    energy,
    energy_quantiles,
    local_cross_entropy,
    synthesize_outliers,
    vor_loss,
)
from thrifty.core.checkpoint import save_tree
from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled, fit
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed, generator
from thrifty.nets.vision import pixels

if TYPE_CHECKING:
    from thrifty.adapt.ovor import OVOR

ASKED = 256
"""Examples that are encoded at once when nothing is learnt."""


def epoch_cosine(epochs: int) -> Callable[[float], float]:
    """``cos(99 π t / (200 (K − 1)))`` at epoch t of K: from 1 to nearly 0."""
    return lambda epoch: math.cos(99 * math.pi * epoch / (200 * max(epochs - 1, 1)))


class Trained(nn.Module):
    """What is learnt: the prompts, and the linear layer over all classes so far.

    Parameters
    ----------
    prompts
        Nothing where there is no transformer.
    weight, bias
        Of the linear layer.
    """

    def __init__(self, prompts: nn.Module | None, weight: Float[Tensor, "C D"], bias: Float[Tensor, " C"]) -> None:
        super().__init__()
        self.prompts = prompts
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def logits(self, z: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Of all classes so far."""
        return nn.functional.linear(z, self.weight, self.bias)

    def linear(self) -> list[nn.Parameter]:
        """The parameters of the linear layer."""
        return [self.weight, self.bias]

    def grown(self, new: int, draw: torch.Generator) -> Trained:
        """The same with rows for ``new`` classes more, as PyTorch begins a linear layer."""
        bound = self.weight.shape[1] ** -0.5
        weight = (2 * torch.rand(new, self.weight.shape[1], generator=draw) - 1) * bound
        bias = (2 * torch.rand(new, generator=draw) - 1) * bound
        return Trained(
            self.prompts,
            torch.cat([self.weight.detach(), weight.to(self.weight)]),
            torch.cat([self.bias.detach(), bias.to(self.bias)]),
        )


class TaskLearner:
    """Learns a stream of pictures or features, one session with new classes at a time.

    Parameters
    ----------
    settings
        How.
    run
        Each session is a stage of it.
    encoder
        For pictures, uint8 ``[N, H, W]`` or ``[N, H, W, 3]``; ``None`` for features ``[N, D]``.
    """

    def __init__(self, settings: OVOR, run: Run, encoder: PromptedViT | None) -> None:
        self.settings, self.run, self.encoder = settings, run, encoder
        self.trained: Trained | None = None
        self.names: list[Any] = []
        self.tasks = 0

    @property
    def classes_(self) -> Labels:
        """The classes so far, in the order in which they came."""
        return np.array(self.names)

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Learns a session; its classes must be new.

        Raises
        ------
        InputError
            When a class came before, the numbers of examples and labels differ, or a feature is NaN or infinite.
        """
        labels = as_labels(y)
        new = np.unique(labels)
        again = [name for name in new.tolist() if name in self.names]
        if again:
            raise InputError(
                f"class {again[0]!r} came in an earlier session: OVOR learns each class in one, without old data"
            )
        x = self._inputs(X)
        if len(x) != len(labels):
            raise InputError(f"{len(x)} examples came with {len(labels)} labels")
        start, end = len(self.names), len(self.names) + len(new)
        self._grow(x, len(new))
        codes = torch.from_numpy(start + np.searchsorted(new, labels)).to(self.run.device)
        self._learn(x, codes, start, end)
        if self.settings.outlier_epochs and self.settings.outlier_weight:
            self._regularise(x, codes, start, end)
        self.names += new.tolist()
        self.tasks += 1
        return self

    @torch.no_grad()
    def decision_function(self, X: Any) -> Float[Tensor, "N C"]:
        """The logits of all classes so far.

        Raises
        ------
        InputError
            Before the first session.
        """
        if self.trained is None:
            raise InputError("no class has an example: partial_fit some before predicting")
        return self.trained.logits(self._features(self._inputs(X)))

    def predict(self, X: Any) -> Labels:
        """The class with the largest logit among all so far."""
        predicted: Labels = self.classes_[self.decision_function(X).argmax(1).cpu().numpy()]
        return predicted

    def save(self, path: Path) -> None:
        """Writes prompts, linear layer and classes to one safetensors file, atomically."""
        assert self.trained is not None
        names = [name if isinstance(name, str) else int(name) for name in self.names]
        save_tree(path, {"learner": "OVOR", "classes": names, "learnt": self.trained.state_dict()})

    def _inputs(self, X: Any) -> Tensor:
        if self.encoder is not None:
            return X if isinstance(X, Tensor) else pixels(np.asarray(X))
        x = (X if isinstance(X, Tensor) else torch.from_numpy(np.asarray(X))).to(self.run.device, torch.float32)
        if x.ndim != 2 or not len(x):
            raise InputError(f"OVOR without a model expects features [N, D], not {list(x.shape)}")
        finite = torch.isfinite(x).all(1)
        if not finite.all():
            raise InputError(f"feature row {int((~finite).nonzero()[0])} holds NaN or infinity")
        return x

    def _encoded(self, x: Tensor) -> Float[Tensor, "B D"]:
        x = x.to(self.run.device)
        return x if self.encoder is None else self.encoder(x)

    @torch.no_grad()
    def _features(self, x: Tensor) -> Float[Tensor, "N D"]:
        return x if self.encoder is None else torch.cat([self._encoded(part) for part in x.split(ASKED)])

    def _grow(self, x: Tensor, new: int) -> None:
        if self.trained is None:
            prompts = None if self.encoder is None else self.encoder.prompts
            with torch.no_grad():
                width = self._encoded(x[:1]).shape[1]
            self.trained = Trained(prompts, torch.zeros(0, width), torch.zeros(0))
        elif self.encoder is None and x.shape[1] != self.trained.weight.shape[1]:
            raise InputError(f"the features have {x.shape[1]} columns, those before had {self.trained.weight.shape[1]}")
        self.trained = self.trained.grown(new, generator(self.run.seed, "head", self.tasks)).to(self.run.device)

    def _factor(self, per_epoch: int, begun: int) -> Callable[[int], float]:
        fall = epoch_cosine(self.settings.epochs + self.settings.outlier_epochs)
        return lambda step: fall(begun + step // per_epoch)

    def _learn(self, x: Tensor, codes: Int[Tensor, " N"], start: int, end: int) -> None:
        how = self.settings
        order = Shuffled(len(x), how.task_batch, derive_seed(self.run.seed, "task", self.tasks))
        alone = how.warmup_epochs * order.per_epoch

        def loss(net: nn.Module, batch: tuple[int, Tensor]) -> Tensor:
            assert isinstance(net, Trained)
            step, rows = batch
            z = self._encoded(x[rows.to(x.device)])
            logits = net.logits(z.detach() if step < alone else z)
            return local_cross_entropy(logits, codes[rows.to(codes.device)], start, end)

        assert self.trained is not None
        fit(
            loss,
            self.trained,
            lambda step: (step, order(step)),
            lambda net: torch.optim.Adam(net.parameters(), how.learning_rate),
            self.run.stage(f"task-{self.tasks}"),
            how.epochs * order.per_epoch,
            clip_norm=None,
            schedule=self._factor(order.per_epoch, 0),
            log_every=10,
            label=f"task {self.tasks}",
        )

    def _regularise(self, x: Tensor, codes: Int[Tensor, " N"], start: int, end: int) -> None:
        how, trained = self.settings, self.trained
        assert trained is not None
        z = self._features(x)
        order = Shuffled(len(z), how.task_batch, derive_seed(self.run.seed, "outliers", self.tasks))
        with torch.no_grad():
            own = energy(trained.logits(z)[:, start:end])
        low, high = energy_quantiles(own)
        low, high = (low, high) if how.tau_in is None or how.tau_out is None else (how.tau_in, how.tau_out)
        made: dict[int, Tensor] = {}

        def outliers(step: int) -> Tensor:
            """Those of a step: each epoch makes new ones and deals them out to its batches."""
            epoch, part = divmod(step, order.per_epoch)
            if epoch not in made:
                made.clear()
                draw = generator(self.run.seed, "outliers", self.tasks, epoch)
                made[epoch] = synthesize_outliers(
                    z,
                    min(how.per_class * (end - start), min(how.boundary, len(z)) * how.offsets),
                    k=min(how.neighbours, len(z)),
                    n_boundary=how.boundary,
                    n_offsets=how.offsets,
                    sigma=how.sigma,
                    center=how.center,
                    generator=draw,
                )
            size = max(len(made[epoch]) // order.per_epoch, 1)
            return made[epoch][part * size % len(made[epoch]) :][:size]

        def loss(net: nn.Module, batch: tuple[int, Tensor]) -> Tensor:
            assert isinstance(net, Trained)
            step, rows = batch
            rows = rows.to(z.device)
            logits, strange = net.logits(z[rows]), net.logits(outliers(step))[:, start:end]
            regulariser = vor_loss(
                logits[:, start:end], strange, tau_in=low, tau_out=high, weight=how.outlier_weight, huber=how.huber
            )
            return local_cross_entropy(logits, codes[rows], start, end) + regulariser

        fit(
            loss,
            trained,
            lambda step: (step, order(step)),
            # Not the prompts: gradients do not reach them, and no momentum may.
            lambda net: torch.optim.Adam(net.linear(), how.learning_rate),  # type: ignore[operator]
            self.run.stage(f"task-{self.tasks}-outliers"),
            how.outlier_epochs * order.per_epoch,
            clip_norm=None,
            schedule=self._factor(order.per_epoch, how.epochs),
            log_every=10,
            label=f"outliers {self.tasks}",
        )
