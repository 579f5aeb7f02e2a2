"""What the room's methods for language models are compared with: magnitude, Wanda and SparseGPT; units by their kin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.shrink.base import check_sparsity
from thrifty.shrink.decoder import DecoderLayer
from thrifty.shrink.flap import weighted_norm
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.masks import magnitude_score, parse_pattern, prune_mask, wanda_score
from thrifty.shrink.sparsegpt import sparsegpt
from thrifty.shrink.sparsify import sparsify
from thrifty.shrink.structured import shrink_units


@dataclass(frozen=True)
class _Sparse:
    """What the three that set single weights to 0 have in common."""

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.5
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        parse_pattern(self.pattern)

    def pruned(self, weight: Float[Tensor, "out in"], score: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The weight with 0 where the score is lowest."""
        return weight.masked_fill(prune_mask(score, self.sparsity, parse_pattern(self.pattern)), 0)


@dataclass(frozen=True)
class Magnitude(_Sparse):
    """Prunes the smallest weights of each output row; looks at no text.

    Parameters
    ----------
    sparsity
        Share of the weights of each row.
    pattern
        ``n:m`` instead.
    """

    needs: ClassVar[tuple[str, ...]] = ()

    def shrink(self, model: nn.Module, *, inplace: bool = False) -> nn.Module:
        """A copy of the model with zeros in the linear maps of its decoder layers."""

        def decide(_: DecoderLayer, __: str, weight: Tensor, ___: InputStatistics) -> Tensor:
            return self.pruned(weight, magnitude_score(weight))

        return sparsify(model, None, decide, n_m=parse_pattern(self.pattern), inplace=inplace)


@dataclass(frozen=True)
class Wanda(_Sparse):
    """Prunes the weights of each output row with the smallest product of magnitude and input norm.

    Parameters
    ----------
    sparsity
        Share of the weights of each row.
    pattern
        ``n:m`` instead.

    References
    ----------
    Sun et al., A Simple and Effective Pruning Approach for Large Language Models, ICLR 2024, arXiv 2306.11695.
    """

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """A copy of the model with zeros in the linear maps of its decoder layers."""

        def decide(_: DecoderLayer, __: str, weight: Tensor, seen: InputStatistics) -> Tensor:
            return self.pruned(weight, wanda_score(weight, seen.norm))

        return sparsify(model, windows, decide, n_m=parse_pattern(self.pattern), inplace=inplace)


@dataclass(frozen=True)
class SparseGPT(_Sparse):
    """Prunes column after column, and lets the columns behind make up for it.

    Parameters
    ----------
    sparsity
        Share of the weights of each block of 128 columns.
    pattern
        ``n:m`` instead.
    dampening
        Added to the diagonal of the Hessian, in means of it.

    References
    ----------
    Frantar and Alistarh, SparseGPT, ICML 2023, arXiv 2301.00774.
    """

    dampening: float = 0.01

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """A copy of the model with zeros in the linear maps of its decoder layers, and the other weights adjusted."""
        n_m = parse_pattern(self.pattern)

        def decide(_: DecoderLayer, __: str, weight: Tensor, seen: InputStatistics) -> Tensor:
            return sparsegpt(weight, seen.inverse_root(self.dampening), self.sparsity, n_m)

        return sparsify(model, windows, decide, n_m=n_m, hessian=True, inplace=inplace)


@dataclass(frozen=True)
class CutUnits:
    """Cuts the heads and neurons with the lowest scores, the same share in every layer, without compensation.

    Parameters
    ----------
    sparsity
        Share of the weights of the decoder layers to remove.
    by
        ``wanda`` (wanda-sp: magnitude times input norm, averaged over outputs), ``magnitude`` (norm of the column) or
        ``random``.
    seed
        For ``random``; by default from the global generator, which a run has seeded.
    """

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.2
    by: Literal["wanda", "magnitude", "random"] = "wanda"
    seed: int | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """A copy of the model with fewer heads and neurons."""
        draw = torch.Generator()
        if self.by == "random":
            draw.manual_seed(int(torch.randint(2**31, ())) if self.seed is None else self.seed)

        def score(weight: Float[Tensor, "out in"], seen: InputStatistics, _: bool) -> Float[Tensor, " in"]:
            if self.by == "wanda":
                return weighted_norm(weight, seen.norm)
            if self.by == "magnitude":
                return weight.square().sum(0).sqrt()
            return torch.rand(weight.shape[1], generator=draw).to(weight.device)

        return shrink_units(model, windows, score, sparsity=self.sparsity, structure="ul-um", inplace=inplace)
