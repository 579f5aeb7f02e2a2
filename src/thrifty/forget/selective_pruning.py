"""Selective pruning: neurons that fire more on the skill to forget than on other texts are cut off."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.forget.neuron_adjust import top_percent
from thrifty.forget.neurons import Moments, Probe, moments, sequences_of
from thrifty.lm.feed_forward import feed_forwards

_LEAST = 1e-8


def importance(
    forget: Float[Tensor, " neuron"], retain: Float[Tensor, " neuron"], least: float = _LEAST
) -> Float[Tensor, " neuron"]:
    r"""How much more a neuron fires on the skill, :math:`E_f|a_j| / (E_r|a_j| + \epsilon)`.

    Parameters
    ----------
    forget, retain
        Mean magnitude of the activations on the texts of the skill and on others.
    least
        Epsilon.
    """
    return forget / (retain + least)


@dataclass(frozen=True)
class SelectivePruning:
    """What skill unlearning is compared with: neurons of the largest importance are set to 0 for good.

    Their columns of the feed-forward layers' last maps become 0, so nothing but weights changes.

    Parameters
    ----------
    percent
        Of all neurons, the share that is pruned, in percent.
    probe
        Which tokens count.
    probes
        Texts of each set that are looked at, at most.
    batch_size
        Texts read at once.
    draw
        Seed of the choice of texts.

    References
    ----------
    Pochinkov and Schoots, Dissecting Language Models: Machine Unlearning via Selective Pruning, arXiv 2403.01267.
    """

    percent: float = 0.5
    probe: Probe = "text"
    probes: int = 200
    batch_size: int = 16
    draw: int = 0

    needs: ClassVar[tuple[str, ...]] = ("forget_set", "retain_set")
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.percent <= 100:
            raise InputError(f"percent must be above 0 and at most 100, not {self.percent:g}")

    def forget(self, model: nn.Module, forget_set: Any, retain_set: Any) -> nn.Module:
        """A pruned copy of a causal language model; what it raises is as for ``SkillUnlearning``."""
        skill, others = (
            moments(
                model,
                sequences_of(data, name, self.probes, self.draw),
                self.probe,
                batch_size=self.batch_size,
            )[1]
            for data, name in ((forget_set, "forget set"), (retain_set, "retain set"))
        )
        return prune(copy.deepcopy(model).eval(), skill, others, self.percent)


@torch.no_grad()
def prune(model: nn.Module, skill: Iterable[Moments], others: Iterable[Moments], percent: float) -> nn.Module:
    """Prunes a model in place.

    Parameters
    ----------
    model
        A causal language model.
    skill, others
        Of each layer, the statistics of its activations on texts of the skill and on others
        (:func:`thrifty.forget.neurons.moments`).
    percent
        Of all neurons, the share that is pruned, in percent.
    """
    scores = [importance(mine.magnitude, theirs.magnitude) for mine, theirs in zip(skill, others, strict=True)]
    chosen = top_percent(torch.cat(scores), percent).split([len(score) for score in scores])
    for layer, mask in zip(feed_forwards(model), chosen, strict=True):
        weight = layer.output.weight
        assert isinstance(weight, Tensor)
        # GPT-2 keeps its weights as [in, out].
        (weight if isinstance(layer.output, nn.Linear) else weight.t())[:, mask] = 0
    return model
