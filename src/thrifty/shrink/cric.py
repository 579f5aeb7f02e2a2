"""HESSO-CRIC: before anything goes, the removal is simulated, again and again, to find the groups that must stay.

A saliency score is local: a group that looks redundant now may be indispensable once the others have gone. So each
layer is pruned on trial and the loss looked at (the probe); then, in cycles, the groups with the lowest scores fade to
zero while scores are watched, whatever falls among the lowest meanwhile is next, and the weights are put back. Groups
are chosen once, by all scores that were seen, and fade for good in hybrid training.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.shrink.directions import Direction
from thrifty.shrink.group_sparse import Directions
from thrifty.shrink.hesso_optimizer import SaliencySparse, fading
from thrifty.shrink.ranking import lowest
from thrifty.shrink.zero_groups import GroupSet

TRIALS = (0.25, 0.5, 0.75)  # of a layer's groups, removed in the probe


def corrected_saliency(
    score_sum: Float[Tensor, " G"],
    score_count: int,
    ratio_sum: Float[Tensor, " layer"],
    layer: Tensor,
    units: Tensor,
    weight: float,
) -> Float[Tensor, " G"]:
    r"""The mean of all scores seen, and what losing the layer's groups did to the loss:
    :math:`\bar s_g + w\, \bar\rho_\ell / n_\ell`.

    Parameters
    ----------
    score_sum, score_count
        The sum of each group's scores, and how often they were taken.
    ratio_sum
        The sum over the trials of the loss on a layer's trial, divided by the loss before.
    layer, units
        The layer of each group, and how many groups each layer has.
    weight
        w.
    """
    return score_sum / max(score_count, 1) + weight * (ratio_sum / len(TRIALS) / units)[layer]


class HESSOCRIC(SaliencySparse):
    """HESSO with the corrective redundant identification cycle.

    ``step`` takes the loss: ``optimizer.step(loss)``, a closure, or the attribute ``loss`` set before. The batches of
    the probe and the cycles leave nothing behind in the weights; count them (:attr:`cycle_steps`) in the budget.

    Parameters
    ----------
    groups, lr, direction, target, divisible, criteria, cosine_sign, selection
        As for :class:`~thrifty.shrink.hesso_optimizer.SaliencySparse`.
    start_step
        Steps of the plain optimizer before the probe, one of which looks at the loss.
    sampling_steps
        Steps of a cycle.
    hybrid_steps
        Steps in which the chosen groups fade.
    max_cycles
        Cycles at most; none with 0.
    tolerance
        A cycle that would fade no more groups than this is not begun.
    loss_weight
        What the probe counts beside the scores; with 0 there is no probe.
    released
        What the released code does: a cycle's groups are zero at its first step and fade only afterwards; that step is
        along a direction from before the weights were put back; scores are taken of pruned layers too; one cycle fewer
        runs; batch statistics and moments are not put back. Otherwise groups fade evenly, and nothing is left behind.

    Raises
    ------
    InputError
        When ``start_step`` is 0, a number of steps is not positive, or the loss is missing.
    """

    remembered: ClassVar[tuple[str, ...]] = (
        *SaliencySparse.remembered,
        "cycle",
        "decided",
        "violating",
        "history",
        "trial",
        "score_sum",
        "score_count",
        "ratio_sum",
        "reference",
        "cache",
    )

    def __init__(
        self,
        groups: GroupSet,
        lr: float,
        direction: Direction | None = None,
        *,
        start_step: int,
        sampling_steps: int,
        hybrid_steps: int,
        max_cycles: int = 10,
        tolerance: int = 0,
        loss_weight: float = 1.0,
        released: bool = False,
        **settings: Any,
    ) -> None:
        super().__init__(groups, lr, direction, **settings)
        for name, value, least in (
            ("start_step", start_step, 1),
            ("sampling_steps", sampling_steps, 1),
            ("hybrid_steps", hybrid_steps, 1),
            ("max_cycles", max_cycles, 0),
            ("tolerance", tolerance, 0),
        ):
            if value < least:
                raise InputError(f"{name} must be at least {least}, not {value}")
        self.start_step, self.sampling_steps, self.hybrid_steps = start_step, sampling_steps, hybrid_steps
        self.max_cycles, self.tolerance, self.loss_weight = max_cycles, tolerance, loss_weight
        self.released = released
        none = torch.zeros_like(self.zero)
        self.violating, self.history, self.trial = none, none.clone(), none.clone()
        self.cycle, self.decided = 0, -1
        self.score_sum: Tensor = torch.zeros(len(groups), device=groups.layer.device)
        self.score_count, self.reference = 0, 1.0
        self.ratio_sum: Tensor = torch.zeros(len(groups.layers), device=groups.layer.device)
        self.cache: dict[str, Tensor] = {}

    @property
    def probe_steps(self) -> int:
        """Steps of the probe: two for each trial in each layer."""
        return 2 * len(TRIALS) * len(self.groups.layers) if self.loss_weight else 0

    @property
    def cycle_steps(self) -> int:
        """Steps whose effect on the weights is undone, at most."""
        cycles = max(self.max_cycles - 1, 0) if self.released else self.max_cycles
        return self.probe_steps + cycles * self.sampling_steps + self.released

    def update(self, directions: Directions, loss: Any) -> None:
        """One step of warm-up, of the probe, of a cycle, of hybrid training, or of the training that follows."""
        if self.steps < self.start_step:
            self.plain(directions)
            return
        if self.steps == self.start_step:
            self.reference = max(self._value(loss), 1e-8)
            self._remember()
        at = self.steps - self.start_step
        if self.decided >= 0:
            step = self.steps - self.decided - 1
            if step < self.hybrid_steps:
                self.hybrid(directions, step, self.hybrid_steps)
            else:
                self.plain(directions)
        elif at < self.probe_steps:
            self._probe(directions, at, loss)
            if at == self.probe_steps - 1 and self.max_cycles == 0 and not self.released:
                self._decide()
        elif self.released:
            self._released_cycle_step(directions, at - self.probe_steps)
        elif self.max_cycles == 0:
            self._record(directions)
            self._decide()
        else:
            self._cycle_step(directions, (at - self.probe_steps) % self.sampling_steps)

    def _value(self, loss: Any) -> float:
        found = self.loss if loss is None else loss
        if found is None:
            raise InputError("HESSO-CRIC compares losses: give it the loss of each step, optimizer.step(loss)")
        return float(found)

    def _record(self, directions: Directions) -> Float[Tensor, " G"]:
        scores = self.scores(directions)
        self.score_sum += scores
        self.score_count += 1
        return scores

    def _probe(self, directions: Directions, at: int, loss: Any) -> None:
        trial, looks = divmod(at, 2)
        layer, place = divmod(trial, len(TRIALS))
        if looks:
            if self.released:
                self._record(directions)
            self.ratio_sum[layer] += self._value(loss) / self.reference
            self._restore()
            return
        scores = self._record(directions)
        here = self.groups.layer == layer
        count = max(int(int(self.groups.units[layer]) * TRIALS[place]), 1)
        self.groups.zero_(lowest(scores.masked_fill(~here, torch.inf), count))

    def _cycle_step(self, directions: Directions, step: int) -> None:
        below = lowest(self._record(directions), self.wanted)
        if self.cycle == 0 and step == 0:
            self._begin(below)
        self.trial = (self.trial | below) & ~self.history
        self._fade(directions, step)
        if step == self.sampling_steps - 1:
            self.cycle += 1
            self._begin(self.trial)
            self._restore()
            if self.cycle >= self.max_cycles or int(self.violating.sum()) <= self.tolerance:
                self._decide()

    def _released_cycle_step(self, directions: Directions, step: int) -> None:
        below = lowest(self._record(directions), self.wanted)
        if step % self.sampling_steps == 0:
            self.cycle += 1
            self._begin(below if self.cycle == 1 else self.trial)
            self._restore()
        self.trial = (self.trial | below) & ~self.history
        self._fade(directions, (step - 1) % self.sampling_steps)
        if self.cycle >= self.max_cycles or int(self.violating.sum()) <= self.tolerance:
            self._decide()

    def _begin(self, violating: Tensor) -> None:
        """The groups that fade in the next cycle: those found in the last one that never faded before."""
        self.violating = violating & ~self.history
        self.history = self.history | self.violating
        self.trial = torch.zeros_like(self.trial)

    def _fade(self, directions: Directions, step: int) -> None:
        # What is in no group stands still in a cycle.
        self.move(directions, only=self.groups.members)
        factor = fading(step, self.sampling_steps)
        self.groups.scale_(torch.where(self.violating, factor, 1.0).to(self.groups.sizes))

    def _decide(self) -> None:
        saliency = corrected_saliency(
            self.score_sum,
            self.score_count,
            self.ratio_sum,
            self.groups.layer,
            self.groups.units,
            self.loss_weight,
        )
        self.redundant = self.choose(saliency, self.wanted)
        self._restore()
        self.cache, self.decided = {}, self.steps

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        """What a cycle changes."""
        yield from ((f"parameter {name}", parameter.data) for name, parameter in self.groups.parameters.items())
        if self.released:
            return
        yield from ((f"buffer {name}", buffer) for name, buffer in self.groups.model.named_buffers())
        for name, parameter in zip(self._names, self.param_groups[0]["params"], strict=True):
            for key, value in self.state[parameter].items():
                if isinstance(value, Tensor):
                    yield f"{key} {name}", value

    def _remember(self) -> None:
        self.cache = {name: value.clone() for name, value in self._held()}

    def _restore(self) -> None:
        for name, value in self._held():
            if name in self.cache:
                value.copy_(self.cache[name])
