"""Of a log that is mostly bad, A-LoL learns what beats the reference, where likelihood learns all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from thrifty.align.a_lol import ALoL
from thrifty.align.base import Training
from thrifty.align.leftover import Variant
from thrifty.align.reference import with_reference_logps
from thrifty.align.settings.addition import END, LONGEST, Addition, answer, dealt, decoder, measure, prompt
from thrifty.align.settings.base import budget, cpu_run, examples
from thrifty.align.sft import SFT
from thrifty.align.training import train
from thrifty.align.validation import Validation
from thrifty.align.values import ValueSettings, with_values
from thrifty.claims.harness import Claim, Condition
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.lm.sequences import Sequences

ANSWERS, EXPERTS = 20, 2
"""Logged answers to each sum, and how many of them an expert gave."""
RIGHT, OFTEN_RIGHT = 0.3, 0.9
"""How often the others are right, and the expert; else they give the difference of the two numbers."""
NOISE = 0.1
"""Standard deviation of the reward, around 0.9 for a right answer and 0.1 for another."""


@one_thread()
def prepare(seed: int, quick: bool, directory: Path) -> Addition:
    """The log; the decoder that was fine-tuned on it, which is the reference; and values from its own answers."""
    draw = torch.Generator().manual_seed(derive_seed(seed, "mixed log"))
    validation, test, known = dealt(draw)
    log = _log(known, draw)
    reference = decoder()
    with cpu_run(directory / "base", seed) as run:
        train(reference, SFT(threshold=-1.0), log, run, budget(1e-3, 2 if quick else 8, 128), save_every=None)
        records = [{"prompt": prompt(a, b), "sum_of": (a, b)} for a, b in validation]
        scored = Validation(records, partial(_noisy, draw=draw))
        settings = ValueSettings(epochs=40, max_value=1.0, min_value=0.0)
        log, _ = with_values(reference, None, log, scored, run, settings, max_new_tokens=LONGEST)
        log = with_reference_logps(reference, log, run.device)
    return Addition(
        base=reference,
        log=log,
        validation=validation,
        test=test,
        training=Training(batch_size=128, micro_batch_size=128, epochs=0.5 if quick else 3),
        directory=directory,
        seed=seed,
    )


def _log(known: Sequence[tuple[int, int]], draw: torch.Generator) -> Sequences:
    pairs, rewards, groups = [], [], []
    for group, (a, b) in enumerate(known):
        for number in range(ANSWERS):
            often = OFTEN_RIGHT if number < EXPERTS else RIGHT
            right = float(torch.rand((), generator=draw)) < often
            said = answer(a, b) if right else answer(abs(a - b), 0)
            pairs.append((prompt(a, b), said))
            rewards.append(_reward(said == answer(a, b), draw))
            groups.append(group)
    return examples(pairs, END, reward=rewards, group=groups)


def _reward(right: bool, draw: torch.Generator) -> float:
    noisy = 0.8 * right + 0.1 + NOISE * float(torch.randn((), generator=draw))
    return min(1.0, max(0.0, noisy))


def _noisy(
    completion_ids: Sequence[Sequence[int]], sum_of: Sequence[tuple[int, int]], *, draw: torch.Generator
) -> list[float]:
    pairs = zip(completion_ids, sum_of, strict=True)
    return [_reward(list(said) == answer(*pair), draw) for said, pair in pairs]


def _method(variant: Variant, **others: str) -> Callable[[], ALoL]:
    return lambda: replace(ALoL(variant=variant, order="shuffle"), **others)  # type: ignore[arg-type]


CLAIM = Claim(
    paper_id="a-lol",
    says=(
        "Trained on a log of mixed quality, A-LoL is ahead of fine-tuning, of weighting by the reward, and of the same "
        "loss without the ratio to the reference"
    ),
    setting=(
        "A two-layer decoder fine-tuned here on 4800 logged sums, 20 answers to each of 240: two from an expert (90% "
        "right), the rest 30% right, else the difference of the numbers; noisy rewards. It is the reference; its value "
        "is learnt from one answer to each of 60 validation sums. Every arm goes on from it for as many steps (3 "
        "epochs of the log, batches of 128) at the best of three learning rates on the validation sums; tested on 100 "
        "others, 16 answers each at temperature 1"
    ),
    prepare=prepare,
    arms={
        "a-lol": partial(measure, _method("a_lol")),
        "a-lol, priority": partial(measure, _method("a_lol", order="priority")),
        "a-lol, reference-free": partial(measure, _method("a_lol_ref_free")),
        "a-lol seq.": partial(measure, _method("a_lol_seq")),
        "R-LoL": partial(measure, _method("r_lol")),
        "weighted by reward": partial(measure, _method("wbc")),
        "fine-tuning": partial(measure, _method("nll")),
        "reference": partial(measure, None),
    },
    metrics=("accuracy", "-invalid answers"),
    conditions=(
        Condition("accuracy", "a-lol", "fine-tuning"),
        Condition("accuracy", "a-lol", "weighted by reward"),
        Condition("accuracy", "a-lol", "a-lol, reference-free"),
        Condition("accuracy", "a-lol", "reference"),
    ),
    seeds=4,
)
