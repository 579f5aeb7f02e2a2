"""Neuron Adjust: where a neuron's value looks like the skill to forget, it is moved to what the other skills show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.forget.interventions import Intervention
from thrifty.forget.neurons import Moments
from thrifty.lm.feed_forward import FeedForward, feed_forwards

_LEAST_STD = 1e-6


def top_percent(scores: Float[Tensor, " neuron"], percent: float) -> Bool[Tensor, " neuron"]:
    r"""The neurons of the largest scores: at least the score at place :math:`\lfloor N (1 - q/100) \rfloor` from below.

    Parameters
    ----------
    scores
        Of the neurons of all layers.
    percent
        q, above 0 and at most 100. Scores equal to the threshold are all taken.
    """
    place = min(int(len(scores) * (1 - percent / 100)), len(scores) - 1)
    return scores >= scores.sort().values[place]


def log_density(
    x: Float[Tensor, "*token neuron"], mean: Float[Tensor, " neuron"], std: Float[Tensor, " neuron"]
) -> Float[Tensor, "*token neuron"]:
    r"""Logarithm of :math:`N(x; \mu, \sigma)`; where the density itself underflows, it still can be compared."""
    return -0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)


def adjust(
    x: Float[Tensor, "*token neuron"],
    forget_mean: Float[Tensor, " neuron"],
    forget_std: Float[Tensor, " neuron"],
    retain_mean: Float[Tensor, " neuron"],
    retain_std: Float[Tensor, " neuron"],
    uniform: Float[Tensor, "*token neuron"],
) -> Float[Tensor, "*token neuron"]:
    r"""Moves values that look like the skill to forget, with the probability that they are of it.

    .. math::
        x \leftarrow \mu_r - (x - \mu_f) \frac{\sigma_r}{\sigma_f} \quad \text{where } p_f(x) \ge p_r(x)
        \text{ and } U \ge \frac{p_r(x)}{p_r(x) + p_f(x)}

    that is, from the distribution of the skill to that of the others, then mirrored about its mean.

    Parameters
    ----------
    x
        Pre-activations of the selected neurons, float32.
    forget_mean, forget_std, retain_mean, retain_std
        Of each neuron on the texts to forget and to retain; the deviations above 0.
    uniform
        U, drawn from [0, 1).
    """
    evidence = log_density(x, forget_mean, forget_std) - log_density(x, retain_mean, retain_std)
    changes = (evidence >= 0) & (uniform >= torch.sigmoid(-evidence))
    return torch.where(changes, retain_mean - (x - forget_mean) / forget_std * retain_std, x)


@dataclass(frozen=True, eq=False)
class Adjusted:
    """The selected neurons of one layer.

    Parameters
    ----------
    layer, neurons
        Its number, and how many neurons it has in all.
    selected
        Their numbers, [N].
    statistics
        Mean and deviation on the texts to forget, then on those to retain, float32, [4, N].
    """

    layer: int
    neurons: int
    selected: Int[Tensor, " selected"]
    statistics: Float[Tensor, "four selected"]


@dataclass(frozen=True, eq=False)
class NeuronAdjust(Intervention):
    """The intervention on a model: hooks on the maps whose outputs the pre-activations are.

    Parameters
    ----------
    layers
        Those with selected neurons.
    seed
        Of the draws.
    released
        As the released code draws: one number for all neurons and tokens of a forward pass.
    """

    layers: tuple[Adjusted, ...]
    seed: int = 0
    released: bool = False
    _draws: dict[str, torch.Generator] = field(default_factory=dict, init=False, repr=False)

    kind: ClassVar[str] = "neuron-adjust"

    @property
    def selected(self) -> int:
        """How many neurons are adjusted."""
        return sum(len(layer.selected) for layer in self.layers)

    def hook(self, model: nn.Module) -> Sequence[RemovableHandle]:
        """See :meth:`Intervention.hook`."""
        there = feed_forwards(model)
        for adjusted in self.layers:
            has = there[adjusted.layer].neurons if adjusted.layer < len(there) else 0
            if has != adjusted.neurons:
                raise InputError(
                    f"the intervention was made for another model: layer {adjusted.layer} has {has} neurons, not "
                    f"{adjusted.neurons}"
                )
        return [
            there[adjusted.layer].before.register_forward_hook(_Hook(self, adjusted, there[adjusted.layer]))
            for adjusted in self.layers
        ]

    def uniform(self, like: Tensor) -> Tensor:
        """Random numbers for some values, from a stream of their own: a user's seeds draw what they would without."""
        device = str(like.device)
        if device not in self._draws:
            self._draws[device] = generator(self.seed, "adjust", device=like.device)
        shape = (1,) * like.ndim if self.released else like.shape
        return torch.rand(shape, generator=self._draws[device], device=like.device)

    def tree(self) -> dict[str, Any]:
        """See :meth:`Intervention.tree`."""
        return {"layers": [vars(layer) for layer in self.layers], "seed": self.seed, "released": self.released}

    @classmethod
    def of_tree(cls, tree: dict[str, Any]) -> Self:
        """See :meth:`Intervention.of_tree`."""
        return cls(**{**tree, "layers": tuple(Adjusted(**layer) for layer in tree["layers"])})


