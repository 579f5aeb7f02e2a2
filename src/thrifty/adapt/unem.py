"""UNEM: generalised EM for transductive few-shot classification with hyper-parameters learnt by unrolling it, "UNEM:
UNrolled Generalized EM for Transductive Few-Shot Learning" (Zhou, Shakeri, Sadraoui, Kaaniche, Pesquet & Ben Ayed,
CVPR 2025, arXiv 2412.16739).

The E-step and the objective are in :mod:`thrifty.adapt.generalised_em`, the Dirichlet densities and their M-step in
:mod:`thrifty.adapt.dirichlet`, the unrolled network in :mod:`thrifty.adapt.unrolled`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod, Normalization
from thrifty.adapt.generalised_em import Form, check_form
from thrifty.adapt.nmc import normalise_rows
from thrifty.adapt.transductive import TransductiveResult
from thrifty.adapt.unrolled import UnrolledConfig, UnrolledEM
from thrifty.core.errors import InputError, nearest
from thrifty.core.loop import Shuffled, fit
from thrifty.core.method import register
from thrifty.core.run import Run

Loss = Literal["likelihood", "released"]


def query_loss(
    shares: Float[Tensor, "T Nq K"], labels: Int[Tensor, "T Nq"], loss: Loss = "likelihood"
) -> Float[Tensor, ""]:
    """The mean over all queries of ``−ln u_{n, y_n}``; released: softmax cross-entropy of the shares as if logits."""
    flat, truth = shares.flatten(0, 1), labels.flatten()
    if loss == "released":
        return functional.cross_entropy(flat, truth)
    return functional.nll_loss(flat.clamp(min=1e-12).log(), truth)


def class_scores(episodes: Episodes, anchors: Float[Tensor, "T K D"] | None = None) -> Episodes:
    """Class scores in the place of features, as the Dirichlet form needs them: cosines to one vector for each class.

    Parameters
    ----------
    episodes
        With features.
    anchors
        What stands for each class, such as a vision-language model's embedding of its name; ``[K, D]`` where all
        episodes share their classes. Its support mean where not given.
    """
    if anchors is None:
        given = functional.one_hot(episodes.support_labels, episodes.classes).to(episodes.support)
        anchors = given.mT @ episodes.support / given.sum(1)[..., None]
    directions = normalise_rows(anchors.to(episodes.support)).mT
    support, query = (normalise_rows(part) @ directions for part in (episodes.support, episodes.query))
    return episodes.with_features(support, query)


@register("unem")
@dataclass(frozen=True)
class UNEM(FewShotMethod):
    """EM for queries of unknown class balance whose weights and temperatures are learnt on episodes of other classes.

    .. math:: u_n = \\mathrm{softmax}_k\\!\\Big(\\tfrac1{T^\\ell}\\big[\\ln p(z_n|\\theta_k)
              + \\lambda^\\ell (\\ln(\\pi_k + \\varepsilon) + 1)\\big]\\Big), \\qquad
              \\lambda^\\ell = \\mathrm{softplus}(a^\\ell), \\quad T^\\ell = 1 + \\mathrm{softplus}(b^\\ell)

    Each of L layers is one round of EM: the shares of the queries, their class balance π, then the parameters θ of the
    classes from support and queries. All a, b and one scale of the features are learnt by gradient through all layers
    from the cross-entropy of the last shares on validation episodes. The weight of class balance decides everything
    when only few of the candidate classes are there, and its best value differs by orders of magnitude between data.

    Parameters
    ----------
    form
        gaussian: features, ``ln p = −½‖z − θ_k‖²``; dirichlet: class scores such as a vision-language model's
        cosines, as probabilities ``softmax(τ · scores)`` with a Dirichlet density for each class.
    layers
        L, the rounds of EM.
    per_layer
        Learn λ and T for each layer; otherwise one for all.
    learn_temperature
        Learn T; otherwise it is 1.
    learn_scale
        Learn the features' scale, or τ; otherwise they are 1 and 30.
    balance_init
        First value of a; by default 1, and for the Dirichlet form the ratio of the classes to those present among the
        validation queries.
    loss
        likelihood: ``−ln u`` of the right class; released: the released code's cross-entropy, which takes the shares
        for logits, so that its gradients are weak but bounded.
    learning_rate
        Of Adam, halved after half of the steps; by default 0.1, and 0.5 for the Dirichlet form.
    steps
        By default 100, and 480 for the Dirichlet form.
    batch_episodes
        Episodes of a step: by default all, and 15 for the Dirichlet form.
    normalization
        none: features as they come, as in the paper; centred and unit: see
        :func:`thrifty.adapt.few_shot.preprocess`.
    mm_steps
        Steps of the Dirichlet form's inner iteration at most.
    through_mm
        Let gradients flow through every inner step, as the released code does, at a thousandfold of the memory; by
        default they are those of the inner iteration's limit.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    arXiv 2412.16739. PADDLE: arXiv 2206.14501; EM-Dirichlet: arXiv 2405.18437.
    """

    learns: ClassVar[bool] = True
    usual: ClassVar[Design] = Design(ways=20, shots=1, queries=40, present=5, balance="pooled")

    form: Form = "gaussian"
    layers: int = 10
    per_layer: bool = True
    learn_temperature: bool = True
    learn_scale: bool = True
    balance_init: float | None = None
    loss: Loss = "likelihood"
    learning_rate: float | None = None
    steps: int | None = None
    batch_episodes: int | None = None
    normalization: Normalization = "none"
    mm_steps: int = 1000
    through_mm: bool = False

    def __post_init__(self) -> None:
        check_form(self.form)
        if self.loss not in get_args(Loss):
            raise InputError(f"loss {self.loss!r} is unknown: {nearest(str(self.loss), get_args(Loss))}")
        for name in ("layers", "mm_steps", "steps", "batch_episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate must be above 0, not {self.learning_rate:g}")
        if self.balance_init is not None and not math.isfinite(self.balance_init):
            raise InputError(f"balance_init must be a finite number, not {self.balance_init:g}")

    @property
    def takes_scores(self) -> bool:
        """Whether it is the Dirichlet form."""
        return self.form == "dirichlet"

    def ready(self, episodes: Episodes) -> Episodes:
        """For the Dirichlet form, features become cosines to the support means of their episode."""
        fitting = not self.takes_scores or episodes.support.shape[2] == episodes.classes
        return episodes if fitting else class_scores(episodes)

    def learn(self, validation: Episodes, run: Run) -> UnrolledEM:
        """The unrolled network with what it learnt on validation episodes.

        Parameters
        ----------
        validation
            Episodes of other classes than those to come, with the same shots and queries, and query labels.
        run
            Where the learning is logged and checkpointed, and on which device it runs.

        Raises
        ------
        InputError
            When the queries have no labels.
        """
        if validation.query_labels is None:
            raise InputError("the queries of the validation episodes have no labels: there is nothing to learn from")
        dirichlet = self.form == "dirichlet"
        steps = self.steps or (480 if dirichlet else 100)
        batch = self.batch_episodes or (15 if dirichlet else len(validation))
        rate = self.learning_rate or (0.5 if dirichlet else 0.1)
        episodes = validation.to(run.device)
        order = Shuffled(len(episodes), batch, run.seed)

        def loss(model: nn.Module, rows: Tensor) -> Tensor:
            part = episodes if len(rows) == len(episodes) else episodes.take(rows.to(run.device))
            assert part.query_labels is not None
            return query_loss(model(part), part.query_labels, self.loss)

        present = functional.one_hot(validation.query_labels, validation.classes).any(1).sum(1).double().mean()
        model = UnrolledEM(self._config(validation.classes / float(present)))
        fit(
            loss,
            model,
            order,
            lambda net: torch.optim.Adam(net.parameters(), rate),
            run,
            steps,
            clip_norm=None,
            schedule=lambda step: 1.0 if 2 * step < steps else 0.5,
            label="unroll",
        )
        return model

    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes with the first values of λ, T and the scale, nothing learnt."""
        return UnrolledEM(self._config(1.0)).solve(episodes)

    def _config(self, ratio: float) -> UnrolledConfig:
        names = ("form", "layers", "per_layer", "learn_temperature", "learn_scale", "normalization", "mm_steps")
        shared = {name: getattr(self, name) for name in names}
        usual = 1.0 if self.form == "gaussian" else ratio
        first = usual if self.balance_init is None else self.balance_init
        return UnrolledConfig(**shared, raw_balance=first, through_mm=self.through_mm)
