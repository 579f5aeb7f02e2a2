"""Ridge regression that learns batch by batch and, at any time, equals the one on all examples so far.

Three ways of keeping it: its inverse by recursion (no system to solve at any time), the sums that it follows from
(the cheapest to add to), and those sums for each class apart (so that classes can be weighed against each other).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError, RunError


def recursive_step(
    memory: Float[Tensor, "M M"],
    weights: Float[Tensor, "M C"],
    features: Float[Tensor, "N M"],
    targets: Float[Tensor, "N C"],
) -> tuple[Float[Tensor, "N M"], Float[Tensor, "M C"]]:
    r"""What a batch changes in :math:`R = (B^\top B + \gamma I)^{-1}` and in the weights.

    .. math::
        L L^\top = I + B_k R B_k^\top, \quad V = L^{-1} B_k R, \qquad
        R \leftarrow R - V^\top V, \quad W \leftarrow W + V^\top L^{-1} (Y_k - B_k W)

    This is Woodbury's identity as the paper has it, ``R − R Bᵀ (I + B R Bᵀ)⁻¹ B R`` and ``W + R_new Bᵀ (Y − B W)``,
    with one factorisation for both: ``R_new Bᵀ = Vᵀ L⁻¹``, and what is subtracted is symmetric by construction.

    Parameters
    ----------
    memory
        R before the batch.
    weights
        W before it, with columns of zeros for classes that are new.
    features
        B_k.
    targets
        Y_k.

    Returns
    -------
    factor
        V.
    change
        What is added to W.
    """
    spread = features @ memory
    identity = torch.eye(len(features), dtype=features.dtype, device=features.device)
    lower = torch.linalg.cholesky(identity + spread @ features.T)
    factor = torch.linalg.solve_triangular(lower, spread, upper=False)
    residual = torch.linalg.solve_triangular(lower, targets - features @ weights, upper=False)
    return factor, factor.T @ residual


def block_step(
    memory: Float[Tensor, "M M"],
    exposed: Float[Tensor, "M E"],
    features: Float[Tensor, "N M"],
    exposed_targets: Float[Tensor, "N E"],
    new_targets: Float[Tensor, "N U"],
) -> tuple[Float[Tensor, "M E"], Float[Tensor, "M U"]]:
    r"""The paper's form of the step, which tells classes seen before (exposed) from new ones.

    .. math::
        W_\mathrm{exposed} \leftarrow W - R_k B_k^\top B_k W + R_k B_k^\top \bar Y_k, \qquad
        W_\mathrm{unexposed} = R_k B_k^\top \tilde Y_k

    The term with :math:`\bar Y_k` is the exposed class label gain; without it this is ACIL, for disjoint classes.

    Parameters
    ----------
    memory
        R_k, after the batch.
    exposed
        The weights of the classes seen before it.
    features
        B_k.
    exposed_targets, new_targets
        One-hot labels of the classes seen before, and of the new ones.
    """
    gain = memory @ features.T
    return exposed - gain @ (features @ exposed) + gain @ exposed_targets, gain @ new_targets


def balanced_weights(counts: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Weights in proportion to ``1 / count`` with mean one; zero for classes without an example (AIR)."""
    inverse = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return inverse * len(counts) / inverse.sum().clamp(min=torch.finfo(inverse.dtype).tiny)


