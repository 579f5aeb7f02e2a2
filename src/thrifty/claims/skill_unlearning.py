"""Hooks that know a skill's activations switch it off without training, and leave other skills as they were."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from thrifty.claims.harness import Claim, Condition
from thrifty.forget.interventions import Intervention, intervened
from thrifty.forget.key_space import fit_key_space
from thrifty.forget.neuron_adjust import fit_neuron_adjust
from thrifty.forget.neurons import Moments, moments, sequences_of
from thrifty.forget.selective_pruning import prune
from thrifty.forget.skills import METRICS, SkillProblem, merit, problem, scores

# Three settings for each arm, chosen among on validation texts by the same rule (see merit).
_SCALES = (0.75, 1.0, 1.5)
_PERCENTS = (0.5, 3.0, 10.0)
_PRUNED = (0.05, 0.5, 3.0)

Both = tuple[list[Moments], list[Moments]]


@dataclass(frozen=True, eq=False)
class _Probed:
    """The problem, with the neurons' statistics on the skill and on text, which do not depend on an arm's setting."""

    skills: SkillProblem
    forget: Both
    retain: Both


def _prepare(seed: int, quick: bool, directory: Path) -> _Probed:
    found = problem(seed, quick, directory)
    forget, retain = (
        moments(found.model, sequences_of(found.texts.sets[f"{name}_set"], f"{name} set"), "text")
        for name in ("forget", "retain")
    )
    return _Probed(found, forget, retain)


@contextmanager
def _as_it_is(probed: _Probed, candidate: Intervention | float) -> Iterator[nn.Module]:
    """The model with an intervention, or pruned by so many percent."""
    if isinstance(candidate, Intervention):
        with intervened(probed.skills.model, candidate) as model:
            yield model
    else:
        yield prune(copy.deepcopy(probed.skills.model), probed.forget[1], probed.retain[1], candidate)


def _best(probed: _Probed, candidates: Sequence[Intervention | float]) -> Mapping[str, float]:
    def held_out(candidate: Intervention | float) -> float:
        with _as_it_is(probed, candidate) as model:
            return merit(model, probed.skills)

    chosen: Intervention | float = max(candidates, key=held_out)
    with _as_it_is(probed, chosen) as model:
        return scores(probed.skills, model)


def _key_space(probed: _Probed) -> Mapping[str, float]:
    skill = sequences_of(probed.skills.texts.sets["forget_set"], "forget set")
    detector = fit_key_space(probed.skills.model, skill, scale=1.0)
    return _best(probed, [dataclasses.replace(detector, scale=scale) for scale in _SCALES])


def _adjust(probed: _Probed, at_random: bool = False) -> Mapping[str, float]:
    def candidate(percent: float) -> Intervention:
        among = torch.Generator().manual_seed(probed.skills.seed) if at_random else None
        return fit_neuron_adjust(probed.forget[0], probed.retain[0], percent=percent, among=among)

    return _best(probed, [candidate(percent) for percent in _PERCENTS])


CLAIM = Claim(
    paper_id="skill-unlearning",
    says=(
        "Without training, Key Space Detection takes more than 80% of a skill from a language model at a relative drop "
        "of less than 10% elsewhere, and Neuron Adjust harms the skill far more than it harms other text."
    ),
    setting=(
        "SmolLM2-135M-Instruct forgets sums of one-digit numbers (two examples before each question, 40 test "
        "questions, sampled greedily); 80 probing texts of the skill and 80 of news. What must stay: continuing news, "
        "and repeating headlines, of which no method is told. Each arm chooses one of three settings on 20 validation "
        "texts: scale 0.75, 1 or 1.5; 0.5, 3 or 10% of the neurons to adjust; 0.05, 0.5 or 3% of them to prune. "
        "nll_gap is the logarithm of how many times more the perplexity of the skill grows than that of news."
    ),
    prepare=_prepare,
    arms={
        "key space detection": _key_space,
        "neuron adjust": _adjust,
        "random neurons": lambda probed: _adjust(probed, at_random=True),
        "selective pruning": lambda probed: _best(probed, _PRUNED),
        "original": lambda probed: scores(probed.skills, probed.skills.model),
    },
    metrics=METRICS,
    conditions=[
        Condition("skill_drop", "key space detection", 0.8),
        Condition("retain_drop", "key space detection", 0.1, less=True),
        Condition("nll_gap", "neuron adjust", 0.69),
        Condition("nll_gap", "neuron adjust", "random neurons"),
    ],
)
