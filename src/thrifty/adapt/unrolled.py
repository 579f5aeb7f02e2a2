"""Generalised EM unrolled into a network of some twenty numbers (arXiv 2412.16739)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.adapt.episodes import Episodes
from thrifty.adapt.few_shot import FewShotMethod, Normalization
from thrifty.adapt.generalised_em import CLIP_SCALE, Form, em_solver, prepared, prototype_step
from thrifty.adapt.transductive import TransductiveResult, TransductiveSolver
from thrifty.nets.vision import storable


def unrolled_weights(raw: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """``λ^ℓ = softplus(a^ℓ)``."""
    return functional.softplus(raw)


def unrolled_temperatures(raw: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """``T^ℓ = 1 + softplus(b^ℓ)``: always above 1."""
    return 1 + functional.softplus(raw)


@dataclass(frozen=True)
class UnrolledConfig:
    """What an :class:`UnrolledEM` is made of: the settings of UNEM, and its first values.

    Parameters
    ----------
    form, layers, per_layer, learn_temperature, learn_scale, normalization, mm_steps, through_mm
        As for :class:`thrifty.adapt.unem.UNEM`.
    raw_balance
        a, before its softplus.
    """

    form: Form = "gaussian"
    layers: int = 10
    per_layer: bool = True
    learn_temperature: bool = True
    learn_scale: bool = True
    raw_balance: float = 1.0
    normalization: Normalization = "none"
    mm_steps: int = 1000
    through_mm: bool = False


@storable(UnrolledConfig)
class UnrolledEM(FewShotMethod, nn.Module):
    """So many rounds of generalised EM as a network of some twenty numbers.

    Save it with :func:`thrifty.nets.vision.save_net`, read it with :func:`thrifty.nets.vision.load_net`.

    Parameters
    ----------
    config
        Its shape and first values.
    """

    def __init__(self, config: UnrolledConfig) -> None:
        super().__init__()
        self.config = config
        size = config.layers if config.per_layer else 1
        self.raw_balance = nn.Parameter(torch.full((size,), config.raw_balance))
        self.raw_temperature = nn.Parameter(torch.ones(size)) if config.learn_temperature else None
        first = 1.0 if config.form == "gaussian" else CLIP_SCALE
        self.raw_scale = nn.Parameter(torch.tensor(first)) if config.learn_scale else None

    @property
    def balances(self) -> Float[Tensor, " L"]:
        """λ of each layer, or of all."""
        return unrolled_weights(self.raw_balance)

    @property
    def temperatures(self) -> Float[Tensor, " L"]:
        """T of each layer, or of all; 1 where it is not learnt."""
        if self.raw_temperature is None:
            return torch.ones_like(self.raw_balance[:1])
        return unrolled_temperatures(self.raw_temperature)

    @property
    def scale(self) -> Tensor:
        """What features are multiplied by, or τ of the class scores."""
        if self.raw_scale is None:
            return torch.tensor(1.0 if self.config.form == "gaussian" else CLIP_SCALE).to(self.raw_balance)
        return functional.softplus(self.raw_scale) if self.config.form == "gaussian" else self.raw_scale

    def forward(self, episodes: Episodes) -> Float[Tensor, "T Nq K"]:
        """The shares after the last layer; gradients flow through all of them."""
        return self._solver().solve(episodes, self._prepared).probabilities

    @torch.no_grad()
    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes."""
        return self._solver().solve(episodes, self._prepared)

    def values(self) -> list[dict[str, float]]:
        """What was learnt, layer by layer."""
        layers, scale = self.config.layers, float(self.scale.detach())
        columns = [part.detach().expand(layers).tolist() for part in (self.balances, self.temperatures)]
        rows = enumerate(zip(*columns, strict=True))
        return [{"layer": at + 1, "balance": b, "temperature": t, "scale": scale} for at, (b, t) in rows]

    def facts(self) -> dict[str, Any]:
        """The values of all layers."""
        return {"layers": self.values()}

    def _prepared(self, episodes: Episodes) -> Episodes:
        return prepared(episodes.to(self.raw_balance.device), self.config.form, self.scale, self.config.normalization)

    def _solver(self) -> TransductiveSolver:
        config = self.config
        step = prototype_step(config.form, config.mm_steps, through_steps=config.through_mm)
        return em_solver(config.form, self.balances, self.temperatures, config.layers, None, step)
