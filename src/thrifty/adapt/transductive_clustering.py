"""SLK: few-shot classification by clustering support and queries with a Laplacian term, "Transductive Few-Shot
Learning: Clustering is All You Need?" (Ziko, Boudiaf, Dolz, Granger & Ben Ayed, 2021, arXiv 2106.09516).

Its equations, one function each, are in :mod:`thrifty.adapt.laplacian`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod, Normalization, preprocess
from thrifty.adapt.laplacian import LaplacianAssignment, Modes, MostCertain
from thrifty.adapt.transductive import Fixed, Means, PrototypeStep, TransductiveResult, TransductiveSolver
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register

Prototype = Literal["mean", "mode", "bound", "fixed"]


@register("transductive-clustering")
@dataclass(frozen=True)
class TransductiveClustering(FewShotMethod):
    """Labels all queries of an episode at once by clustering them with the support; neighbours tend to share a class.

    .. math:: \\min_{S, M} \\sum_p \\sum_k s_{pk} \\, d(x_p, m_k)
              + \\tfrac\\lambda2 \\sum_{p,q} w_{pq} \\|s_p - s_q\\|^2, \\qquad s_p \\text{ of the support fixed}

    Assignments are found by bound steps ``s_p ← softmax_k(−d(x_p, m_k) + λ Σ_q w_pq s_qk)`` until they rest, prototypes
    from the assignments, in turn. Without a Laplacian it is K-means or K-modes; without moving the prototypes,
    LaplacianShot.

    All of these methods count on queries of all classes: where only few of the classes are there, or the prototypes
    were shifted on the assumption that they all are, plain nearest support means are better.

    Parameters
    ----------
    prototype
        mean: cluster means, with squared distances (SLK-Means); mode: density modes by mean-shift, with the kernel
        ``−exp(−‖x − m‖²/2σ²)`` (SLK-MS); bound: the same kernel, the mode is the point with the largest share (SLK-BO);
        fixed: support means that stay, with squared distances (LaplacianShot).
    laplacian
        λ, the weight of the neighbours. The paper chooses it on validation classes among 0.05, 0.1, 0.3, 0.5, 0.7, 0.8,
        0.9 and 1. It is that of the released code's step; the printed energy, minimised exactly, would need twice that.
    neighbours
        Nearest neighbours, the point itself counted: 3 makes an edge to two others.
    symmetric
        Make edges count in both directions; the paper's graph is directed.
    clamp_support
        Put the support back to its classes after every step, as the paper's constraint says; the released code lets
        steps relabel it, and stops an episode in which a class is left without a point.
    shift_query
        Move the queries so that their mean is the support's: a correction that supposes the same share of each class in
        both.
    normalization
        centred: minus the mean feature of the encoder's training classes (or of the episode where that is not known),
        scaled to length one; unit: scaled only; none.
    bandwidth
        σ of the kernel; by default the root mean square distance of neighbours.
    bandwidth_scale
        What the latter is multiplied by. The released code divides by 5 N whatever the number of edges, which at 3
        neighbours is a scale of √(2/5) = 0.632.
    rounds
        Rounds of prototypes and assignments at most; an episode is done when its energy changes by 1e-4 of it or less.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    arXiv 2106.09516. LaplacianShot: Ziko et al., ICML 2020, arXiv 2006.15486.
    """

    prototype: Prototype = "mode"
    laplacian: float = 0.7
    neighbours: int = 3
    symmetric: bool = False
    clamp_support: bool = True
    shift_query: bool = True
    normalization: Normalization = "centred"
    bandwidth: float | None = None
    bandwidth_scale: float = 1.0
    rounds: int = 100

    def __post_init__(self) -> None:
        if self.prototype not in get_args(Prototype):
            raise InputError(f"prototype {self.prototype!r} is unknown: {nearest(self.prototype, get_args(Prototype))}")
        if not 0 <= self.laplacian < float("inf"):
            raise InputError(f"the Laplacian's weight must be 0 or more, not {self.laplacian:g}")
        if self.prototype in ("bound", "fixed") and not self.laplacian:
            raise InputError(f"prototype {self.prototype!r} needs a Laplacian: give a weight above 0")
        for name, value in (("bandwidth", self.bandwidth), ("bandwidth_scale", self.bandwidth_scale)):
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0, not {value:g}")
        if self.rounds < 1:
            raise InputError(f"at least 1 round is needed, not {self.rounds}")

    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes.

        Parameters
        ----------
        episodes
            Any number of tasks; they are solved together, each until it rests.

        Raises
        ------
        InputError
            When an episode has fewer points than neighbours are asked.
        """
        prepare = partial(preprocess, normalization=self.normalization, shift_query=self.shift_query)
        return self.solver().solve(episodes, prepare)

    def solver(self) -> TransductiveSolver:
        """The two steps that these settings stand for."""
        assignment = LaplacianAssignment(
            weight=self.laplacian,
            neighbours=self.neighbours,
            symmetric=self.symmetric,
            modes=self.prototype in ("mode", "bound"),
            sigma=self.bandwidth,
            sigma_scale=self.bandwidth_scale,
            clamp=self.clamp_support,
            soft_start=self.prototype in ("bound", "fixed"),
        )
        steps: dict[str, PrototypeStep] = {
            "mean": Means(of_labels=True),
            "mode": Modes(),
            "bound": MostCertain(assignment),
            "fixed": Fixed(),
        }
        rounds = 0 if self.prototype == "fixed" else self.rounds
        return TransductiveSolver(
            assignment,
            steps[self.prototype],
            rounds=rounds,
            tolerance=1e-4 if rounds else None,
            keep_classes=True,
        )


def k_means(**settings: object) -> TransductiveClustering:
    """K-means with the support fixed: means without a Laplacian."""
    return TransductiveClustering(prototype="mean", laplacian=0.0, **settings)  # type: ignore[arg-type]


def k_modes(**settings: object) -> TransductiveClustering:
    """K-modes with the support fixed: modes without a Laplacian."""
    return TransductiveClustering(prototype="mode", laplacian=0.0, **settings)  # type: ignore[arg-type]


def laplacian_shot(**settings: object) -> TransductiveClustering:
    """LaplacianShot without its prototype rectification: a Laplacian around prototypes that stay."""
    return TransductiveClustering(prototype="fixed", **settings)  # type: ignore[arg-type]