class _Hook:
    """Adjusts the outputs of one map; statistics follow the model to its device."""

    def __init__(self, intervention: NeuronAdjust, adjusted: Adjusted, layer: FeedForward) -> None:
        self.intervention, self.layer = intervention, layer.layer
        self.selected, self.statistics = adjusted.selected, adjusted.statistics

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor:
        if self.selected.device != output.device:
            self.selected, self.statistics = self.selected.to(output.device), self.statistics.to(output.device)
        x = output.index_select(-1, self.selected).float()
        forget_mean, forget_std, retain_mean, retain_std = self.statistics.unbind()
        moved = adjust(x, forget_mean, forget_std, retain_mean, retain_std, self.intervention.uniform(x))
        return output.index_copy(-1, self.selected, moved.to(output.dtype))


def fit_neuron_adjust(
    skill: Sequence[Moments],
    others: Sequence[Moments],
    *,
    percent: float = 0.5,
    absolute: bool = False,
    released: bool = False,
    seed: int = 0,
    among: torch.Generator | None = None,
) -> NeuronAdjust:
    """Selects the neurons that differ most between two kinds of text.

    Parameters
    ----------
    skill, others
        Of each layer, the statistics of its pre-activations on texts of the skill to forget and on others
        (:func:`thrifty.forget.neurons.moments`).
    percent
        Share of all neurons that are adjusted, in percent.
    absolute
        Select by the magnitude of the difference of means; otherwise by how far the skill's mean lies above.
    released
        The released code's forms: the variance for the deviation, the mean of the skill for its own deviation (neurons
        whose mean is negative then never change), and one random number for a whole forward pass.
    seed
        Of the draws.
    among
        Select as many neurons at random with this generator instead: the control.
    """
    scores = torch.cat([mine.mean - theirs.mean for mine, theirs in zip(skill, others, strict=True)])
    if among is not None:
        scores = torch.rand(len(scores), generator=among).to(scores.device)
    chosen = top_percent(scores.abs() if absolute else scores, percent).split([len(one.mean) for one in skill])
    layers = []
    for number, (mine, theirs, mask) in enumerate(zip(skill, others, chosen, strict=True)):
        deviations = (mine.mean, theirs.variance) if released else (mine.std, theirs.std)
        if released:  # a negative deviation makes a negative density, which every other exceeds
            mask = mask & (mine.mean > 0)
        selected = mask.nonzero()[:, 0]
        if len(selected):
            mine_std, theirs_std = (deviation.clamp(min=_LEAST_STD) for deviation in deviations)
            statistics = torch.stack([mine.mean, mine_std, theirs.mean, theirs_std])[:, selected]
            layers.append(Adjusted(number, len(mask), selected, statistics))
    return NeuronAdjust(tuple(layers), seed, released)
