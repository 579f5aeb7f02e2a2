"""Datamodel matching: a model is tuned to say what data attribution predicts it would say without the forget set."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.forget.attribution.datamodels import Datamodels
from thrifty.forget.attribution.regression import Regression
from thrifty.forget.attribution.trak import Trak
from thrifty.forget.base import check_inputs
from thrifty.forget.data import as_source, labels
from thrifty.forget.klom import margins
from thrifty.forget.matching import Matching, Pool, drawn
from thrifty.forget.retraining import outputs, said

_log = logging.getLogger("thrifty")


@register("dmm")
@dataclass(frozen=True)
class DMM(Matching):
    r"""Tunes a classifier to predicted outputs of the model that would never have seen the forget set.

    .. math::
        \hat f_x(S \setminus F) = f_x(\theta_0) - m \textstyle\sum_{i \in F} \beta_{i,x}, \qquad
        \min_\theta \; \operatorname{mean} (f_x(\theta) - \hat f_x)^2 + \lambda \|\theta - \theta_0\|^2

    over the forget set and a sample of the rest, where :math:`\beta_{i,x,c}` is what including training example i adds
    to logit c of x. Any attribution may give it (``attributor``, or ``scores``); two are included. The prediction adds
    effects up: it suits forget sets that are a small part of the data, not whole classes.

    The batches are those of :class:`~thrifty.forget.matching.Matching`.

    Parameters
    ----------
    multiplier
        m, what the predicted effects are multiplied by.
    attribution
        ``"datamodels"``: a regression on the outputs of ``models`` retrainings; ``"trak"``: projected gradients of the
        model, their scale fitted to ``models`` retrainings. Gradients cost far less, and on small networks predict far
        too little.
    models
        Models that are trained anew on random parts of the data. Datamodels need more of them than there are training
        examples; with ``"trak"`` 8 will do, and 0 leaves the scale of the effects to ``multiplier``.
    share
        Share of the training data in each part. The nearer to 1, the more these models are like the given one.
    regression
        Of datamodels: ``"least-squares"``, ``"ridge"`` or ``"lasso"`` (as in the paper on datamodels). Penalties make
        predicted effects smaller.
    retrain_epochs
        Passes of each of these models over its data.
    retrain_rate
        Peak of their learning rate; SGD with momentum, one cycle.
    scores
        A safetensors file with ``beta`` [F, F + R, C]: effects of each example of the forget set on the logits of all
        of the forget set and, behind them, of the retain set. Nothing is attributed then.

    References
    ----------
    Georgiev et al., Attribute-to-Delete: Machine Unlearning via Datamodel Matching, ICLR 2025, arXiv 2410.23232.
    """

    needs: ClassVar[tuple[str, ...]] = ("forget_set", "retain_set")
    needs_labels: ClassVar[bool] = True
    embedded: ClassVar[str] = "alike-digits"

    multiplier: float = 1.0
    attribution: Literal["datamodels", "trak"] = "datamodels"
    models: int = 512
    share: float = 0.75
    regression: Regression = "least-squares"
    retrain_epochs: float = 6.0
    retrain_rate: float = 0.1
    scores: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attributor()

    def attributor(self) -> Datamodels | Trak:
        """The estimator that these settings describe."""
        rate, epochs = self.retrain_rate, self.retrain_epochs
        if self.attribution == "trak":
            return Trak(models=self.models, share=self.share, learning_rate=rate, epochs=epochs)
        return Datamodels(self.models, self.share, self.regression, learning_rate=rate, epochs=epochs)

    def forget(
        self,
        model: nn.Module,
        forget_set: Any,
        retain_set: Any,
        *,
        run: Run | None = None,
        attributor: Any = None,
        fresh: Callable[[int], nn.Module] | None = None,
    ) -> nn.Module:
        """A copy of the model that says what was predicted; the model given stays as it was.

        Parameters
        ----------
        model
            A classifier; or :class:`~thrifty.nets.stacked.Stacked` ones, each of which gets targets of its own.
        forget_set, retain_set
            The training data, in two parts.
        run
            Where retrained models' outputs are kept, so that an interrupted call goes on.
        attributor
            An estimator in place of the one that the settings describe: an object with the ``attribute`` of
            :class:`~thrifty.forget.attribution.trak.Trak`.
        fresh
            ``fresh(seed)``: a model with new weights, for retraining; by default layers of ``model`` are reset.

        Raises
        ------
        InputError
            When a set is empty or unlabelled, an input is not finite, or the scores are those of other sets.
        """
        draw = drawn()
        pool = self.pool(forget_set, retain_set, draw)
        check_inputs(pool.sample())
        if self.scores is not None and attributor is None:
            effects = read_scores(self.scores, pool)
        else:
            effects = (attributor or self.attributor()).attribute(
                model,
                pool.full,
                pool.queries,
                torch.arange(pool.forgotten),
                own=pool.numbers,
                draw=draw,
                fresh=fresh,
                directory=None if run is None else run.directory / "models",
            )
        original = outputs(model, pool.queries)
        targets = datamodel_targets(original, effects, self.multiplier)
        y = labels(as_source(forget_set, "forget set"))
        before, after = (float(margins(logits[..., : len(y), :], y).mean()) for logits in (original, targets))
        _log.info("without the forget set, its mean margin is predicted to go from %.3g to %.3g", before, after)
        return self.match(model, pool, targets)


class DirectPrediction(nn.Module):
    r"""DM-Direct: serves :math:`f_x(\theta_0) - m \sum_{i \in F} \beta_{i,x}` itself, where effects are known.

    Parameters
    ----------
    model
        The original model.
    effects
        Effects of each example of the forget set on each logit of N known examples, [F, N, C].
    multiplier
        m.
    """

    effect: Tensor

    def __init__(
        self, model: nn.Module, effects: Float[Tensor, "forgotten known classes"], multiplier: float = 1.0
    ) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("effect", multiplier * effects.sum(0))

    def forward(
        self, x: Float[Tensor, " batch *shape"], index: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch classes"]:
        """Logits; ``index`` says which of the known examples each row of ``x`` is."""
        return said(self.model, x) - self.effect[index]


def datamodel_targets(
    logits: Float[Tensor, "*models points classes"],
    beta_forget: Float[Tensor, "forgotten points classes"],
    multiplier: float = 1.0,
) -> Float[Tensor, "*models points classes"]:
    r"""What would be said without the forget set, :math:`f_x(\theta_0) - m \sum_{i \in F} \beta_{i,x}`.

    Parameters
    ----------
    logits
        Of the original model, in evaluation mode.
    beta_forget
        What including each example of the forget set adds; hence it is subtracted.
    multiplier
        m.
    """
    return logits - multiplier * beta_forget.sum(0)


def read_scores(path: str, pool: Pool) -> Float[Tensor, "forgotten queries classes"]:
    """Effects that were attributed elsewhere, for the examples of a pool.

    Raises
    ------
    InputError
        When the file is none, has no ``beta``, or belongs to other sets.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            beta: Tensor = file.get_tensor("beta").float()
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} holds no scores: give a safetensors file with a tensor 'beta' ({error})") from error
    if beta.ndim != 3 or beta.shape[:2] != (pool.forgotten, len(pool.full)):
        raise InputError(
            f"the scores in {path} are {list(beta.shape)}: expected [{pool.forgotten}, {len(pool.full)}, classes], "
            "the forget set against the forget and the retain set"
        )
    if not torch.isfinite(beta).all():
        raise InputError(f"the scores in {path} hold NaN or infinity")
    return beta[:, pool.numbers]
