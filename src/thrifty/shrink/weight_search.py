"""Bayesian optimisation of a few weights between -1 and 1, by the package bayesian-optimization."""

from __future__ import annotations

import contextlib
import io
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from thrifty.core.seeding import derive_seed
from thrifty.data.optional import need

Acquisition = Literal["ucb", "ei", "poi"]
Weights = Float[np.ndarray, " metric"]


class WeightSearch:
    """Suggests weights and is told what they are worth; a Gaussian process (Matern 2.5) learns from that.

    Parameters
    ----------
    count
        How many weights.
    acquisition
        ``ucb``, ``ei`` or ``poi``.
    kappa
        Of ``ucb``: standard deviations that are added to the mean.
    xi
        Of the other two: by how much the best must be exceeded.
    seed
        Of the first, random suggestion and of the search for the others.

    Raises
    ------
    InputError
        When the package is not installed.
    """

    def __init__(self, count: int, acquisition: Acquisition, kappa: float, xi: float, seed: int) -> None:
        bayes = need("bayes_opt", "nas", "learnt metric weights")
        kinds: dict[Acquisition, Any] = {
            "ucb": lambda: bayes.acquisition.UpperConfidenceBound(kappa=kappa),
            "ei": lambda: bayes.acquisition.ExpectedImprovement(xi=xi),
            "poi": lambda: bayes.acquisition.ProbabilityOfImprovement(xi=xi),
        }
        self._names = [f"w{index:04}" for index in range(count)]
        # What the weights are worth is constant on pieces, so that the same weights may well be suggested again.
        self._optimizer = bayes.BayesianOptimization(
            f=None,
            pbounds=dict.fromkeys(self._names, (-1.0, 1.0)),
            acquisition_function=kinds[acquisition](),
            random_state=derive_seed(seed, "weights") % 2**32,
            verbose=0,
            allow_duplicate_points=True,
        )

    def suggest(self) -> Weights:
        """The next weights to try: at first random ones."""
        found = self._optimizer.suggest()
        return np.array([found[name] for name in self._names], dtype=np.float64)

    def register(self, weights: Weights, value: float) -> None:
        """Tells what weights were worth; more is better."""
        with contextlib.redirect_stdout(io.StringIO()):  # the package prints repeated points
            self._optimizer.register(dict(zip(self._names, weights.tolist(), strict=True)), value)
