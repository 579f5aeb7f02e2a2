"""Datamodels: what a model says, regressed on which examples it was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError
from thrifty.core.progress import track
from thrifty.forget.attribution.regression import FITS, Regression
from thrifty.forget.base import device_of
from thrifty.forget.data import Source, as_source
from thrifty.forget.retraining import Retraining, like, outputs, subsets

_log = logging.getLogger("thrifty")
_AT_ONCE = 32  # models trained as one


@dataclass(frozen=True)
class Datamodels:
    r"""Effects of training examples on logits, from models trained on random parts of the data.

    .. math::
        \min_{\beta, b} \; \tfrac1M \textstyle\sum_k \left(f_{x,c}(\theta_k) - b - \sum_i \beta_{i,x,c} [i \in S_k]
        \right)^2 + \text{penalty}(\beta)

    for M random parts :math:`S_k` of one size, every query x and class c.

    Parameters
    ----------
    models
        M. The error of a sum of effects falls with its square root; fewer than there are training examples leave
        much to the penalty, which makes effects too small.
    share
        Share of the examples in each part. Nearer to 1, models are more like the one trained on everything, and tell
        less of each example.
    regression
        ``"lasso"``, its penalty chosen for each logit on held-out models; ``"ridge"``, one penalty for all chosen by
        leave-one-out error; or ``"least-squares"`` without a penalty. Penalties make effects smaller, the fewer
        models the more: with more models than training examples, no penalty predicts the removal of a group best.
    learning_rate, epochs, batch_size
        The recipe, as for :class:`~thrifty.forget.retraining.Retraining`. That of the model in question is best.

    References
    ----------
    Ilyas et al., Datamodels: Predicting Predictions from Training Data, ICML 2022, arXiv 2202.00622.
    """

    models: int = 512
    share: float = 0.5
    regression: Regression = "lasso"
    learning_rate: float = 0.1
    epochs: float = 6.0
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.models < 4:
            raise InputError(f"datamodels need at least 4 models, not {self.models}: take as many as you can afford")
        if not 0 < self.share < 1:
            raise InputError(f"share must be between 0 and 1, not {self.share:g}: it is the part that models train on")

    def attribute(
        self,
        model: nn.Module,
        training: Any,
        queries: Any,
        of: Int[Tensor, " rows"],
        *,
        own: Int[Tensor, " queries"] | None = None,  # noqa: ARG002 (all estimators are called alike)
        draw: torch.Generator,
        fresh: Callable[[int], nn.Module] | None = None,
        directory: Path | None = None,
    ) -> Float[Tensor, "rows queries classes"]:
        """What including a training example adds to each logit.

        Parameters
        ----------
        model
            Says of which kind and where the models are.
        training
            All training data, with labels.
        queries
            Whose logits are attributed.
        of
            Numbers of the training examples to return.
        own
            The number of each query among the training data; not needed here.
        draw
            Where the random numbers come from.
        fresh
            ``fresh(seed)``: a model with new weights; by default layers of ``model`` are reset.
        directory
            Where the outputs of trained models are kept, so that an interrupted call goes on.

        Raises
        ------
        InputError
            When data are empty or unlabelled, or models of this kind can't be trained several at once.
        """
        sources = as_source(training, "training set"), as_source(queries, "queries")
        masks, found = retrained(
            self.recipe(model, fresh), self.models, self.share, *sources, device_of(model), draw, directory
        )
        fit = FITS[self.regression](masks.float(), found.flatten(1))
        _log.info("datamodels of %d models: mean penalty %.3g", self.models, float(fit.penalty.mean()))
        return fit.coefficients[of].view(len(of), *found.shape[1:])

    def recipe(self, model: nn.Module, fresh: Callable[[int], nn.Module] | None) -> Retraining:
        """How its models are trained."""
        return Retraining(fresh or like(model), self.learning_rate, self.epochs, self.batch_size)


def retrained(
    recipe: Retraining,
    count: int,
    share: float,
    training: Source,
    queries: Source,
    device: torch.device,
    draw: torch.Generator,
    directory: Path | None = None,
) -> tuple[Bool[Tensor, "models training"], Float[Tensor, "models queries classes"]]:
    """Trains models on random parts of the data, and asks them about the queries.

    Parameters
    ----------
    recipe
        How they are trained.
    count
        How many.
    share
        Share of the training data in each part.
    training, queries
        The data, and what the models are asked about.
    device
        Where to train.
    draw
        Where the random numbers come from.
    directory
        Where the outputs of each group of models are kept as soon as they are known.

    Returns
    -------
    tuple
        True where a model saw an example, and the logits.
    """
    masks = subsets(count, len(training), share, draw)
    seeds = torch.randint(2**31, (count,), generator=draw)
    found = []
    groups = list(zip(masks.split(_AT_ONCE), seeds.split(_AT_ONCE), strict=True))
    for number, (seen, own) in enumerate(track(groups, "datamodels")):
        file = None if directory is None else directory / f"models-{number:04d}.safetensors"
        kept = None if file is None else _read(file, seen, own)
        if kept is None:
            rows = seen.nonzero()[:, 1].view(len(seen), -1)
            kept = outputs(recipe.train(training, rows, own.tolist(), device), queries)
            if file is not None:
                save_tree(file, {"seen": seen, "seeds": own, "logits": kept})
        found.append(kept)
    return masks, torch.cat(found)


def _read(file: Path, seen: Tensor, seeds: Tensor) -> Tensor | None:
    """The logits of a group of models, if it was these."""
    if not file.exists():
        return None
    tree = load_tree(file)
    same = torch.equal(tree["seen"], seen) and torch.equal(tree["seeds"], seeds)
    logits: Tensor = tree["logits"]
    return logits if same else None
