"""Dynamic sparse no training: pruned and kept weights change places until each output's expected error is small."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.shrink.base import check_batch_size, check_sparsity
from thrifty.shrink.decoder import DecoderLayer
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.masks import NM, magnitude_score, parse_pattern, prune_mask, sparsegpt_score, wanda_score
from thrifty.shrink.sparsify import sparsify
from thrifty.shrink.swapping import Accept, initial_error, refine, refine_blocks

Initial = Literal["wanda", "magnitude", "sparsegpt"]
_WINDOW = 2048  # tokens of a window for which the paper's threshold is meant


@register("dsnot")
@dataclass(frozen=True)
class DSnoT:
    r"""Prunes a language model and improves the mask by swaps: no gradient, no weight changes but to 0.

    .. math::
        c_{rj} = W_{rj} S_j, \qquad E_r = \textstyle\sum_{j\,\text{pruned}} c_{rj}, \qquad
        \text{grow } \arg\max_{j\,\text{pruned}} \operatorname{sign}(E_r)\, c_{rj} / \mathrm{Var}_j^p, \qquad
        \text{prune } \arg\min_{j\,\text{kept},\, c_{rj} E_r < 0} |W_{rj}| \lVert X_j \rVert

    with :math:`S_j` a window's sum of input channel j, so that :math:`E_r` is what an output lacks on average. Each
    output row swaps until :math:`|E_r|` falls below the threshold; the number of zeros in a row (with a pattern, in a
    block) stays. Layer follows upon layer, each on what the sparse layers before it give.

    Parameters
    ----------
    sparsity
        Share of the weights of each output row of each linear map in the decoder layers that becomes 0.
    initial
        The mask to begin with: ``wanda``, ``magnitude`` or ``sparsegpt`` (its score, without its change of weights).
    pattern
        ``n:m``: prune n of each m neighbouring weights, such as ``2:4``, whatever ``sparsity`` says.
    max_cycles
        Most swaps in a row; 0 leaves the initial mask. The paper's rows have 4096 weights and more: where they are much
        shorter, 50 is a large share of them.
    threshold
        Of :math:`|E_r|`, for windows of 2048 tokens; scaled with the windows' length.
    variance_power
        Power of the variance by which contributions are divided when growing.
    accept
        Which swaps count: ``any`` (the released default), ``same-sign`` where the error keeps its sign (the
        released code's other branch, always so with a pattern), or ``falling`` where its size gets smaller.
    maps
        Which maps are refined: ``all``, ``attention`` (the released default) or ``mlp``; the others keep the initial
        mask.
    released
        When candidates of the right sign are used up, go on with those of the wrong one, as the released code does.
    batch_size
        Windows that run at once; by default as many as make 4096 tokens.

    Raises
    ------
    InputError
        For a sparsity outside of 0 and 1, a pattern that is not n:m or does not divide, or settings out of range.

    References
    ----------
    Zhang et al., Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs, ICLR 2024, arXiv 2310.08915.
    """

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.5
    initial: Initial = "wanda"
    pattern: str | None = None
    max_cycles: int = 50
    threshold: float = 0.1
    variance_power: float = 1.0
    accept: Accept = "any"
    maps: Literal["all", "attention", "mlp"] = "all"
    released: bool = False
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        parse_pattern(self.pattern)
        if self.max_cycles < 0 or self.threshold < 0:
            raise InputError(
                f"max_cycles and threshold must be at least 0, not {self.max_cycles} and {self.threshold:g}"
            )
        check_batch_size(self.batch_size)

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """The model with zeros in the linear maps of its decoder layers.

        Parameters
        ----------
        model
            A causal language model of transformers.
        windows
            Calibration text, see :func:`thrifty.shrink.calibration.windows_of`; the paper takes 128 of 2048 tokens.
        inplace
            Change ``model`` itself instead of a copy.

        Raises
        ------
        InputError
            When the model is no such one, or the windows no token ids of it.
        """

        def decide(layer: DecoderLayer, name: str, weight: Tensor, seen: InputStatistics) -> Tensor:
            part = "attention" if name in layer.attention_maps else "mlp"
            return weight.masked_fill(self.mask(weight, seen, refined=self.maps in ("all", part)), 0)

        return sparsify(
            model,
            windows,
            decide,
            n_m=parse_pattern(self.pattern),
            hessian=self.initial == "sparsegpt",
            batch_size=self.batch_size,
            inplace=inplace,
        )

    def mask(
        self, weight: Float[Tensor, "out in"], seen: InputStatistics, *, refined: bool = True
    ) -> Bool[Tensor, "out in"]:
        """The mask of one matrix, True where pruned.

        Parameters
        ----------
        weight
            The dense matrix.
        seen
            Of its input.
        refined
            Whether to improve on the initial mask.
        """
        n_m = parse_pattern(self.pattern)
        score = initial_score(self.initial, weight, seen)
        mask = prune_mask(score, self.sparsity, n_m)
        return self.refine(weight, mask, score, seen, n_m) if refined and self.max_cycles else mask

    def refine(
        self,
        weight: Float[Tensor, "out in"],
        mask: Bool[Tensor, "out in"],
        score: Float[Tensor, "out in"],
        seen: InputStatistics,
        n_m: NM | None = None,
    ) -> Bool[Tensor, "out in"]:
        """A given mask with weights swapped, as these settings say; ``score`` is the one that it was made by."""
        contribution = weight.float() * seen.sum
        worth = regrowing_score(contribution, seen.variance_within, self.variance_power)
        threshold = self.threshold * seen.tokens / seen.sequences / _WINDOW
        if n_m is not None:
            accept: Accept = "same-sign" if self.accept == "any" else self.accept
            return refine_blocks(contribution, worth, score, mask, n_m, self.max_cycles, threshold, accept)
        cost = wanda_score(weight, seen.norm)
        return refine(
            contribution, worth, cost, mask, self.max_cycles, threshold, self.accept, wrong_sign=self.released
        )


def regrowing_score(
    contribution: Float[Tensor, "out in"], variance: Float[Tensor, " in"], power: float = 1.0
) -> Float[Tensor, "out in"]:
    r"""What a pruned weight is worth when it comes back, :math:`c_{rj} / \mathrm{Var}_j^p`.

    Parameters
    ----------
    contribution
        What a weight adds to its output on average.
    variance
        Of the input channel; one that hardly varies counts as if it varied a little.
    power
        p.
    """
    return contribution / variance.clamp(min=torch.finfo(torch.float32).tiny ** 0.5).pow(power)


def initial_score(initial: Initial, weight: Float[Tensor, "out in"], seen: InputStatistics) -> Float[Tensor, "out in"]:
    """The score by which the first mask is chosen; it needs the Hessian for ``sparsegpt``."""
    if initial == "magnitude":
        return magnitude_score(weight)
    if initial == "wanda":
        return wanda_score(weight, seen.norm)
    return sparsegpt_score(weight, seen.inverse_root())


def expected_error(
    weight: Float[Tensor, "out in"], mask: Bool[Tensor, "out in"], seen: InputStatistics
) -> Float[Tensor, " out"]:
    """What each output lacks on average over a window's tokens, ``E_r`` divided by their number."""
    return initial_error(weight.float() * seen.mean, mask)
