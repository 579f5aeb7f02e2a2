"""BECLR: "BECLR: Batch Enhanced Contrastive Few-Shot Learning" (Poulakakis-Daktylidis & Jamali-Rad, 2024, arXiv
2402.02444): an encoder trained without labels, and class prototypes moved onto the queries by optimal transport."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from thrifty.adapt.beclr_training import Pretraining
from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod
from thrifty.adapt.logistic import fit_logistic
from thrifty.adapt.points import Points, weighted_means
from thrifty.adapt.transductive import AssignmentStep, PrototypeStep, TransductiveResult, TransductiveSolver
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.nets.self_supervised import Augment
from thrifty.nets.transport import barycentric, sinkhorn, squared_distances

if TYPE_CHECKING:
    from thrifty.adapt.few_shot_job import Pool
    from thrifty.adapt.inputs import Inputs

Classifier = Literal["logistic", "nearest"]
PASSES_OF_ONE_SHOT, PASSES_OF_MORE = 5, 1


def standardised(features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Each vector by itself at mean 0 and (unbiased) deviation 1 over its D numbers; a constant one becomes zeros."""
    size = features.shape[-1]
    scaled = nn.functional.layer_norm(features, (size,), eps=torch.finfo(features.dtype).eps ** 2)
    return scaled * math.sqrt((size - 1) / size)


