"""TRAK: effects of training examples on logits from projected gradients, with a model at hand and no retraining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from thrifty.core.errors import InputError
from thrifty.core.progress import track
from thrifty.forget.attribution.datamodels import retrained
from thrifty.forget.attribution.projection import Projection
from thrifty.forget.base import check_labels, device_of, logits, trainable
from thrifty.forget.data import Inputs, Labelled, Source, as_source, labels
from thrifty.forget.klom import margins
from thrifty.forget.retraining import Retraining, like, outputs
from thrifty.lm.backbone import evaluating

# Gradients of this many bytes are held at once.
_ROOM = 256 * 2**20


def trak(
    features: Float[Tensor, "training dimensions"], queries: Float[Tensor, "queries dimensions"], ridge: float = 0.0
) -> Float[Tensor, "training queries"]:
    r"""Scores of one checkpoint, :math:`\Phi (\Phi^\top \Phi + \lambda I)^{-1} \phi(x)` for each query x.

    Parameters
    ----------
    features
        Projected gradients of the training examples' margins.
    queries
        Projected gradients of what is attributed.
    ridge
        Lambda.
    """
    return features @ solved(features, queries, ridge)


def solved(
    features: Float[Tensor, "training dimensions"], queries: Float[Tensor, "queries dimensions"], ridge: float = 0.0
) -> Float[Tensor, "dimensions queries"]:
    """The part of the scores that does not depend on which training example is asked about."""
    kernel = features.mT @ features
    kernel.diagonal().add_(ridge)
    found: Tensor = torch.linalg.solve(kernel, queries.mT)
    return found


def scale(predicted: Float[Tensor, "models outputs"], actual: Float[Tensor, "models outputs"]) -> Float[Tensor, ""]:
    r"""The one factor that fits predicted to actual changes best, :math:`\sum p a / \sum p^2`, without their means.

    Parameters
    ----------
    predicted
        Sums of the effects of each model's training examples.
    actual
        What the models say.
    """
    p, a = predicted - predicted.mean(0), actual - actual.mean(0)
    return (p * a).sum() / p.square().sum().clamp(min=torch.finfo(p.dtype).tiny)


@dataclass(frozen=True)
class Trak:
    r"""Effects of training examples on every logit, from projected gradients.

    .. math::
        \beta_{i,x,c} = \text{scale} \cdot \operatorname{mean}_m (1 - p_{y_i}(z_i; \theta_m)) \cdot
        \operatorname{mean}_m \phi_m(z_i)^\top (\Phi_m^\top \Phi_m + \lambda I)^{-1} \phi_{m,c}(x)

    with :math:`\phi_m(z) = P^\top \nabla_\theta \text{margin}(z; \theta_m)` of training examples,
    :math:`\phi_{m,c}(x) = P^\top \nabla_\theta f_c(x; \theta_m)` of queries, and one m for each checkpoint given. TRAK
    attributes the margin; a whole prediction needs every logit, which costs as many gradients of each query as there
    are classes.

    These scores are proportional to effects, not equal to them. The scale is fitted to ``models`` retrainings on random
    parts of the data: where queries are training examples themselves, to what each adds to its own logits, which
    stands out even in few models; else to the sums of all effects, whose noise makes the scale too small.

    Parameters
    ----------
    dimensions
        What gradients are projected to; at most half the number of training examples is taken, since the
        kernel can't be inverted beyond.
    ridge
        Lambda, as a share of the mean of the kernel's diagonal.
    projection
        Entries of the projection.
    models
        Retrainings to fit the scale to; 0 leaves it at 1.
    share, learning_rate, epochs, batch_size
        Of those, as for :class:`~thrifty.forget.attribution.datamodels.Datamodels`.

    References
    ----------
    Park et al., TRAK: Attributing Model Behavior at Scale, ICML 2023, arXiv 2303.14186.
    """

    dimensions: int = 512
    ridge: float = 1e-3
    projection: Literal["rademacher", "normal"] = "rademacher"
    models: int = 8
    share: float = 0.5
    learning_rate: float = 0.1
    epochs: float = 6.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.dimensions < 1 or self.ridge < 0 or self.models < 0 or self.models == 1:
            raise InputError(
                "dimensions must be at least 1, ridge at least 0 and models 0 or at least 2, not "
                f"{self.dimensions}, {self.ridge:g} and {self.models}"
            )

    def attribute(
        self,
        model: nn.Module | Sequence[nn.Module],
        training: Any,
        queries: Any,
        of: Int[Tensor, " rows"],
        *,
        own: Int[Tensor, " queries"] | None = None,
        draw: torch.Generator,
        fresh: Callable[[int], nn.Module] | None = None,
        directory: Path | None = None,
    ) -> Float[Tensor, "rows queries classes"]:
        """What including a training example adds to each logit.

        Parameters
        ----------
        model
            The trained model, or several that were trained alike: checkpoints to average over.
        own
            The number that each query has among the training data, where they come from there.
        training, queries, of, draw, fresh, directory
            As for :meth:`~thrifty.forget.attribution.datamodels.Datamodels.attribute`; those but ``training``,
            ``queries`` and ``of`` matter for the scale only.

        Raises
        ------
        InputError
            When data are empty or unlabelled, a label is no class, or nothing of a model is trainable.
        """
        checkpoints = [model] if isinstance(model, nn.Module) else list(model)
        source, asked = as_source(training, "training set"), as_source(queries, "queries")
        # Drawn first, so that the same generator trains the same models with this estimator as with datamodels.
        masks = found = None
        if self.models:
            recipe = Retraining(fresh or like(checkpoints[0]), self.learning_rate, self.epochs, self.batch_size)
            masks, found = retrained(
                recipe, self.models, self.share, source, asked, device_of(checkpoints[0]), draw, directory
            )
        y = labels(source)
        doubt = torch.stack([1 - margins(outputs(each, source), y).sigmoid() for each in checkpoints]).mean(0)
        projection = Projection(min(self.dimensions, max(1, len(source) // 2)), self.projection)
        effects: list[Tensor] = []
        predicted: list[Tensor] = []
        for checkpoint in checkpoints:
            phi = features(checkpoint, source, projection)
            ridge = self.ridge * float(phi.square().sum()) / phi.shape[1]
            at = solved(phi, features(checkpoint, asked, projection, each_logit=True), ridge)
            phi = doubt[:, None] * phi / len(checkpoints)
            effects.append(phi[of] @ at)
            if masks is not None and own is not None:
                alone = torch.einsum("qk,kqc->qc", phi[own], at.view(len(at), len(own), -1))
                predicted.append((masks[:, own, None] * alone).flatten(1))
            elif masks is not None:
                predicted.append(masks.float() @ phi @ at)
        total = torch.stack(effects).sum(0)
        if found is not None:
            total = total * scale(torch.stack(predicted).sum(0), found.flatten(1))
        return total.view(len(of), len(asked), -1)


def features(
    model: nn.Module, source: Source, projection: Projection, *, each_logit: bool = False
) -> Float[Tensor, "rows dimensions"]:
    """Projected gradients of a model's outputs, one example's after the other, in evaluation mode.

    Parameters
    ----------
    model
        A classifier.
    source
        Examples; with labels, where margins are asked for.
    projection
        What gradients are projected with.
    each_logit
        Of every logit, C rows an example, instead of the margin of the true class.

    Raises
    ------
    InputError
        For texts, missing labels, or labels that are no classes.
    """
    weights = {name: parameter.detach() for name, parameter in trainable(model).items()}
    with evaluating(model), torch.no_grad():
        first = _labelled(source, torch.arange(1)).to(device_of(model))
        classes = logits(model, first.x).shape[1]
    rows = classes if each_logit else 1
    size = rows * 4 * sum(weight.numel() for weight in weights.values())
    groups = torch.arange(len(source)).split(max(1, min(256, _ROOM // size)))
    found = []
    # Fused attention has no batching rule and would run a sample at a time.
    with evaluating(model), sdpa_kernel(SDPBackend.MATH):
        for numbers in track(groups, "gradients"):
            batch = _labelled(source, numbers).to(device_of(model))
            if each_logit:
                each = vmap(jacrev(partial(_logits_of_one, model)), in_dims=(None, 0), randomness="different")
                gradients = {name: part.flatten(0, 1) for name, part in each(weights, batch.x).items()}
            else:
                if batch.y is None:
                    raise InputError("TRAK needs the training examples' labels: give pairs (x, y)")
                check_labels(batch.y, classes, int(numbers[0]))
                alone = vmap(grad(partial(_margin_of_one, model)), in_dims=(None, 0, 0), randomness="different")
                gradients = alone(weights, batch.x, batch.y)
            found.append(projection({name: part.detach() for name, part in gradients.items()}).cpu())
    return torch.cat(found)


def _labelled(source: Source, numbers: Tensor) -> Labelled:
    batch = source.rows(numbers)
    if not isinstance(batch, Labelled):
        raise InputError("attribution is for classifiers: give inputs (x, y), no texts")
    return batch


def _logits_of_one(model: nn.Module, weights: dict[str, Tensor], x: Inputs) -> Tensor:
    one = {k: v[None] for k, v in x.items()} if isinstance(x, dict) else x[None]
    return logits(lambda *args, **named: functional_call(model, weights, args, named), one)[0]


def _margin_of_one(model: nn.Module, weights: dict[str, Tensor], x: Inputs, y: Tensor) -> Tensor:
    return margins(_logits_of_one(model, weights, x)[None], y[None])[0]
