"""Generalised EM for episodes of unknown class balance: its equations, its two steps, and its iterative form.

With a weight λ for few classes and a temperature T it is PADDLE (Gaussian, T = 1), EM-Dirichlet (class probabilities,
T = 1) or soft k-means (λ = 0); :mod:`thrifty.adapt.unem` learns λ and T of every round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.adapt.dirichlet import dirichlet_log_density, log_probabilities, most_likely
from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod, Normalization, preprocess
from thrifty.adapt.points import Points, weighted_means
from thrifty.adapt.transductive import AssignmentStep, Means, PrototypeStep, TransductiveResult, TransductiveSolver
from thrifty.core.errors import InputError, nearest

Form = Literal["gaussian", "dirichlet"]
CLIP_SCALE = 30.0
_EPSILON = {"gaussian": 1e-6, "dirichlet": 1e-15}


def log_balance(shares: Float[Tensor, "T Nq K"], epsilon: float) -> Float[Tensor, "T K"]:
    """``v_k = ln(π_k + ε) + 1`` with ``π_k = (1/Nq) Σ_n u_nk`` over the queries."""
    return (shares.mean(1) + epsilon).log() + 1


def e_step(
    log_density: Float[Tensor, "T N K"],
    balance: Float[Tensor, "T K"],
    weight: Float[Tensor, ""] | float,
    temperature: Float[Tensor, ""] | float,
) -> Float[Tensor, "T N K"]:
    """``u_n = softmax_k( (ln p(z_n|θ_k) + λ v_k) / T )``."""
    return ((log_density + weight * balance[:, None]) / temperature).softmax(2)


def em_objective(
    log_density: Float[Tensor, "T N K"],
    shares: Float[Tensor, "T N K"],
    supports: int,
    weight: Float[Tensor, ""] | float,
    temperature: Float[Tensor, ""] | float,
) -> Float[Tensor, " T"]:
    """``−Σ_n Σ_k u_nk ln p(z_n|θ_k) − λ Nq Σ_k π_k ln π_k + T Σ_{n∈query} Σ_k u_nk ln u_nk``, support rows one-hot."""
    query = shares[:, supports:]
    share = query.mean(1)
    fit = -(shares * log_density).sum((1, 2))
    few = -weight * query.shape[1] * torch.xlogy(share, share).sum(1)
    return fit + few + temperature * torch.xlogy(query, query).sum((1, 2))


@dataclass(frozen=True, eq=False)
class BalancedAssignment(AssignmentStep):
    """The E-step with a weight and a temperature for each round.

    Parameters
    ----------
    form
        Which density the classes have.
    weights, temperatures
        λ and T of each round, ``[L]``, or ``[1]`` for all rounds.
    """

    form: Form
    weights: Float[Tensor, " L"]
    temperatures: Float[Tensor, " L"]

    def start(self, points: Points, prototypes: Tensor) -> Tensor:
        """Gaussian: the E-step from even shares. Dirichlet: the queries' own probabilities."""
        return points.clamped(points.x.exp()) if self.form == "dirichlet" else super().start(points, prototypes)

    def assign(self, points: Points, prototypes: Tensor, previous: Tensor, step: int) -> Tensor:
        """The shares."""
        balance = log_balance(previous[:, points.supports :], _EPSILON[self.form])
        # The Dirichlet form starts without an E-step, so its first one is that of step 1.
        weight, temperature = self._round(step - 1 if self.form == "dirichlet" else step)
        return points.clamped(e_step(self._density(points, prototypes), balance, weight, temperature))

    def energy(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:
        """The objective with the last round's weight and temperature."""
        density = self._density(points, prototypes)
        return em_objective(density, assignment, points.supports, *self._round(-1))

    def _round(self, number: int) -> tuple[Tensor, Tensor]:
        rounds = len(self.weights)
        at = number if rounds > 1 else 0
        return self.weights[at], self.temperatures[at if len(self.temperatures) > 1 else 0]

    def _density(self, points: Points, prototypes: Tensor) -> Tensor:
        if self.form == "dirichlet":
            return dirichlet_log_density(points.x, prototypes)
        return -0.5 * points.squared_distances(prototypes)


@dataclass(frozen=True)
class DirichletParameters(PrototypeStep):
    """The most likely Dirichlet parameters of each class; points are ``ln z``.

    Parameters
    ----------
    steps, through_steps
        See :func:`thrifty.adapt.dirichlet.most_likely`.
    """

    steps: int = 1000
    through_steps: bool = False

    def initial(self, points: Points) -> Tensor:
        """Ones: the even distribution."""
        return torch.ones(len(points.x), points.given.shape[2], points.x.shape[2]).to(points.x)

    def move(self, points: Points, prototypes: Tensor, assignment: Tensor) -> Tensor:
        """The parameters, from where they were."""
        return most_likely(
            prototypes, weighted_means(points.x, assignment), self.steps, through_steps=self.through_steps
        )


def prepared(
    episodes: Episodes, form: Form, scale: Float[Tensor, ""] | float, normalization: Normalization
) -> Episodes:
    """What the densities see: scaled features, or the logarithms of class probabilities in float64.

    Raises
    ------
    InputError
        When the Dirichlet form is given something else than a score for each class.
    """
    if form == "gaussian":
        found = preprocess(episodes, normalization)
        same = isinstance(scale, float) and scale == 1
        return found if same else found.with_features(scale * found.support, scale * found.query)
    size = episodes.support.shape[2]
    if size != episodes.classes:
        raise InputError(
            f"the Dirichlet form needs a score for each of the {episodes.classes} classes, not {size} features: give "
            "similarities to the classes (thrifty.adapt.unem.class_scores), or take the Gaussian form"
        )
    parts = [log_probabilities(part.double(), scale) for part in (episodes.support, episodes.query)]
    return episodes.with_features(*parts)


def em_solver(
    form: Form, weights: Tensor, temperatures: Tensor, rounds: int, tolerance: float | None, prototype: PrototypeStep
) -> TransductiveSolver:
    """The two steps of so many E-steps."""
    # The Gaussian form has taken an E-step before the first round.
    further = rounds if form == "dirichlet" else rounds - 1
    return TransductiveSolver(BalancedAssignment(form, weights, temperatures), prototype, further, tolerance)


def prototype_step(form: Form, steps: int, *, through_steps: bool = False) -> PrototypeStep:
    """The M-step of a form."""
    return DirichletParameters(steps, through_steps) if form == "dirichlet" else Means()


@dataclass(frozen=True)
class GeneralisedEM(FewShotMethod):
    """EM with one weight and one temperature for all rounds: what unrolling is measured against.

    Parameters
    ----------
    form
        gaussian: features; dirichlet: class scores such as CLIP's cosines.
    balance
        λ: 0 is soft k-means, 1 (with temperature 1) plain EM, more prefers few classes. PADDLE's α is λ·Nq.
    temperature
        T, above 0.
    rounds
        At most so many.
    scale
        Features are multiplied by it; class scores too, before their softmax. ``None``: 1 and 30.
    normalization
        Of features; see :func:`thrifty.adapt.few_shot.preprocess`.
    mm_steps
        MM steps of a Dirichlet M-step at most.
    tolerance
        An episode is done when its objective changes by no more than this share; ``None``: after all rounds.

    Raises
    ------
    InputError
        When a setting is out of range.
    """

    form: Form = "gaussian"
    balance: float = 1.0
    temperature: float = 1.0
    rounds: int = 100
    scale: float | None = None
    normalization: Normalization = "none"
    mm_steps: int = 1000
    tolerance: float | None = 1e-6

    def __post_init__(self) -> None:
        check_form(self.form)
        if self.balance < 0 or not self.temperature > 0 or self.rounds < 1:
            raise InputError("balance must be 0 or more, temperature above 0 and rounds at least 1")

    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes."""
        scale = self.scale if self.scale is not None else (1.0 if self.form == "gaussian" else CLIP_SCALE)
        values = torch.tensor([[self.balance], [self.temperature]]).to(episodes.support)
        step = prototype_step(self.form, self.mm_steps)
        solver = em_solver(self.form, values[0], values[1], self.rounds, self.tolerance, step)
        return solver.solve(episodes, partial(prepared, form=self.form, scale=scale, normalization=self.normalization))


def check_form(form: str) -> None:
    """Refuses an unknown form."""
    if form not in get_args(Form):
        raise InputError(f"form {form!r} is unknown: {nearest(str(form), get_args(Form))}")


def paddle(**settings: object) -> GeneralisedEM:
    """PADDLE: Gaussian EM with λ = 1 and T = 1 (arXiv 2206.14501)."""
    return GeneralisedEM(**settings)  # type: ignore[arg-type]


def soft_k_means(**settings: object) -> GeneralisedEM:
    """Soft k-means: no preference for a class balance."""
    return GeneralisedEM(balance=0.0, **settings)  # type: ignore[arg-type]


def em_dirichlet(balance: float, **settings: object) -> GeneralisedEM:
    """EM-Dirichlet in 20 rounds (arXiv 2405.18437); its authors set the balance to ⌊K / K_eff⌋."""
    return GeneralisedEM(form="dirichlet", balance=balance, rounds=20, **settings)  # type: ignore[arg-type]