def transport_plan(
    distances: Float[Tensor, "*T K Q"],
    epsilon: float = 0.05,
    *,
    class_marginal: Float[Tensor, "*#T K"] | None = None,
    query_marginal: Float[Tensor, "*#T Q"] | None = None,
    class_penalty: float = math.inf,
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> Float[Tensor, "*T K Q"]:
    """π of prototypes and queries at the cost ``C_ij = ‖P_i − q_j‖² / max C``, whose scale gives ε its meaning.

    The released code adds 1e-8 to the marginals' logarithms, which is below their rounding here.
    """
    most = distances.amax((-2, -1), keepdim=True).clamp(min=torch.finfo(distances.dtype).tiny)
    return sinkhorn(
        distances / most,
        epsilon,
        class_marginal,
        query_marginal,
        row_penalty=class_penalty,
        max_iterations=max_iterations,
        tolerance=tolerance,
    ).plan


def opta_align(
    prototypes: Float[Tensor, "*T K D"],
    query: Float[Tensor, "*T Q D"],
    *,
    epsilon: float = 0.05,
    passes: int = 5,
    mix: float = 1.0,
    class_marginal: Float[Tensor, "*#T K"] | None = None,
    query_marginal: Float[Tensor, "*#T Q"] | None = None,
    class_penalty: float = math.inf,
    max_iterations: int = 1000,
    tolerance: float = 1e-4,
) -> Float[Tensor, "*T K D"]:
    r"""The prototypes moved onto the queries (OpTA).

    .. math::
        P \leftarrow \mathrm{diag}(\pi 1)^{-1} \pi q \quad (\text{passes times}), \qquad
        P \leftarrow \rho P + (1 - \rho) P^{(0)}

    Parameters
    ----------
    prototypes
        Class means, of one task or of a batch of tasks.
    query
        The queries; they stay where they are.
    epsilon
        ε > 0, in the unit of the largest cost.
    passes
        δ; 0 returns the prototypes.
    mix
        ρ: share of the moved prototypes in the result.
    class_marginal, query_marginal
        How much mass each class sends and each query receives; even by default. Even classes are right when the
        queries are balanced, and cost accuracy when they are not.
    class_penalty
        How much it costs a class to send more or less than its marginal, in the unit of the largest cost; infinite:
        it can't ("unbalanced" transport otherwise, for queries of unknown balance).
    max_iterations, tolerance
        See :func:`thrifty.nets.transport.sinkhorn`.
    """
    moved = prototypes
    for _ in range(passes):
        plan = transport_plan(
            squared_distances(moved, query),
            epsilon,
            class_marginal=class_marginal,
            query_marginal=query_marginal,
            class_penalty=class_penalty,
            max_iterations=max_iterations,
            tolerance=tolerance,
        )
        moved = barycentric(plan, query)
    return mix * moved + (1 - mix) * prototypes if passes and mix != 1 else moved


@dataclass(frozen=True)
class TransportAssignment(AssignmentStep):
    """Shares of the queries by optimal transport from the prototypes; every query's shares sum to 1.

    Parameters
    ----------
    epsilon, class_penalty
        See :func:`opta_align`.
    """

    epsilon: float = 0.05
    class_penalty: float = math.inf

    def assign(self, points: Points, prototypes: Tensor, previous: Tensor, step: int) -> Tensor:  # noqa: ARG002
        """The shares; those of the support are its own classes."""
        distances = points.squared_distances(prototypes)
        queries = distances[:, points.supports :]
        plan = transport_plan(queries.mT, self.epsilon, class_penalty=self.class_penalty).mT * queries.shape[1]
        return torch.cat([points.given.to(plan), plan], 1)


@dataclass(frozen=True)
class QueryMeans(PrototypeStep):
    """Prototypes at the means of the queries by their shares, without the support."""

    def move(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:  # noqa: ARG002
        """The means."""
        return weighted_means(points.x[:, points.supports :], assignment[:, points.supports :])


@register("beclr")
@dataclass(frozen=True)
class BECLR(Pretraining, FewShotMethod):
    r"""Few-shot classification with an encoder trained without labels, the classes placed by the queries themselves.

    **OpTA** labels the queries of an episode, on any frozen features: each vector is standardised, class means are
    carried onto the queries by entropic optimal transport, and a linear classifier is fitted to the moved means alone.

    .. math::
        C_{ij} = \|P_i - q_j\|^2 / \max C, \quad
        \pi = \arg\min \langle \pi, C \rangle - \varepsilon H(\pi), \quad
        P \leftarrow \mathrm{diag}(\pi 1)^{-1} \pi q

    **Pretraining** (:meth:`pretrain`) is for those who have pictures and no encoder: a student predicts what its slow
    average sees in another view of the same picture, in a batch enlarged by neighbours from a clustered memory
    (:class:`thrifty.adapt.dyce.DyCEMemory`).

    .. math::
        L = \tfrac12 [-\cos(p^\alpha, sg\, z^\beta) - \cos(p^\beta, sg\, z^\alpha)] + \lambda L_{uni}

    Parameters
    ----------
    passes
        δ, how often the prototypes are moved; by default 5 for one shot and 1 for more.
    mix
        ρ, the share of moved prototypes, where there is more than one shot; one-shot prototypes are moved wholly.
    transport_epsilon
        ε of the transport, in the unit of the largest cost.
    class_penalty
        What it costs a class to claim more or less than its even share of the queries, in that unit. By default it
        can't, which is right for balanced queries only.
    classifier
        logistic: multinomial logistic regression on the moved prototypes (L2 penalty, C = 1), as in the paper.
        nearest: the nearest of them.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    arXiv 2402.02444. Where the released code differs from the paper (which prototypes embeddings go to, what
    neighbours are paired with, when a batch enters the memory), the paper is followed, and the code's way is a
    setting.

    Examples
    --------
    >>> from thrifty.adapt.episodes import Episodes
    >>> support, query = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.9, 0.1, 0.0], [0.2, 0.8, 0.1]]
    >>> task = Episodes.single(support, ["a", "b"], query)
    >>> BECLR().solve(task).named(task).tolist()
    [['a', 'b']]
    """

    passes: int | None = None
    mix: float = 0.7
    transport_epsilon: float = 0.05
    class_penalty: float | None = None
    classifier: Classifier = "logistic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.passes is not None and self.passes < 0) or not 0 <= self.mix <= 1:
            raise InputError(f"passes must not be negative and mix between 0 and 1, not {self.passes} and {self.mix:g}")
        if not (self.transport_epsilon > 0 and self._penalty > 0):
            raise InputError(
                "transport_epsilon and class_penalty must be above 0, not "
                f"{self.transport_epsilon:g} and {self._penalty:g}"
            )
        if self.classifier not in get_args(Classifier):
            hint = nearest(str(self.classifier), get_args(Classifier))
            raise InputError(f"classifier {self.classifier!r} is unknown: {hint}")

    @property
    def _penalty(self) -> float:
        return math.inf if self.class_penalty is None else self.class_penalty

    @torch.no_grad()
    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes.

        Parameters
        ----------
        episodes
            Tasks; their queries should hold the classes about evenly, unless ``class_penalty`` is given.
        """
        prepared = episodes.with_features(standardised(episodes.support), standardised(episodes.query))
        one_shot = episodes.shots == 1
        passes = self.passes if self.passes is not None else PASSES_OF_ONE_SHOT if one_shot else PASSES_OF_MORE
        steps = TransportAssignment(self.transport_epsilon, self._penalty), QueryMeans()
        found = TransductiveSolver(*steps, rounds=passes, tolerance=None).solve(prepared)
        prototypes = found.prototypes
        if not one_shot:
            given = nn.functional.one_hot(prepared.support_labels, prepared.classes)
            prototypes = self.mix * prototypes + (1 - self.mix) * weighted_means(prepared.support, given)
        if self.classifier == "logistic":
            targets = torch.eye(prepared.classes).to(prototypes).expand(len(prototypes), -1, -1)
            logits = fit_logistic(prototypes, targets)(prepared.query)
        else:
            logits = -squared_distances(prepared.query, prototypes)
        return TransductiveResult(logits.argmax(2), logits.softmax(2), prototypes, found.energy, found.rounds)

    def pretrain(
        self,
        pictures: UInt8[Tensor, "count channels height width"],
        run: Run,
        encoder: nn.Module | None = None,
        *,
        augment: Augment | None = None,
    ) -> nn.Module:
        """An encoder trained on pictures without labels; see :meth:`thrifty.adapt.beclr_training.Pretraining.train`."""
        return self.train(pictures, run, encoder, augment=augment).encoder

    def pool(self, inputs: Inputs, run: Run) -> Pool | None:
        """Features by an encoder trained on the user's pictures (see :mod:`thrifty.adapt.beclr_job`)."""
        from thrifty.adapt.beclr_job import pretrained_pool

        return pretrained_pool(self, inputs, run)
