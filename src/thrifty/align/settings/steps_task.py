"""Chains of sums with a small decoder trained here, and step scores that can be farmed.

A prompt is a digit and some more to add to it, modulo five. An answer says the running sums one after the other, each
ended by a separator, and then the last one as the answer. The decoder learns this from examples with wrong steps and
with fillers, steps that say the last sum again; it then samples answers and learns from their scores. A rule in the
place of a process reward model scores each step: well as long as all is right so far, badly after a mistake, and a
filler by a number that may be above 0, as such models score steps that say nothing wrong. So a policy can win points
by steps without end. A verifier sees the final answer alone. Sampling, credit, losses and training are the room's own.

Digits are tokens of their own at every place of the chain ("the third sum is 4"), so that a small decoder learns the
sums in seconds.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.align.asking import Record, Sampling
from thrifty.align.base import Objective, Training
from thrifty.align.diversity import spoken
from thrifty.align.process_worth import ProcessWorth
from thrifty.align.settings.base import best, budget, examples, taught
from thrifty.align.settings.sum_chains import (
    ANSWER,
    BASE,
    END,
    FIRST_SUM,
    LONGEST,
    SEPARATOR,
    TERMS,
    VOCABULARY,
    Rule,
    prompt_of,
    running_sums,
    step_ends,
    verify,
)
from thrifty.align.sft import SFT
from thrifty.core.seeding import derive_seed, generator
from thrifty.core.threads import one_thread
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences
from thrifty.lm.small import small_decoder
from thrifty.reward.steps import StepRewards

LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3)
"""Every arm picks one of these by what it solves of the validation prompts."""
WRONG, FILLING = 0.2, 0.15
"""In the examples, the chance that a step is wrong, and that it is said once more."""


@dataclass(frozen=True)
class Chains:
    """What all arms of one seed share.

    Parameters
    ----------
    base
        The decoder before reinforcement learning; arms train copies of it.
    prompts, validation, test
        Prompts of which no two are alike.
    sampling
        How answers are sampled in training.
    training
        Budget of every arm; the learning rate is the arm's.
    directory
        Where runs go.
    seed
        Of everything.
    """

    base: PreTrainedModel
    prompts: Sequence[list[int]]
    validation: Sequence[list[int]]
    test: Sequence[list[int]]
    sampling: Sampling
    training: Training
    directory: Path
    seed: int


@one_thread()
def prepare(seed: int, quick: bool, directory: Path, updates: int = 60) -> Chains:
    """The decoder and the prompts of one seed.

    Parameters
    ----------
    seed
        Of everything.
    quick
        Learn for a few steps only.
    directory
        Where runs go.
    updates
        Of each arm.
    """
    draw = generator(seed, "chains of sums")
    known, prompts, validation, test = _prompts(draw, [2048, 512, 64, 128])
    # Of transformers' spread, 0.02, so small a model stays at chance for long.
    base = small_decoder(VOCABULARY, END, spread=0.1)
    taught(base, SFT(), _examples(known, draw), budget(4e-3, 2 if quick else 10), directory / "base", seed)
    sampling = Sampling(samples=8, prompts_per_rollout=16, max_new_tokens=LONGEST)
    steps = 4 if quick else updates
    return Chains(
        base=base,
        prompts=prompts,
        validation=validation,
        test=test,
        sampling=sampling,
        training=Training(micro_batch_size=128, epochs=steps * sampling.prompts_per_rollout / len(prompts)),
        directory=directory,
        seed=seed,
    )


def _prompts(draw: torch.Generator, sizes: Sequence[int]) -> list[list[list[int]]]:
    seen: dict[tuple[int, ...], None] = {}
    while len(seen) < sum(sizes):
        seen[tuple(prompt_of(torch.randint(BASE, (TERMS + 1,), generator=draw).tolist()))] = None
    everything = iter(seen)
    return [[list(next(everything)) for _ in range(size)] for size in sizes]


def _examples(prompts: Sequence[list[int]], draw: torch.Generator) -> Sequences:
    pairs = []
    for prompt in prompts:
        said: list[int] = []
        error = 0  # what slips so far have added: later sums follow from wrong ones
        for place, right in enumerate(running_sums(prompt), start=1):
            if float(torch.rand((), generator=draw)) < WRONG:
                error += int(torch.randint(1, BASE, (), generator=draw))
            first = FIRST_SUM + BASE * place
            step = [first + (right - first + error) % BASE, SEPARATOR]
            said += step
            while float(torch.rand((), generator=draw)) < FILLING:
                said += step
        pairs.append((prompt, [*said, ANSWER, said[-2], END]))
    return examples(pairs, END)


def records(prompts: Sequence[list[int]], share: float = 1.0) -> list[Record]:
    """Prompts as records; the first ``share`` of them have an answer to verify."""
    known = round(share * len(prompts))
    return [
        {"prompt": prompt} | ({"answer": str(running_sums(prompt)[-1])} if number < known else {})
        for number, prompt in enumerate(prompts)
    ]


def scores(model: PreTrainedModel, prompts: Sequence[list[int]], seed: int) -> dict[str, float]:
    """Share of right answers at temperature 1, eight to each prompt, and how many steps they take."""
    answers = sample(model, None, prompts, n=8, max_new_tokens=LONGEST, generator=seed)
    asked = [prompts[number] for number in answers["group"].tolist()]
    ids = spoken(answers)
    counts = torch.tensor([len(step_ends(said)) for said in ids]).float()
    cut_off = ~answers["finished"].bool()
    return {
        "solve rate": sum(verify(asked, ids)) / len(ids),
        "steps": float(counts.mean()),
        "cut off": float(cut_off.float().mean()),
    }


def learnt(
    method: Objective, worth: ProcessWorth, setting: Chains, learning_rate: float, share: float = 1.0
) -> PreTrainedModel:
    """A copy of the decoder after an arm's budget.

    Parameters
    ----------
    method
        Objective of the arm.
    worth
        What its answers are worth.
    setting
        From :func:`prepare`.
    learning_rate
        Of the arm.
    share
        Of the prompts that have an answer to verify.
    """
    model = copy.deepcopy(setting.base)
    own = replace(setting.training, learning_rate=learning_rate)
    name = f"arm-{zlib.crc32(repr((method, learning_rate, share)).encode()):x}"
    return taught(
        model, method, records(setting.prompts, share), own, setting.directory / name, setting.seed, reward=worth,
        sampling=setting.sampling,
    )  # fmt: skip


@one_thread()
def measure(
    method: Objective, worth: Callable[[Chains], ProcessWorth], setting: Chains, share: float = 1.0
) -> Mapping[str, float]:
    """Trains at each learning rate, keeps what solves most validation prompts, and tests that.

    Parameters
    ----------
    method
        Objective of the arm.
    worth
        Makes the worth of answers for a seed.
    setting
        From :func:`prepare`.
    share
        Of the prompts that have an answer to verify.
    """

    def learn(learning_rate: float) -> PreTrainedModel:
        return learnt(method, worth(setting), setting, learning_rate, share)

    def found(model: PreTrainedModel) -> float:
        return scores(model, setting.validation, derive_seed(setting.seed, "validation"))["solve rate"]

    rate, model = best(LEARNING_RATES, learn, found)
    return scores(model, setting.test, derive_seed(setting.seed, "test")) | {"learning rate": rate}


@one_thread()
def untrained(setting: Chains) -> Mapping[str, float]:
    """What the decoder solves before reinforcement learning."""
    return scores(setting.base, setting.test, derive_seed(setting.seed, "test"))


@one_thread()
def scored_answers(setting: Chains, rule: Rule) -> tuple[StepRewards, Tensor]:
    """The decoder's own answers before training, four to each of 128 prompts: their step scores, and which are right.

    Parameters
    ----------
    setting
        From :func:`prepare`.
    rule
        Scores steps.
    """
    asked = setting.prompts[:128]
    seed = derive_seed(setting.seed, "before")
    answers = sample(setting.base, None, asked, n=4, max_new_tokens=LONGEST, generator=seed)
    prompts = [asked[number] for number in answers["group"].tolist()]
    ids = spoken(answers)
    steps = rule.steps(prompts, [""] * len(ids), completion_ids=ids)
    return steps, torch.tensor(verify(prompts, ids))
