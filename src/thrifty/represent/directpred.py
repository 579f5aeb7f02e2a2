"""DirectPred: the predictor of a two-view method is computed from the correlations of its inputs, not trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core import processes
from thrifty.core.errors import InputError, NonFiniteError
from thrifty.core.method import register
from thrifty.represent.spectra import SPECTRA, Spectrum
from thrifty.represent.two_view_method import TwoViewMethod

Rule = Literal["directpred", "directcopy", "dynamics", "solve"]


@register("directpred")
@dataclass(frozen=True)
class DirectPred(TwoViewMethod):
    r"""Learns features without labels or negatives; the linear predictor follows the features' eigenvectors.

    An online network f (encoder and projector) predicts the projections of another view by its moving average
    :math:`f^a`, through a matrix without bias:

    .. math::
        L = \tfrac1B\textstyle\sum_i -2\cos(W_p f_{1i}, \mathrm{sg} f^a_{2i}) - 2\cos(W_p f_{2i}, \mathrm{sg} f^a_{1i})

        \hat F \leftarrow \rho \hat F + (1-\rho)\, \overline{f f^\top} = U \mathrm{diag}(s) U^\top, \qquad
        W_p = U \mathrm{diag}(p) U^\top, \quad p_j = \sqrt{s_j} + \epsilon \max_j s_j

    A trained linear predictor comes to share the eigenvectors of the features' correlation, with eigenvalues near the
    square root of theirs; here it is set there at once. Directions that have vanished come back through epsilon.

    As in the authors' code the matrix is set behind the optimizer's step, from the projections before it, both views
    together, not centred. Their code's scale of epsilon is another one (``spectrum="relative"``). Left out are its
    experiments that no result rests on: noise on the matrix, partitions of the batch, and a finite integration time.

    Parameters
    ----------
    rho
        Share of the old correlation that is kept at a step; 0.3 means 70% of it is new.
    eps
        Added to the eigenvalues, as a share of the largest; without it vanished directions stay so. For ``directcopy``
        0.3 is usual.
    freq
        Set the matrix at every so many'th step; at 0 never: with ``between="train"``, a trained linear predictor.
    power
        Of the eigenvalues: 0.5 is the square root.
    rule
        ``directpred``; ``directcopy``: the correlation itself, over its norm, and eps (no eigenvectors needed);
        ``dynamics``: where a trained predictor's gradient flow ends; ``solve``: least squares.
    spectrum
        ``paper``: as above; ``relative``: the authors' code, ``(s / max s)^power + eps``; ``relative-inside``: eps
        before the power; ``mean``: half-way to the mean; ``clamp``: between 0 and 1; ``scale``: down to at most 1.
    center
        Use the covariance instead of the correlation.
    diagonal
        Look at the diagonal of the correlation only, without eigenvectors.
    between
        At steps that don't set the matrix, ``hold`` it, or ``train`` it as the authors' code does.
    symmetric
        Make the trained matrix symmetric behind each step.
    shrinkage
        How much less than 1 the eigenvalues of ``relative``, ``clamp`` and ``scale`` are, and what ``dynamics`` and
        ``solve`` add to those they divide by.

    Raises
    ------
    InputError
        When a setting is out of its range.

    References
    ----------
    Tian, Chen and Ganguli, Understanding self-supervised Learning Dynamics without Contrastive Pairs, ICML 2021, arXiv
    2102.06810, section 5. ``directcopy``: Wang, Chen, Du and Tian, arXiv 2110.04947.
    """

    rho: float = 0.3
    eps: float = 0.1
    freq: int = 1
    power: float = 0.5
    rule: Rule = "directpred"
    spectrum: Spectrum = "paper"
    center: bool = False
    diagonal: bool = False
    between: Literal["hold", "train"] = "hold"
    symmetric: bool = False
    shrinkage: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rho", "shrinkage"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 0 and below 1, not {getattr(self, name):g}")
        if self.freq < 0:
            raise InputError(f"freq must be a number of steps, or 0 for never, not {self.freq}")
        if self.freq == 0 and self.between == "hold":
            raise InputError("a matrix that is never set (freq=0) and held stays the identity: set between=train")
        if not self.power > 0:
            raise InputError(f"power must be above 0, not {self.power:g}")

    def predictor(self, dim: int) -> nn.Module:
        """The computed predictor."""
        return DirectPredictor(dim, self)


class DirectPredictor(nn.Module):
    """A linear predictor whose matrix is set from the running correlation of its inputs.

    It begins as the identity, or as a linear layer does where it is trained in between. ``forward`` is differentiable
    in its input; call ``update`` once a step, with the projections of both views.

    Parameters
    ----------
    dim
        Length of a projection.
    settings
        What it reads of them: ``rho`` to ``shrinkage``.
    """

    weight: Tensor
    correlation: Tensor
    cross: Tensor
    mean: Tensor
    target_mean: Tensor
    updates: Tensor

    def __init__(self, dim: int, settings: DirectPred | None = None) -> None:
        super().__init__()
        self.settings = DirectPred() if settings is None else settings
        # A matrix that is set at every step is no parameter: weight decay would be for nothing.
        if self.settings.between == "train" and self.settings.freq != 1:
            self.weight = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(dim, dim), a=5**0.5))  # as nn.Linear has it
        else:
            self.register_buffer("weight", torch.eye(dim))
        for name, shape in (("correlation", (dim, dim)), ("cross", (dim, dim)), ("mean", dim), ("target_mean", dim)):
            self.register_buffer(name, torch.zeros(shape))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, f: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch dim"]:
        """``W_p f`` for each row."""
        return f @ self.weight.T

    @torch.no_grad()
    def update(self, f: Float[Tensor, "n dim"], targets: Float[Tensor, "n dim"] | None = None) -> None:
        """Takes in the projections of a step, and sets the matrix where it is time.

        Parameters
        ----------
        f
            Online projections of both views.
        targets
            The teacher's projections that each row is to predict; only ``dynamics`` and ``solve`` need them.

        Raises
        ------
        NonFiniteError
            When a projection is not finite.
        InputError
            When targets are needed and missing.
        """
        settings, needs_targets = self.settings, self.settings.rule in ("dynamics", "solve")
        if targets is None and needs_targets:
            raise InputError(f"the rule {settings.rule} needs the targets of the projections")
        f = f.float()
        t = f if targets is None else targets.float()
        if not torch.isfinite(f).all():
            raise NonFiniteError("a projection is not finite: try a smaller learning rate")
        new = {"correlation": correlation(f, f), "mean": f.mean(0)}
        if needs_targets:
            new |= {"cross": correlation(t, f), "target_mean": t.mean(0)}
        for name, value in new.items():
            old = getattr(self, name)
            shared = _over_processes(value)
            old.copy_(shared if self.updates == 0 else moving_average(old, shared, settings.rho))
        if settings.freq and self.updates % settings.freq == 0:
            self.weight.copy_(self.matrix())
        elif settings.symmetric:
            self.weight.copy_((self.weight + self.weight.T) / 2)
        self.updates += 1

    def matrix(self) -> Float[Tensor, "dim dim"]:
        """The matrix that the rule makes of what was seen so far."""
        settings, seen, cross = self.settings, self.correlation, self.cross
        if settings.center:
            seen = seen - torch.outer(self.mean, self.mean)
            cross = cross - torch.outer(self.target_mean, self.mean)
        if settings.rule == "directcopy":
            return direct_copy(seen, settings.eps)
        if settings.rule == "dynamics":
            return dynamics_optimum(seen, cross, settings.shrinkage, settings.diagonal)
        if settings.rule == "solve":
            return least_squares(seen, cross, settings.shrinkage)
        return direct_predictor(
            seen, settings.eps, settings.power, settings.spectrum, settings.shrinkage, settings.diagonal
        )


def _over_processes(x: Tensor) -> Tensor:
    if processes.world() > 1:
        torch.distributed.all_reduce(x)
        x /= processes.world()
    return x


def correlation(a: Float[Tensor, "n rows"], b: Float[Tensor, "n columns"]) -> Float[Tensor, "rows columns"]:
    """The mean of ``a bᵀ`` over the rows, not centred."""
    return a.T @ b / len(a)


def moving_average(old: Float[Tensor, "*shape"], new: Float[Tensor, "*shape"], rho: float) -> Float[Tensor, "*shape"]:
    """``rho old + (1 - rho) new``: rho is the share of the old."""
    return rho * old + (1 - rho) * new


def direct_predictor(
    f_hat: Float[Tensor, "dim dim"],
    eps: float,
    power: float = 0.5,
    spectrum: Spectrum = "paper",
    shrinkage: float = 0.0,
    diagonal: bool = False,
) -> Float[Tensor, "dim dim"]:
    r"""The matrix with the eigenvectors of a correlation and eigenvalues made of its (equations 18 and 19).

    Parameters
    ----------
    f_hat
        Symmetric.
    eps, power, spectrum, shrinkage, diagonal
        See :class:`DirectPred`.
    """
    make = SPECTRA[spectrum]
    if diagonal:
        return make(f_hat.diagonal(), eps, power, shrinkage).diag()
    s, u = torch.linalg.eigh(f_hat)
    return (u * make(s, eps, power, shrinkage)) @ u.T


def direct_copy(f_hat: Float[Tensor, "dim dim"], eps: float) -> Float[Tensor, "dim dim"]:
    """The correlation over its largest eigenvalue, and eps on the diagonal (DirectCopy)."""
    norm = torch.linalg.matrix_norm(f_hat, 2).clamp(min=1e-12)
    return f_hat / norm + eps * torch.eye(len(f_hat), dtype=f_hat.dtype, device=f_hat.device)


def dynamics_optimum(
    f_hat: Float[Tensor, "dim dim"], cross: Float[Tensor, "dim dim"], regularisation: float, diagonal: bool = False
) -> Float[Tensor, "dim dim"]:
    r"""Where :math:`\dot W = -\hat F W - W \hat F + 2M - \eta W` rests: :math:`2 M_{ij} / (s_i + s_j + \eta)`.

    Parameters
    ----------
    f_hat
        Correlation of the predictor's inputs.
    cross
        Correlation of targets (rows) with inputs (columns); made symmetric, as the matrix is to stay.
    regularisation
        Eta, the weight decay of the predictor.
    diagonal
        Leave out what is beside the diagonal in the basis of the eigenvectors.
    """
    s, u = torch.linalg.eigh(f_hat)
    s = s.clamp(min=0)
    m = u.T @ ((cross + cross.T) / 2) @ u
    m = m.diagonal().diag() if diagonal else m
    return u @ (2 * m / (s[:, None] + s[None, :] + regularisation).clamp(min=1e-8)) @ u.T


def least_squares(
    f_hat: Float[Tensor, "dim dim"], cross: Float[Tensor, "dim dim"], regularisation: float
) -> Float[Tensor, "dim dim"]:
    r"""The linear map from inputs to targets with the least squared error, :math:`M (\hat F + \eta I)^{-1}`."""
    s, u = torch.linalg.eigh(f_hat)
    return cross @ (u / (s.clamp(min=0) + regularisation).clamp(min=1e-8)) @ u.T
