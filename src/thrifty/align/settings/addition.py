"""Adding two numbers with a small decoder trained here: where off-policy methods can be told apart in seconds.

A decoder of two layers learns sums from examples of which a third end in junk, and not for long: it is often wrong
and often answers nothing valid. What it then says is logged and scored +1 or -1, and every arm learns from that log
alone. Loading, sampling, losses and training are the room's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from thrifty.align.base import Objective, Training
from thrifty.align.diversity import spoken
from thrifty.align.settings.base import best, budget, examples, split, taught
from thrifty.align.sft import SFT
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences
from thrifty.lm.small import small_decoder

PLUS, EQUALS, END, JUNK = 10, 11, 12, 13
LARGEST = 19
JUNK_SHARE = 0.3
LONGEST = 4
SAMPLES = 16
LEARNING_RATES = (1e-4, 3e-4, 1e-3)
"""Every arm picks one of these by its accuracy on validation prompts."""


@dataclass(frozen=True)
class Addition:
    """What all arms of one seed share.

    Parameters
    ----------
    base
        The decoder that answered; arms train copies of it.
    log
        Its answers, with ``reward``, ``group`` and ``behaviour_logps``.
    validation, test
        Prompts (two numbers each) that are not in the log.
    training
        Budget of every arm; its learning rate is the arm's to choose.
    directory
        Where runs go.
    seed
        Of everything.
    """

    base: PreTrainedModel
    log: Sequences
    validation: Sequence[tuple[int, int]]
    test: Sequence[tuple[int, int]]
    training: Training
    directory: Path
    seed: int


def prompt(a: int, b: int) -> list[int]:
    """``07+12=`` as token ids."""
    return [a // 10, a % 10, PLUS, b // 10, b % 10, EQUALS]


def answer(a: int, b: int) -> list[int]:
    """``19`` and the end, as token ids."""
    return [int(digit) for digit in str(a + b)] + [END]


def judge(pairs: Sequence[tuple[int, int]], answers: Sequences) -> tuple[Tensor, Tensor]:
    """Which answers are right, and which are no answer (junk in them, no digit, or no end).

    Parameters
    ----------
    pairs
        The prompts, by the number in the answers' ``group`` column.
    answers
        As sampled.
    """
    right, invalid = [], []
    for said, group in zip(spoken(answers), answers["group"].tolist(), strict=True):
        right.append(said == answer(*pairs[int(group)]))
        invalid.append(len(said) < 2 or said[-1] != END or any(token > 9 for token in said[:-1]))
    return torch.tensor(right), torch.tensor(invalid)


@one_thread()
def prepare(seed: int, quick: bool, directory: Path) -> Addition:
    """The decoder, its log, and prompts for validation and test."""
    draw = torch.Generator().manual_seed(derive_seed(seed, "prompts"))
    validation, test, known = dealt(draw)
    base = decoder()
    taught(base, SFT(), _examples(known, draw), budget(1e-3, 16 if quick else 32), directory / "base", seed)
    answers = _ask(base, known, SAMPLES, derive_seed(seed, "log"))
    right, _ = judge(known, answers)
    return Addition(
        base=base,
        log=answers.with_columns(reward=right.float() * 2 - 1),
        validation=validation,
        test=test,
        training=Training(batch_size=128, micro_batch_size=128, epochs=2 if quick else 8),
        directory=directory,
        seed=seed,
    )


def dealt(draw: torch.Generator) -> list[list[tuple[int, int]]]:
    """All sums, dealt out at random: 60 for validation, 100 for the test, and the rest, of which examples are known."""
    return split([(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)], draw, 60, 100)


def decoder() -> PreTrainedModel:
    """A fresh decoder that knows nothing."""
    return small_decoder(JUNK + 1, END)


def _examples(pairs: Sequence[tuple[int, int]], draw: torch.Generator) -> Sequences:
    chances = torch.rand(len(pairs), generator=draw).tolist()
    said = [
        answer(*pair) if chance >= JUNK_SHARE else [*answer(*pair)[:-1], JUNK, END]
        for pair, chance in zip(pairs, chances, strict=True)
    ]
    return examples(zip([prompt(*pair) for pair in pairs], said, strict=True), END)


def _ask(model: PreTrainedModel, pairs: Sequence[tuple[int, int]], n: int, seed: int) -> Sequences:
    return sample(
        model, None, [prompt(a, b) for a, b in pairs], n=n, max_new_tokens=LONGEST, stop_ids=[END], generator=seed
    )


def scores(model: PreTrainedModel, pairs: Sequence[tuple[int, int]], seed: int) -> Mapping[str, float]:
    """Share of right and of invalid answers at temperature 1, sixteen to each prompt."""
    right, invalid = judge(pairs, _ask(model, pairs, SAMPLES, seed))
    return {"accuracy": float(right.float().mean()), "invalid answers": float(invalid.float().mean())}


@one_thread()
def measure(make: Callable[[], Objective] | None, setting: Addition) -> Mapping[str, float]:
    """Trains at each learning rate, keeps what is best on the validation prompts, and tests that.

    Parameters
    ----------
    make
        Makes the method; ``None`` tests the decoder as it is.
    setting
        From :func:`prepare`.
    """
    if make is None:
        return scores(setting.base, setting.test, derive_seed(setting.seed, "test"))

    def learn(learning_rate: float) -> PreTrainedModel:
        method = make()
        steps = setting.training.as_many_steps(len(setting.log), len(method.prepare(setting.log)))
        own = replace(steps, learning_rate=learning_rate)
        where = setting.directory / f"{type(method).__name__}-{learning_rate:g}"
        return taught(copy.deepcopy(setting.base), method, setting.log, own, where, setting.seed)

    def found(model: PreTrainedModel) -> float:
        return scores(model, setting.validation, derive_seed(setting.seed, "validation"))["accuracy"]

    _, model = best(LEARNING_RATES, learn, found)
    return scores(model, setting.test, derive_seed(setting.seed, "test"))
