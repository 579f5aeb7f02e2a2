"""What the room's classifiers of labelled pictures share: how they are trained, ``fit(pictures, labels)``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.run import Run
from thrifty.nets.augmentations import crop_and_flip
from thrifty.nets.encoders import evaluating
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.nets.representations import feature_size
from thrifty.represent.pictures import as_pictures
from thrifty.represent.transformations import TRANSFORMATIONS, Name, check_pictures

Inference = Literal["single", "aggregate", "distilled"]


class PictureClassifier(nn.Module):
    """An encoder with heads: a loss on labelled pictures, and class logits in the ways of inference that it has.

    Parameters
    ----------
    encoder
        Maps pictures to features ``[B, D]``.
    """

    inferences: tuple[Inference, ...] = ("single",)
    """Its ways of inference, the one to use first."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def features(self, images: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        """The encoder's features."""
        out: Tensor = self.encoder(images)
        return out.flatten(1)

    @abstractmethod
    def loss(
        self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
    ) -> dict[str, Tensor]:
        """The loss as ``total``, and its terms."""

    @abstractmethod
    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, mode: Inference | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Class logits; by the first of ``inferences`` when no mode is given."""

    def pick(self, mode: Inference | None) -> Inference:
        """The way of inference to use.

        Raises
        ------
        InputError
            When the classifier has no such.
        """
        if mode is not None and mode not in self.inferences:
            raise InputError(f"this classifier has no {mode} inference: it has {', '.join(self.inferences)}")
        return mode or self.inferences[0]


@dataclass(frozen=True)
class ClassifierMethod:
    """A method that trains a classifier of pictures; subclasses say which.

    Parameters
    ----------
    epochs
        Passes over the pictures. The paper takes 80,000 steps, some 200 passes over 50,000 pictures.
    batch_size
        Pictures in a batch, each of which makes a row for each transformation.
    learning_rate
        Of SGD; a tenth of it after half of the steps, and a hundredth after three quarters.
    sgd_momentum
        Of SGD.
    weight_decay
        Of SGD.
    shift
        Pictures are shifted at random by up to this share of their side, before they are transformed.
    flip
        Share of pictures that are mirrored, before they are transformed.
    transformations
        ``rotation`` (4 quarters), ``rotation2`` (2), ``color-perm`` (6 orders of the colours), ``color-perm3`` (3
        cycles), both together (``rot-color-perm6``, ``rot-color-perm12``, ``rot-color-perm24``), or ``none``.
    """

    kind: ClassVar[str] = "labelled-pictures"

    epochs: float = 60.0
    batch_size: int = 128
    learning_rate: float = 0.1
    sgd_momentum: float = 0.9
    weight_decay: float = 1e-4
    shift: float = 0.125
    flip: float = 0.5
    transformations: Name = "rotation"

    def __post_init__(self) -> None:
        if self.batch_size < 2:
            raise InputError(f"batch_size must be at least 2, not {self.batch_size}")
        for name in ("epochs", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name, most in (("shift", 0.5), ("flip", 1.0), ("sgd_momentum", 0.999)):
            if not 0 <= getattr(self, name) <= most:
                raise InputError(f"{name} must be between 0 and {most:g}, not {getattr(self, name):g}")
        if not self.weight_decay >= 0:
            raise InputError(f"weight_decay must be at least 0, not {self.weight_decay:g}")
        if self.transformations not in TRANSFORMATIONS:
            raise InputError(f"no transformations {self.transformations!r}: known are {', '.join(TRANSFORMATIONS)}")

    def classifier(self, encoder: nn.Module, features: int, classes: int) -> PictureClassifier:
        """The untrained classifier on an encoder of so many features."""
        raise NotImplementedError

    def fit(
        self,
        pictures: Any,
        labels: Any,
        run: Run,
        encoder: nn.Module | None = None,
        *,
        classes: int | None = None,
        save_every: int | None = 200,
    ) -> PictureClassifier:
        """Trains a classifier.

        Parameters
        ----------
        pictures
            uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` as an array, or ``[N, C, H, W]`` as a tensor.
        labels
            Classes from 0, integers ``[N]``.
        run
            For its device, seed, checkpoints and metrics.
        encoder
            Any module that maps pictures in [-1, 1] to ``[B, D]``, trained in place; a small residual network when not
            given.
        classes
            How many there are; one more than the largest label when not given.
        save_every
            Steps between checkpoints; ``None`` for none.

        Returns
        -------
        PictureClassifier
            In evaluation mode.

        Raises
        ------
        InputError
            When the pictures are not uint8, can't be transformed or the encoder can't take them; when labels are
            missing or no classes; or when there are fewer than 2 classes.
        NonFiniteError
            When the loss is not finite.
        """
        x = as_pictures(pictures)
        check_pictures(self.transformations, x.shape[1:])
        y = class_numbers(labels, len(x))
        count = int(y.max()) + 1 if classes is None else classes
        if count < 2 or len(y.unique()) < 2:
            raise InputError("all pictures are of one class: a classifier needs at least 2")
        if int(y.max()) >= count:
            raise InputError(f"label {int(y.max())} of example {int(y.argmax())} is no class: there are {count}")
        if encoder is None:
            encoder = picture_encoder("resnet", x.shape[1], x.shape[2])
        device = next((weight.device for weight in encoder.parameters()), torch.device("cpu"))
        features = feature_size(encoder, x[:2].to(device).float() / 127.5 - 1)
        classifier = self.classifier(encoder, features, count)
        return self._train(classifier, x, y, run, save_every)

    def _train(
        self, classifier: PictureClassifier, x: Tensor, y: Tensor, run: Run, save_every: int | None
    ) -> PictureClassifier:
        classifier.to(run.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x, y = x.to(run.device), y.to(run.device)
        order = Shuffled(len(x), self.batch_size, run.seed, last="drop")
        steps = max(1, round(self.epochs * order.per_epoch))
        padding = round(self.shift * min(x.shape[-2:]))

        def loss(net: nn.Module, rows: Tensor) -> Loss:
            assert isinstance(net, PictureClassifier)
            rows = rows.to(x.device)
            images = crop_and_flip(x[rows].float().div_(127.5).sub_(1), padding, self.flip)
            terms = net.loss(images, y[rows])
            return Loss(terms["total"], {name: value.detach() for name, value in terms.items() if name != "total"})

        optimizer = torch.optim.SGD(
            classifier.parameters(), self.learning_rate, self.sgd_momentum, weight_decay=self.weight_decay, foreach=True
        )
        fit(
            loss,
            classifier,
            order,
            optimizer,
            run,
            steps,
            clip_norm=None,
            schedule=lambda step: 0.1 ** ((2 * step >= steps) + (4 * step >= 3 * steps)),
            save_every=save_every,
            log_every=10,
            label="classifier",
        )
        return classifier


def class_numbers(labels: Any, count: int) -> Int[Tensor, " count"]:
    """Labels as class numbers.

    Raises
    ------
    InputError
        When they are no integers from 0, or not as many as there are pictures.
    """
    y = labels if isinstance(labels, Tensor) else torch.from_numpy(np.asarray(labels))
    if y.ndim != 1 or len(y) != count:
        raise InputError(f"labels must be one for each of the {count} pictures, not {list(y.shape)}")
    if y.is_floating_point() or y.dtype == torch.bool:
        raise InputError(f"labels must be integers from 0, not {y.dtype}")
    bad = y < 0
    if bad.any():
        at = int(bad.int().argmax())
        raise InputError(f"label {int(y[at])} of example {at} is no class: they are numbered from 0")
    return y.long()


def logits_of(
    classifier: PictureClassifier,
    pictures: UInt8[Tensor, "count channels height width"],
    mode: Inference | None = None,
    batch_size: int = 256,
) -> Float[Tensor, "count classes"]:
    """Class logits of pictures 0-255, in evaluation mode, on the CPU."""
    device = next(classifier.parameters()).device
    with evaluating(classifier):
        parts = [
            classifier(part.to(device).float().div_(127.5).sub_(1), mode=mode).cpu()
            for part in pictures.split(batch_size)
        ]
    return torch.cat(parts)


def accuracies(
    classifier: PictureClassifier, pictures: UInt8[Tensor, "count channels height width"], labels: Int[Tensor, " count"]
) -> Mapping[str, float]:
    """Share of pictures that are classified right, by each way of inference."""
    return {
        mode: float((logits_of(classifier, pictures, mode).argmax(1) == labels).float().mean())
        for mode in classifier.inferences
    }