class Ridge(ABC):
    """Weights ``[M, C]`` of a ridge regression without intercept onto C targets, in float64.

    Parameters
    ----------
    dimension
        M.
    ridge
        What multiplies the squared weights beside the *sum* of squared errors, above 0.
    device
        Where it lives.
    """

    def __init__(self, dimension: int, ridge: float, device: torch.device) -> None:
        self.dimension, self.ridge, self.device = dimension, ridge, device

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=torch.float64, device=self.device)

    @abstractmethod
    def grow(self, positions: Int[Tensor, " C"], classes: int) -> None:
        """Moves the column of each known class to its position among ``classes``; new columns are zero."""

    @abstractmethod
    def add(self, features: Float[Tensor, "N M"], targets: Float[Tensor, "N C"]) -> None:
        """Learns from examples."""

    @abstractmethod
    def solution(self, ridge: float) -> Float[Tensor, "M C"]:
        """The weights at this moment.

        Raises
        ------
        InputError
            When another ridge is asked for than it learnt with, and it can't change it.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that it holds, as a tree."""

    @abstractmethod
    def load(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state` returned."""


def _grown(columns: Tensor, positions: Tensor, classes: int) -> Tensor:
    grown = columns.new_zeros(len(columns), classes)
    grown[:, positions.to(columns.device)] = columns
    return grown


class RecursiveRidge(Ridge):
    """Keeps the inverse R ``[M, M]`` and the weights: 4 M² operations an example, whatever came before."""

    def __init__(self, dimension: int, ridge: float, device: torch.device) -> None:
        super().__init__(dimension, ridge, device)
        self.memory = self._zeros(dimension, dimension)
        self.memory.diagonal().fill_(1 / ridge)
        self.weights = self._zeros(dimension, 0)

    def grow(self, positions: Tensor, classes: int) -> None:
        self.weights = _grown(self.weights, positions, classes)

    def add(self, features: Tensor, targets: Tensor) -> None:
        # In parts whose own n x n system is small beside the M x M memory; a partition changes nothing.
        rows = max(self.dimension // 2, 64)
        for part, labels in zip(features.split(rows), targets.split(rows), strict=True):
            try:
                factor, change = recursive_step(self.memory, self.weights, part, labels)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # missing in torch's types
                raise RunError(
                    f"the recursion has lost its precision at ridge {self.ridge:g}: take a larger ridge, "
                    "or solver='gram'"
                ) from error
            self.memory.addmm_(factor.T, factor, alpha=-1)
            self.weights += change

    def solution(self, ridge: float) -> Tensor:
        if ridge != self.ridge:
            raise InputError(
                f"the recursion began with ridge {self.ridge:g} and can't go on with {ridge:g}: take solver='gram', "
                "which can"
            )
        return self.weights

    def state(self) -> dict[str, Any]:
        return {"ridge": self.ridge, "memory": self.memory.clone(), "weights": self.weights.clone()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.ridge = float(state["ridge"])
        self.memory, self.weights = (state[name].to(self.device).clone() for name in ("memory", "weights"))


class GramRidge(Ridge):
    """Keeps BᵀB and BᵀY, and solves when asked for weights: cheap to add to, and the ridge can change at any time."""

    def __init__(self, dimension: int, ridge: float, device: torch.device) -> None:
        super().__init__(dimension, ridge, device)
        self.gram, self.moment = self._zeros(dimension, dimension), self._zeros(dimension, 0)
        self._solved: tuple[float, Tensor] | None = None

    def grow(self, positions: Tensor, classes: int) -> None:
        self.moment, self._solved = _grown(self.moment, positions, classes), None

    def add(self, features: Tensor, targets: Tensor) -> None:
        self.gram.addmm_(features.T, features)
        self.moment.addmm_(features.T, targets)
        self._solved = None

    def solution(self, ridge: float) -> Tensor:
        if self._solved is None or self._solved[0] != ridge:
            self._solved = ridge, solve(self.gram, self.moment, ridge)
        return self._solved[1]

    def state(self) -> dict[str, Any]:
        return {"gram": self.gram.clone(), "moment": self.moment.clone()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.gram, self.moment = (state[name].to(self.device).clone() for name in ("gram", "moment"))
        self._solved = None


class BalancedRidge(Ridge):
    r"""Keeps BᵀB of each class apart, and gives each class the same weight whatever its number of examples (AIR).

    .. math:: W = \Big(\sum_c w_c A_c + \gamma I\Big)^{-1} B^\top Y\, \mathrm{diag}(w), \quad
              A_c = B_c^\top B_c, \quad w_c \propto 1 / n_c, \quad \textstyle\frac1C \sum_c w_c = 1

    It takes C M² numbers. Fang et al., arXiv 2408.10349.
    """

    def __init__(self, dimension: int, ridge: float, device: torch.device) -> None:
        super().__init__(dimension, ridge, device)
        self.grams: list[Tensor | None] = []
        self.moment = self._zeros(dimension, 0)
        self._solved: tuple[float, Tensor] | None = None
        self.counts = self._zeros(0)

    def grow(self, positions: Tensor, classes: int) -> None:
        grams, self.grams = self.grams, [None] * classes
        for position, gram in zip(positions.tolist(), grams, strict=True):
            self.grams[position] = gram
        self.moment, self._solved = _grown(self.moment, positions, classes), None
        self.counts = _grown(self.counts[None], positions, classes)[0]

    def add(self, features: Tensor, targets: Tensor) -> None:
        present = targets.any(0)
        for place in present.nonzero()[:, 0].tolist():
            rows = features[targets[:, place] > 0]
            gram = self.grams[place]
            self.grams[place] = rows.T @ rows if gram is None else gram.addmm_(rows.T, rows)
        self.counts += targets.sum(0)
        self.moment.addmm_(features.T, targets)
        self._solved = None

    def solution(self, ridge: float) -> Tensor:
        if self._solved is None or self._solved[0] != ridge:
            weights = balanced_weights(self.counts)
            total = self._zeros(self.dimension, self.dimension)
            for weight, gram in zip(weights.tolist(), self.grams, strict=True):
                if gram is not None:
                    total.add_(gram, alpha=weight)
            self._solved = ridge, solve(total, self.moment * weights, ridge)
        return self._solved[1]

    def state(self) -> dict[str, Any]:
        grams = [None if gram is None else gram.clone() for gram in self.grams]
        return {"grams": grams, "moment": self.moment.clone(), "counts": self.counts.clone()}

    def load(self, state: Mapping[str, Any]) -> None:
        self.grams = [None if gram is None else gram.to(self.device).clone() for gram in state["grams"]]
        self.moment, self.counts = (state[name].to(self.device).clone() for name in ("moment", "counts"))
        self._solved = None


def solve(gram: Float[Tensor, "M M"], moment: Float[Tensor, "M C"], ridge: float) -> Float[Tensor, "M C"]:
    """``(BᵀB + γI)⁻¹ BᵀY`` by one Cholesky factorisation."""
    system = gram.clone()
    system.diagonal().add_(ridge)
    lower, failed = torch.linalg.cholesky_ex(system)
    if int(failed):
        raise RunError(f"the features are too close to dependent for ridge {ridge:g}: take a larger ridge")
    return torch.cholesky_solve(moment, lower)
