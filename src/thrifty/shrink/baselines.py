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
from thrifty.shrink.sparsegpt import inverse_root, sparsegpt
from thrifty.shrink.sparsify import sparsify
from thrifty.shrink.structured import shrink_units


@dataclass(frozen=True)
class Magnitude:
    """Prunes the smallest weights of each output row; looks at no text.

    Parameters
    ----------
    sparsity
        Share of the weights of each row.
    pattern
        ``n:m`` instead.
    """

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ()

    sparsity: float = 0.5
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        parse_pattern(self.pattern)

    def shrink(self, model: nn.Module, *, inplace: bool = False) -> nn.Module:
        """A copy of the model with zeros in the linear maps of its decoder layers."""
        n_m = parse_pattern(self.pattern)

        def decide(_: DecoderLayer, __: str, weight: Tensor, ___: InputStatistics) -> Tensor:
            return weight.masked_fill(prune_mask(magnitude_score(weight), self.sparsity, n_m), 0)

        return sparsify(model, None, decide, n_m=n_m, inplace=inplace)


@dataclass(frozen=True)
class Wanda:
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

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.5
    pattern: str | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        parse_pattern(self.pattern)

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """A copy of the model with zeros in the linear maps of its decoder layers."""
        n_m = parse_pattern(self.pattern)

        def decide(_: DecoderLayer, __: str, weight: Tensor, seen: InputStatistics) -> Tensor:
            return weight.masked_fill(prune_mask(wanda_score(weight, seen.norm), self.sparsity, n_m), 0)

        return sparsify(model, windows, decide, n_m=n_m, inplace=inplace)


@dataclass(frozen=True)
class SparseGPT:
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

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.5
    pattern: str | None = None
    dampening: float = 0.01

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        parse_pattern(self.pattern)

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """A copy of the model with zeros in the linear maps of its decoder layers, and the other weights adjusted."""
        n_m = parse_pattern(self.pattern)
        roots: dict[int, Tensor] = {}

        def decide(_: DecoderLayer, __: str, weight: Tensor, seen: InputStatistics) -> Tensor:
            # Maps that read the same input share its statistics, and so the inverse.
            if id(seen) not in roots:
                roots.clear()
                roots[id(seen)] = inverse_root(seen.hessian, self.dampening)
            return sparsegpt(weight, roots[id(seen)], self.sparsity, n_m)

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
        For ``random``.
    """

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.2
    by: Literal["wanda", "magnitude", "random"] = "wanda"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """A copy of the model with fewer heads and neurons."""
        draw = torch.Generator().manual_seed(self.seed)

        def score(weight: Float[Tensor, "out in"], seen: InputStatistics, _: bool) -> Float[Tensor, " in"]:
            if self.by == "wanda":
                return weighted_norm(weight, seen.norm)
            if self.by == "magnitude":
                return weight.square().sum(0).sqrt()
            return torch.rand(weight.shape[1], generator=draw).to(weight.device)

        return shrink_units(model, windows, score, sparsity=self.sparsity, structure="ul-um", inplace=inplace)
