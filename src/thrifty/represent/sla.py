"""SLA: the class and the transformation of a picture are learnt as one joint label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.represent.classifier_method import ClassifierMethod, Inference, PictureClassifier
from thrifty.represent.transformations import TRANSFORMATIONS, Transformation, transformed

Criterion = Callable[[Tensor, Tensor], Tensor]
"""``criterion(logits [rows, classes], targets [rows]) -> scalar``, a mean over rows."""


@register("sla")
@dataclass(frozen=True)
class SLA(ClassifierMethod):
    r"""Trains a classifier that tells classes and transformations apart at once, instead of being told to ignore these.

    With m transformations :math:`t_j` (the first the identity), :math:`\rho` the softmax over all pairs of a class and
    a transformation, z its logits and u those of a second head for untransformed pictures:

    .. math::
        L_\mathrm{SLA} = \tfrac1m \textstyle\sum_j \mathrm{CE}(\rho(t_j(x)), (y, j)), \qquad
        P_\mathrm{agg}(i|x) \propto \exp \tfrac1m \textstyle\sum_j z_{ij}(t_j(x))

        L = L_\mathrm{SLA} + \mathrm{CE}(u(x), y)
        + \beta T^2\, \mathrm{KL}(\mathrm{sg}\, \mathrm{softmax}(s/T) \,\|\, \mathrm{softmax}(u(x)/T))

    where s are the aggregated logits. Inference ``aggregate`` (SLA+AG) takes m passes; ``distilled`` (SLA+SD) one, of
    the head u; ``single`` (SLA+SI) one, of the joint head.

    A batch of B pictures is B m rows for the encoder: m times the work of a step. Left out is the authors' choice of
    the best weights on validation data.

    Parameters
    ----------
    distill
        Train the head u (SLA+SD) too.
    temperature
        T.
    distill_weight
        Beta.
    sum_over_transformations
        Add the losses of the transformations instead of averaging them, as the authors do for large data sets.

    Raises
    ------
    InputError
        When a setting is out of its range.

    References
    ----------
    Lee, Hwang and Shin, Self-supervised Label Augmentation via Input Transformations, ICML 2020, arXiv 1910.05872,
    section 2 (equations 3 to 6).
    """

    distill: bool = True
    temperature: float = 1.0
    distill_weight: float = 1.0
    sum_over_transformations: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, not {self.temperature:g}")
        if not self.distill_weight >= 0:
            raise InputError(f"distill_weight must be at least 0, not {self.distill_weight:g}")

    def classifier(self, encoder: nn.Module, features: int, classes: int) -> PictureClassifier:
        """The untrained classifier."""
        return LabelAugmentation(
            encoder,
            features,
            classes,
            TRANSFORMATIONS[self.transformations],
            distill=self.distill,
            temperature=self.temperature,
            distill_weight=self.distill_weight,
            sum_over_transformations=self.sum_over_transformations,
        )


class LabelAugmentation(PictureClassifier):
    """A classifier with a head for pairs of a class and a transformation.

    Parameters
    ----------
    encoder
        Maps pictures to features.
    feature_dim
        How many.
    n_classes
        N; the joint head has N times m outputs.
    transforms
        m functions of a batch of pictures, the identity first.
    distill, temperature, distill_weight, sum_over_transformations
        See :class:`SLA`.
    criterion
        Loss of the joint labels, for example one that weighs rare classes; cross-entropy by default.
    """

    def __init__(
        self,
        encoder: nn.Module,
        feature_dim: int,
        n_classes: int,
        transforms: Sequence[Transformation],
        *,
        distill: bool = True,
        temperature: float = 1.0,
        distill_weight: float = 1.0,
        sum_over_transformations: bool = False,
        criterion: Criterion = functional.cross_entropy,
    ) -> None:
        super().__init__(encoder)
        self.transforms, self.criterion = tuple(transforms), criterion
        self.temperature, self.distill_weight = temperature, distill_weight
        self.factor = len(self.transforms) if sum_over_transformations else 1
        self.joint = nn.Linear(feature_dim, n_classes * len(self.transforms))
        self.distilled = nn.Linear(feature_dim, n_classes) if distill else None
        self.inferences: tuple[Inference, ...] = ("aggregate", "single")
        if distill:
            self.inferences = ("aggregate", "distilled", "single")

    def loss(
        self, images: Float[Tensor, "batch channels height width"], labels: Int[Tensor, " batch"]
    ) -> dict[str, Tensor]:
        """The loss as ``total``, and its terms ``joint``, ``single`` and ``distill``."""
        m = len(self.transforms)
        features = self.features(transformed(images, self.transforms))
        z = self.joint(features)
        terms = {"joint": self.factor * self.criterion(z, joint_labels(labels, m))}
        if self.distilled is not None:
            u = self.distilled(features[::m])
            terms["single"] = functional.cross_entropy(u, labels)
            terms["distill"] = self.distill_weight * distillation(u, aggregated(z, m), self.temperature)
        return {"total": torch.stack(list(terms.values())).sum(), **terms}

    def forward(
        self, images: Float[Tensor, "batch channels height width"], *, mode: Inference | None = None
    ) -> Float[Tensor, "batch classes"]:
        """Class logits by aggregation over the transformations, by the distilled head, or of the identity alone."""
        m, mode = len(self.transforms), self.pick(mode)
        if mode == "aggregate":
            return aggregated(self.joint(self.features(transformed(images, self.transforms))), m)
        features = self.features(images)
        if mode == "distilled":
            assert self.distilled is not None
            return torch.as_tensor(self.distilled(features))
        return torch.as_tensor(self.joint(features)[:, ::m])


def joint_labels(labels: Int[Tensor, " batch"], m: int) -> Int[Tensor, " rows"]:
    """The labels of all transformations of all pictures: pair (class y, transformation j) is number ``y m + j``."""
    return (labels[:, None] * m + torch.arange(m, device=labels.device)).flatten()


def aggregated(z: Float[Tensor, "rows pairs"], m: int) -> Float[Tensor, "batch classes"]:
    """For each class the mean over j of the logit of (class, j) for the picture's j'th transformation."""
    pairs = z.view(len(z) // m, m, -1, m)  # picture, its transformation, class, transformation said
    return pairs.diagonal(dim1=1, dim2=3).mean(-1)


def distillation(
    student: Float[Tensor, "batch classes"], teacher: Float[Tensor, "batch classes"], temperature: float
) -> Float[Tensor, ""]:
    """``T² KL(sg softmax(teacher / T) ‖ softmax(student / T))``, a mean over the batch."""
    new = functional.log_softmax(student / temperature, 1)
    old = functional.log_softmax(teacher.detach() / temperature, 1)
    return temperature**2 * functional.kl_div(new, old, reduction="batchmean", log_target=True)
