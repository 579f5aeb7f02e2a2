"""What the two-view methods of the room share: how they are trained, and the verb ``fit(pictures) -> encoder``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.augmentations import Augmentation, Recipe
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.nets.representations import feature_size
from thrifty.nets.self_supervised import Augment, ViewTraining, cosine_momentum, mlp_head, train_views
from thrifty.nets.two_views import TwoViews
from thrifty.represent.pictures import as_pictures


@dataclass(frozen=True)
class TwoViewMethod:
    """A method whose online network predicts a teacher's projections of another view; subclasses say the predictor.

    Parameters
    ----------
    epochs
        Passes over the pictures.
    batch_size
        Pictures in a batch; twice as many projections as the projector has outputs, or more, are advisable.
    learning_rate
        Of SGD.
    sgd_momentum
        Of SGD.
    weight_decay
        Of SGD.
    schedule
        ``constant``, or ``cosine``: the learning rate falls to 0.
    teacher_momentum
        The teacher keeps this share of itself at a step; at 0 there is no teacher, and targets are the online
        projections.
    teacher_momentum_end
        Where the momentum rises to along a cosine; it stays when not given.
    hidden
        Units of the projector's hidden layer.
    projection
        Length of a projection.
    views
        How views are made: ``natural`` (SimCLR's), ``drawing`` (nothing is mirrored) or ``none``.
    statistics
        ``each``: batch normalisation sees one view at a time; ``joint``: both at once, which is faster.
    predictor_rate
        Learning rate of a trained predictor, as a multiple of that of the rest.
    precision
        ``float32``, or ``bfloat16``: the networks compute in it by autocast, twice as fast where the machine multiplies
        it fast; weights, statistics and loss stay float32.
    """

    kind: ClassVar[str] = "two-views"

    epochs: float = 100.0
    batch_size: int = 128
    learning_rate: float = 0.03
    sgd_momentum: float = 0.9
    weight_decay: float = 4e-4
    schedule: Literal["constant", "cosine"] = "constant"
    teacher_momentum: float = 0.996
    teacher_momentum_end: float | None = None
    hidden: int = 512
    projection: int = 128
    views: Recipe = "natural"
    statistics: Literal["each", "joint"] = "each"
    predictor_rate: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "projection"):
            if getattr(self, name) < 2:
                raise InputError(f"{name} must be at least 2, not {getattr(self, name)}")
        for name in ("epochs", "learning_rate", "hidden"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("weight_decay", "predictor_rate"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name):g}")
        for name in ("sgd_momentum", "teacher_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {getattr(self, name):g}")
        if self.teacher_momentum_end is not None and not 0 <= self.teacher_momentum_end <= 1:
            raise InputError(f"teacher_momentum_end must be between 0 and 1, not {self.teacher_momentum_end:g}")

    def predictor(self, dim: int) -> nn.Module:
        """What predicts the teacher's projections of the other view from those of one."""
        raise NotImplementedError

    def projector(self, features: int) -> nn.Module:
        """What turns an encoder's features into projections; it is thrown away in the end."""
        return mlp_head((features, self.hidden, self.projection))

    def learner(self, encoder: nn.Module, features: int, steps: int) -> TwoViews:
        """The networks that are trained, for an encoder of so many features, in so many steps."""
        start, end = self.teacher_momentum, self.teacher_momentum_end
        momentum = cosine_momentum(start, start if end is None else end, steps) if start else None
        return TwoViews(
            encoder,
            self.projector(features),
            self.predictor(self.projection),
            momentum,
            statistics=self.statistics,
            predictor_rate=self.predictor_rate,
            precision={"float32": torch.float32, "bfloat16": torch.bfloat16}[self.precision],
        )

    def train(
        self,
        pictures: Any,
        run: Run,
        encoder: nn.Module | None = None,
        *,
        augment: Augment | None = None,
        save_every: int | None = 200,
    ) -> TwoViews:
        """As :meth:`fit`; gives back the projector, predictor and teacher too."""
        x = as_pictures(pictures)
        _, channels, height, width = x.shape
        if encoder is None:
            encoder = picture_encoder("resnet", channels, height)
        device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
        features = feature_size(encoder, x[:2].to(device).float() / 127.5 - 1)
        training = ViewTraining(
            self.epochs, self.batch_size, self.learning_rate, self.sgd_momentum, self.weight_decay, self.schedule
        )
        learner = self.learner(encoder, features, training.steps(len(x)))
        views = Augmentation(self.views, (height, width), channels) if augment is None else augment
        train_views(learner, x, views, run, training, save_every=save_every)
        return learner

    def fit(
        self,
        pictures: Any,
        run: Run,
        encoder: nn.Module | None = None,
        *,
        augment: Augment | None = None,
        save_every: int | None = 200,
    ) -> nn.Module:
        """Trains an encoder without labels.

        Parameters
        ----------
        pictures
            uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` as an array, or ``[N, C, H, W]`` as a tensor.
        run
            For its device, seed, checkpoints and metrics.
        encoder
            Any module that maps pictures in [-1, 1] to ``[B, D]``, trained in place; a small residual network when not
            given.
        augment
            Makes a view of each picture of a batch ``[B, C, H, W]`` from 0 to 1; by ``views`` when not given.
        save_every
            Steps between checkpoints; ``None`` for none.

        Returns
        -------
        nn.Module
            The encoder, in evaluation mode.

        Raises
        ------
        InputError
            When there are fewer than 2 pictures, they are not uint8, or the encoder can't take them.
        NonFiniteError
            When the loss is not finite.
        """
        return self.train(pictures, run, encoder, augment=augment, save_every=save_every).encoder.eval()


def projections(learner: TwoViews, pictures: Tensor) -> Tensor:
    """The online projections of pictures 0-255, in evaluation mode."""
    from thrifty.nets.representations import encoded

    return encoded(learner.online, pictures)
