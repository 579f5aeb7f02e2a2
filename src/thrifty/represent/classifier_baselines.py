"""What the transformations of SLA can be used for otherwise: nothing, augmentation, a second task, an ensemble."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.represent.classifier_method import ClassifierMethod, Inference, PictureClassifier
from thrifty.represent.transformations import TRANSFORMATIONS, Name, Transformation, transformed


class Shared(PictureClassifier):
    """A class head that is to say the same of each transformation; optionally a second head says which it was.

    Parameters
    ----------
    encoder
        Maps pictures to features.
    feature_dim
        How many.
    n_classes
        Number of classes.
    transforms
        Functions of a batch of pictures, the identity first.
    second_task
        Whether there is a head for the transformations.
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        n_classes: int,
        transforms: Sequence[Transformation],
        *,
        second_task: bool = False,
    ) -> None:
        super().__init__(encoder)
        self.transforms = tuple(transforms)
        m = len(self.transforms)
        self.head = nn.Linear(feature_dim, n_classes)
        self.which = nn.Linear(feature_dim, m) if second_task else None
        self.inferences = ("aggregate", "single") if m > 1 else ("single",)

    def loss(
        self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
    ) -> dict[str, Tensor]:
        """Cross-entropy of the classes, and of the transformations where these are a second task."""
        m = len(self.transforms)
        features = self.features(transformed(images, self.transforms))
        terms = {"classes": functional.cross_entropy(self.head(features), labels.repeat_interleave(m))}
        if self.which is not None:
            which = torch.arange(m, device=labels.device).repeat(len(labels))
            terms["which"] = functional.cross_entropy(self.which(features), which)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, mode: Inference | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Class logits of the picture, or their mean over its transformations."""
        if self.pick(mode) == "single":
            return torch.as_tensor(self.head(self.features(images)))
        z: Tensor = self.head(self.features(transformed(images, self.transforms)))
        return z.view(len(images), len(self.transforms), -1).mean(1)


class Separate(PictureClassifier):
    """An encoder and a class head for each transformation, each of which sees only that; their logits are averaged.

    Parameters
    ----------
    encoder
        Copied for each, with new weights where its parts can draw them.
    feature_dim, n_classes, transforms
        As for :class:`Shared`.
    """

    inferences = ("aggregate", "single")

    def __init__(
        self, encoder: nn.Module, feature_dim: int, n_classes: int, transforms: Sequence[Transformation]
    ) -> None:
        super().__init__(encoder)
        self.transforms = tuple(transforms)
        self.others = nn.ModuleList(_anew(encoder) for _ in self.transforms[1:])
        self.heads = nn.ModuleList(nn.Linear(feature_dim, n_classes) for _ in self.transforms)

    def _logits(self, images: Tensor) -> list[Tensor]:
        encoders = [self.encoder, *self.others]
        return [
            head(encoder(transformation(images)).flatten(1))
            for transformation, encoder, head in zip(self.transforms, encoders, self.heads, strict=True)
        ]

    def loss(
        self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
    ) -> dict[str, Tensor]:
        """The sum of their cross-entropies: they share nothing."""
        return {"total": torch.stack([functional.cross_entropy(z, labels) for z in self._logits(images)]).sum()}

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, mode: Inference | None = None
    ) -> Float[Tensor, "batch classes"]:
        """The mean of their logits, or those of the first alone."""
        if self.pick(mode) == "single":
            return torch.as_tensor(self.heads[0](self.features(images)))
        return torch.stack(self._logits(images)).mean(0)


def _anew(encoder: nn.Module) -> nn.Module:
    fresh = copy.deepcopy(encoder)
    for part in fresh.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return fresh


@dataclass(frozen=True)
class Plain(ClassifierMethod):
    """A classifier that never sees the transformations."""

    transformations: Name = "none"

    def classifier(self, encoder: nn.Module, features: int, classes: int) -> PictureClassifier:
        """The untrained classifier."""
        return Shared(encoder, features, classes, TRANSFORMATIONS["none"])

    @classmethod
    def like(cls, method: ClassifierMethod) -> Plain:
        """One that is trained as another method is."""
        shared = {field.name: getattr(method, field.name) for field in fields(ClassifierMethod)}
        return cls(**shared | {"transformations": "none"})


@dataclass(frozen=True)
class DataAugmentation(ClassifierMethod):
    """Each transformation of a picture has the picture's class: the classifier is made invariant (the paper's DA)."""

    def classifier(self, encoder: nn.Module, features: int, classes: int) -> PictureClassifier:
        """The untrained classifier."""
        return Shared(encoder, features, classes, TRANSFORMATIONS[self.transformations])


@dataclass(frozen=True)
class MultiTask(ClassifierMethod):
    """The same, and a second head says which transformation it was (the paper's MT)."""

    def classifier(self, encoder: nn.Module, features: int, classes: int) -> PictureClassifier:
        """The untrained classifier."""
        return Shared(encoder, features, classes, TRANSFORMATIONS[self.transformations], second_task=True)


@dataclass(frozen=True)
class IndependentEnsemble(ClassifierMethod):
    """A network for each transformation, whose logits are averaged: m times the weights."""

    def classifier(self, encoder: nn.Module, features: int, classes: int) -> PictureClassifier:
        """The untrained classifiers as one."""
        return Separate(encoder, features, classes, TRANSFORMATIONS[self.transformations])
