"""Attention heads and feed-forward neurons of all layers with their worth, and the choice of those that stay."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.shrink.calibration import calibrate
from thrifty.shrink.decoder import (
    Attention,
    DecoderLayer,
    FeedForward,
    decoder_layers,
    matrices,
    matrix,
    need_feed_forward,
)
from thrifty.shrink.decoder_surgery import cut, mask_out, settle_config
from thrifty.shrink.input_statistics import InputStatistics

_log = logging.getLogger("thrifty")

Structure = Literal["al-am", "al-mm", "ul-um", "ul-mm"]
# The weight of an output map, its input's statistics, and whether it is the attention's, to channel scores.
Score = Callable[[Float[Tensor, "out in"], InputStatistics, bool], Float[Tensor, " in"]]


@dataclass(frozen=True, eq=False)
class Part:
    """The attention or the feed-forward part of a layer with what its units are worth.

    Parameters
    ----------
    module
        What is cut.
    scores
        What each unit is worth, [U].
    mean
        Of each channel that goes into its output map, over the calibration text.
    """

    module: Attention | FeedForward
    scores: Float[Tensor, " unit"]
    mean: Float[Tensor, " channel"]

    @classmethod
    def scored(cls, module: Attention | FeedForward, score: Score, seen: InputStatistics) -> Part:
        """A part by the statistics of its output map's input; a unit's worth is the mean over its channels."""
        found = score(matrix(module.output).float(), seen, isinstance(module, Attention))
        return cls(module, found.unflatten(0, (-1, module.size)).mean(1), seen.mean)

    @property
    def cost(self) -> int:
        """Weights that go with all units."""
        return self.module.cost * len(self.scores)

    @property
    def most(self) -> int:
        """Weights that can go at most: one unit stays."""
        return self.cost - self.module.cost


def measure_parts(
    model: nn.Module, windows: Int[Tensor, "window token"], score: Score, batch_size: int | None = None
) -> tuple[list[Part], int]:
    """Scores the units of all layers on the dense model.

    Parameters
    ----------
    model
        A causal language model.
    windows
        Calibration windows.
    score
        Gives channels their scores; a unit's is their mean.
    batch_size
        Windows that run at once.

    Returns
    -------
    tuple
        The parts, and how many weights all linear maps of the layers have.
    """
    layers = decoder_layers(model)
    need_feed_forward(layers, model)
    whole = [number for number, layer in enumerate(layers) if layer.attention is None]
    if whole:
        _log.warning(
            "the attention of %d of %d layers is left whole: its heads can't be cut one by one in %s",
            len(whole),
            len(layers),
            type(model).__name__,
        )
    parts: list[Part] = []

    def visit(number: int, layer: DecoderLayer, found: dict[str, InputStatistics]) -> None:
        del number
        parts.extend(Part.scored(module, score, found[name]) for name, module in layer.parts.items())

    calibrate(model, windows, visit, names=lambda layer: list(layer.parts), again=False, batch_size=batch_size)
    return parts, sum(weight.numel() for weight in matrices(model))


def keep_within(
    scores: Sequence[Float[Tensor, " unit"]], costs: Sequence[int], budget: float
) -> list[Bool[Tensor, " unit"]]:
    """The units with the highest scores over all parts whose costs together come closest to a budget.

    The best unit of each part stays in any case, since no layer works without heads or neurons.

    Parameters
    ----------
    scores
        Of each part's units.
    costs
        Of one unit of each part.
    budget
        What those that stay should cost.
    """
    every = [score.clone() for score in scores]
    for score in every:
        score[score.argmax()] = torch.inf
    flat = torch.cat(every)
    sizes = torch.tensor([len(score) for score in scores])
    cost = torch.tensor(costs, dtype=torch.float64).repeat_interleave(sizes).to(flat.device)
    order = flat.argsort(descending=True, stable=True)
    count = int((cost[order].cumsum(0) - budget).abs().argmin()) + 1
    keep = torch.zeros_like(flat, dtype=torch.bool)
    keep[order[: max(count, len(every))]] = True
    return list(keep.split(sizes.tolist()))


def choose(parts: Sequence[Part], total: int, sparsity: float, structure: Structure, remove_heads: int) -> list[Tensor]:
    """Which units of each part stay, True there.

    Parameters
    ----------
    parts
        The parts of all layers.
    total
        Weights of all linear maps of the layers.
    sparsity
        Share of them to remove.
    structure
        Adaptive or uniform over layers (``al``, ``ul``), and over modules (``am``: neurons and heads compete; ``um``:
        the same share of both; ``mm``: ``remove_heads`` of the heads, the rest from neurons).
    remove_heads
        Query heads to remove in all, for ``mm``.

    Raises
    ------
    InputError
        When so many weights can't be removed; the largest possible share is said.
    """
    remove = sparsity * total
    why = "one head group and one neuron of each layer must stay"
    _reachable(remove, sum(part.most for part in parts), total, sparsity, why)
    if structure == "al-am":
        return _adaptive(parts, remove)
    attention = [part for part in parts if isinstance(part.module, Attention)]
    neurons = [part for part in parts if isinstance(part.module, FeedForward)]
    groups = _groups(attention, sparsity, structure, remove_heads)
    gone = sum(part.module.cost * int((~keep).sum()) for part, keep in zip(attention, groups, strict=True))
    left, most = remove - gone, sum(part.most for part in neurons)
    _reachable(left, most, total, sparsity, f"{structure} takes the rest from neurons", gone)
    if structure == "al-mm":
        kept = _adaptive(neurons, left)
    else:
        share = left / sum(part.cost for part in neurons)
        kept = [_best(part, round(len(part.scores) * (1 - share))) for part in neurons]
    found = {id(part): keep for part, keep in zip([*attention, *neurons], [*groups, *kept], strict=True)}
    return [found[id(part)] for part in parts]


def _adaptive(parts: Sequence[Part], remove: float) -> list[Tensor]:
    """The units that stay when all compete and so many weights go."""
    left = sum(part.cost for part in parts) - remove
    return keep_within([part.scores for part in parts], [part.module.cost for part in parts], left)


def _groups(parts: Sequence[Part], sparsity: float, structure: Structure, remove_heads: int) -> list[Tensor]:
    if structure == "ul-um":
        # The released code rounds down and misses the sparsity; here neurons make up for what does not divide.
        return [_best(part, round(len(part.scores) * (1 - sparsity))) for part in parts]
    if not parts:
        return []
    assert isinstance(parts[0].module, Attention)
    units = remove_heads // parts[0].module.queries
    if structure == "ul-mm":
        return [_best(part, len(part.scores) - units // len(parts)) for part in parts]
    return keep_within(
        [part.scores for part in parts], [1] * len(parts), sum(len(part.scores) for part in parts) - units
    )


def _best(part: Part, count: int) -> Bool[Tensor, " unit"]:
    keep = torch.zeros_like(part.scores, dtype=torch.bool)
    keep[part.scores.topk(max(1, min(count, len(keep)))).indices] = True
    return keep


def _reachable(remove: float, most: int, total: int, sparsity: float, why: str, gone: int = 0) -> None:
    if remove > most:
        raise InputError(
            f"a sparsity of {sparsity:g} can't be reached: the largest possible is {(most + gone) / total:.3f}, since "
            f"{why}"
        )


def cut_parts(
    model: nn.Module,
    parts: Sequence[Part],
    keep: Sequence[Bool[Tensor, " unit"]],
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] | None,
    *,
    physical: bool = True,
) -> None:
    """Removes units from a model in place.

    Parameters
    ----------
    model
        The model of which the parts are.
    parts
        Its parts.
    keep
        Which units of each stay.
    bias
        ``bias(weight, mean, pruned)``: what to add to an output map's bias; nothing without it.
    physical
        Whether to make the matrices smaller; else what is removed is set to 0.
    """
    for part, stays in zip(parts, keep, strict=True):
        pruned = ~stays.repeat_interleave(part.module.size)
        added = None if bias is None else bias(matrix(part.module.output).float(), part.mean, pruned)
        (cut if physical else mask_out)(part.module, stays, added)
    if physical:
        settle_config(model)


def shrink_units(
    model: nn.Module,
    windows: Int[Tensor, "window token"],
    score: Score,
    *,
    sparsity: float,
    structure: Structure,
    remove_heads: int = 0,
    bias: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    physical: bool = True,
    batch_size: int | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Scores, chooses and removes: a structured method but for its score. Parameters are those of its steps."""
    changed = model if inplace else copy.deepcopy(model)
    parts, total = measure_parts(changed, windows, score, batch_size)
    keep = choose(parts, total, sparsity, structure, remove_heads)
    cut_parts(changed, parts, keep, bias, physical=physical)
    return changed
