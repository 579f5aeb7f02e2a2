"""RoBoT: learns how to weigh training-free metrics, then trains the candidates that the weighted metric ranks first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float, Int

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.shrink.queries import Queries
from thrifty.shrink.weight_search import Acquisition, WeightSearch

Table = Float[np.ndarray, "architecture metric"]
Scores = Float[np.ndarray, " architecture"]


@dataclass(frozen=True, eq=False)
class Found:
    """What a search came to.

    Parameters
    ----------
    best
        Row of the best architecture among those that were queried.
    objective
        Its objective.
    weights
        Of the metrics, [m]: what the exploration came to.
    history
        The distinct architectures that were queried, in order, each with its objective.
    explored
        How many of them the exploration queried; the rest are of the exploitation.
    """

    best: int
    objective: float
    weights: Float[np.ndarray, " metric"]
    history: tuple[tuple[int, float], ...]
    explored: int


@register("robot-nas")
@dataclass(frozen=True)
class RoBoT:
    r"""Finds a good architecture in a pool, of which only a few can be evaluated on the task.

    .. math::
        M(A; w) = \textstyle\sum_i w_i M_i(A), \quad w \in [-1, 1]^m, \qquad A(w) = \arg\max_A M(A; w)

    Each training-free metric :math:`M_i` is scaled to [0, 1] over the pool. *Exploration*: Bayesian optimisation of
    :math:`f(w) = \mathrm{objective}(A(w))`, T evaluations of f, of which those that meet a known architecture cost
    nothing. *Exploitation*: the architectures that :math:`M(\cdot\,; w^*)` ranks first, the known ones skipped, until
    T distinct ones are queried. The answer is the best of all queried.

    A weight may be negative: whether a metric should be high or low is learnt. Of equally good weights the later, of
    equally ranked architectures the one with the larger index comes first, as in the released code.

    Any pool will do. Here are the cells of NAS-Bench-201 and the graph networks of NAS-Bench-Graph; the spaces of DARTS
    and TransNAS-Bench-101, on which the paper measures too, are not.

    Parameters
    ----------
    budget
        T, distinct architectures to evaluate. The paper takes 20 of 15,625 (NAS-Bench-201) and 100 on
        TransNAS-Bench-101.
    acquisition
        What chooses the next weights: ``ucb`` (upper confidence bound), ``ei`` (expected improvement) or ``poi``
        (probability of improvement).
    kappa
        Standard deviations that ``ucb`` adds to the mean.
    xi
        By how much ``ei`` and ``poi`` want the best to be exceeded.
    exploit
        Whether to exploit; without it the exploration is all.
    metrics
        Names with commas between them. By default the paper's ``grad_norm,snip,grasp,fisher,synflow,jacob_cov``; of
        a table of your own, all its numeric columns. ``naswot`` and ``parameters`` can be computed too.

    Raises
    ------
    InputError
        For a budget below 1, a negative kappa or xi, or an unknown acquisition.

    References
    ----------
    He et al., Robustifying and Boosting Training-Free Neural Architecture Search, ICLR 2024, arXiv 2403.07591.
    """

    kind: ClassVar[str] = "architectures"
    needs: ClassVar[tuple[str, ...]] = ()

    budget: int = 20
    acquisition: Acquisition = "ucb"
    kappa: float = 2.576
    xi: float = 0.01
    exploit: bool = True
    metrics: str | None = None

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise InputError(f"budget must be at least 1 architecture, not {self.budget}")
        if self.acquisition not in ("ucb", "ei", "poi"):
            raise InputError(f"acquisition must be ucb, ei or poi, not {self.acquisition!r}")
        if not (self.kappa >= 0 and self.xi >= 0):
            raise InputError(f"kappa and xi must not be negative, as {min(self.kappa, self.xi):g} is")

    def search(self, values: Table, objective: Callable[[int], float], *, seed: int = 0) -> Found:
        """Looks for the architecture with the highest objective.

        Parameters
        ----------
        values
            The metrics of all architectures, [N, m]; NaN where one could not be computed.
        objective
            ``objective(row)``: what an architecture is worth on the task, such as its validation accuracy after a
            short training; called once for each one that is queried.
        seed
            Of the Bayesian optimisation.

        Returns
        -------
        Found
            The best architecture, and how it was found.

        Raises
        ------
        InputError
            When the table is empty or not two-dimensional, an objective is no finite number, or the package
            bayesian-optimization is missing.
        """
        scaled = scale(checked(values))
        queries = Queries(objective, len(scaled), self.budget)
        weights = self._explore(scaled, queries, seed)
        explored = len(queries)
        if self.exploit:
            queries.ask_first(ranking(weighted(scaled, weights)))
        best, value = queries.best
        return Found(best, value, weights, queries.history, explored)

    def _explore(self, scaled: Table, queries: Queries, seed: int) -> Float[np.ndarray, " metric"]:
        optimizer = WeightSearch(scaled.shape[1], self.acquisition, self.kappa, self.xi, seed)
        best, most = np.zeros(scaled.shape[1]), -math.inf
        for _ in range(self.budget):
            weights = optimizer.suggest()
            value = queries.ask(int(ranking(weighted(scaled, weights))[0]))
            optimizer.register(weights, value)
            if value >= most:
                best, most = weights, value
            if queries.exhausted:
                break
        return best

    def metric_names(self, default: Sequence[str]) -> tuple[str, ...]:
        """The names in ``metrics``, or the default where none are given."""
        if self.metrics is None:
            return tuple(default)
        return tuple(name.strip() for name in self.metrics.split(",") if name.strip())


def scale(values: Table) -> Table:
    r"""Each metric over the pool to [0, 1], :math:`(M - \min M) / (\max M - \min M)`; a constant one stays as it is.

    NaN stays, and has no part in minimum and maximum.
    """
    known = np.isfinite(values)
    low = np.where(known, values, np.inf).min(0)
    spread = np.where(known, values, -np.inf).max(0) - low
    moves = np.isfinite(spread) & (spread > 0)
    return np.where(moves, (values - np.where(moves, low, 0)) / np.where(moves, spread, 1), values)


def weighted(scaled: Table, weights: Float[np.ndarray, " metric"]) -> Scores:
    r"""The robust metric :math:`M(A; w) = \sum_i w_i M_i(A)` of all architectures; NaN counts 0."""
    return np.nan_to_num(scaled, nan=0.0) @ weights


def ranking(scores: Scores) -> Int[np.ndarray, " architecture"]:
    """Rows by score, highest first; of equal ones the larger row comes first."""
    return np.argsort(scores, kind="stable")[::-1]


def checked(values: Table) -> Table:
    """A table of metrics as float64, with NaN for what is not finite.

    Raises
    ------
    InputError
        When it is empty or not two-dimensional, or nothing is known of a metric.
    """
    found = np.array(values, dtype=np.float64)
    if found.ndim != 2 or not found.size:
        raise InputError(f"the metrics must be a table [architectures, metrics], not {list(found.shape)}")
    found[~np.isfinite(found)] = np.nan
    empty = np.isnan(found).all(0)
    if empty.any():
        raise InputError(f"metric {int(empty.argmax())} is NaN for all architectures: leave it out")
    return found
