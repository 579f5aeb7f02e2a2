"""Chains of sums with a small decoder trained here: Light-R1's curriculum, pairs and reinforcement in a minute.

A teacher writes the partial results of chains of one to six operations and slips now and then, so that long chains are
hard for it. A weak decoder (one pass over everything) finds the easy ones. Training and sampling are the room's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from thrifty.align.asking import Asker, Record, Sampling
from thrifty.align.base import Training
from thrifty.align.dpo import DPO
from thrifty.align.job import as_record
from thrifty.align.light_r1 import LightR1
from thrifty.align.light_r1_data import Curriculum, curriculum, rates, semi_on_policy_pairs, verified
from thrifty.align.light_r1_stages import grpo
from thrifty.align.settings.base import best, budget, taught
from thrifty.align.sft import SFT
from thrifty.core.errors import RunError
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.data.chains import Chains, operations
from thrifty.data.tasks import Problem
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.records import from_records
from thrifty.lm.sequences import Sequences
from thrifty.lm.small import character_tokenizer, decoder_for
from thrifty.reward.lengths import cosine_length
from thrifty.reward.verifiers import task_reward
from thrifty.select.rank import difficulty_band

CHAINS = Chains(least=1, most=6, largest=4, style="short")
HARD = 5
"""Operations from which on a held-out chain counts as hard."""
LONGEST, SLIPS, TEACHER_SAMPLES = 24, 0.06, 4
FIRST, SECOND, PREFERENCE, REINFORCEMENT = 400, 100, 60, 100
"""Optimizer steps of the stages, the same whatever the data are."""
PROMPTS = 64
"""In a rollout, with eight answers each: from 16, what the updates are made of is mostly noise."""
RATES = (1e-3, 3e-3)
PREFERENCE_RATES = (1e-4, 3e-4)
METHOD = LightR1()
"""The recipe at its defaults."""
Band = Literal["band", "all"]


@dataclass(frozen=True, eq=False)
class School:
    """What all arms of one seed share.

    Parameters
    ----------
    tokenizer
        Of the decoders.
    weak
        The decoder that found the easy questions, from which all training starts.
    data
        Questions with the teacher's answers, filtered.
    second
        The decoder after both supervised stages.
    pairs
        Its own wrong answers against the teacher's right ones.
    development, unseen
        Hard problems.
    directory, seed, quick
        Of the measurement.
    """

    tokenizer: Any
    weak: Any
    data: Curriculum
    second: Any
    pairs: Sequences
    development: Sequence[Record]
    unseen: Sequence[Record]
    directory: Path
    seed: int
    quick: bool


reward = task_reward(CHAINS)


def _asked(model: Any, tokenizer: Any, rows: Sequence[Record], samples: int, seed: int) -> Sequences:
    return Asker(model, tokenizer, reward, Sampling(samples=samples, max_new_tokens=LONGEST)).ask(rows, seed)


def _answers(model: Any, tokenizer: Any, rows: Sequence[Record], samples: int, seed: int) -> list[list[str]]:
    answers = _asked(model, tokenizer, rows, samples, seed)
    texts = answers.texts(tokenizer)
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


@one_thread()
def prepare(seed: int, quick: bool, directory: Path) -> School:
    """The weak decoder, the filtered questions, the decoder after the curriculum, and its pairs."""
    tokenizer, many = character_tokenizer("0123456789+-=,"), 300 if quick else 3000
    problems = CHAINS.problems(many, derive_seed(seed, "questions"))
    draw = np.random.default_rng(derive_seed(seed, "teacher"))
    answers = [[CHAINS.solution(problem, SLIPS, draw) for _ in range(TEACHER_SAMPLES)] for problem in problems]
    questions = [as_record(problem) for problem in problems]
    weak = decoder_for(tokenizer)
    everything = [{**row, "completion": said[0]} for row, said in zip(questions, answers, strict=True)]
    data = from_records(everything, tokenizer)
    taught(weak, SFT(), data, _budget(2e-3, 10 if quick else 150, len(data)), directory / "weak", seed)
    own = verified(questions, _answers(weak, tokenizer, questions, 4, derive_seed(seed, "weak")), reward)
    found = curriculum(
        questions, rates(own), answers, verified(questions, answers, reward), weak_rate=METHOD.weak_rate,
        teacher_rate=METHOD.teacher_rate, seed=seed,
    )  # fmt: skip
    if not found.second:
        raise RunError("no chain is hard for the teacher: there is no second stage")
    held_out = [p for p in CHAINS.problems(100 if quick else 900, derive_seed(seed, "test"), "test") if is_hard(p)]
    hard = [as_record(problem) for problem in held_out]
    cut = len(hard) // 3
    school = School(tokenizer, weak, found, weak, data, hard[:cut], hard[cut:], directory, seed, quick)
    second = supervised(school, "curriculum")
    asked = found.questions[: 60 if quick else 400]
    mine = _answers(second, tokenizer, asked, 4, derive_seed(seed, "pairs"))
    pairs = semi_on_policy_pairs(asked, mine, verified(asked, mine, reward), seed)
    if not pairs:
        raise RunError("the decoder is never wrong where the teacher is right: there are no pairs")
    return replace(school, second=second, pairs=from_records(pairs, tokenizer))


def is_hard(problem: Problem) -> bool:
    """Whether a chain is among the longest."""
    return operations(problem) >= HARD


def _budget(rate: float, steps: int, rows: int, batch: int = 64) -> Training:
    size = min(batch, rows)
    return budget(rate, steps * size / rows, size, schedule="cosine", warmup_ratio=0.05)


def scores(model: Any, school: School, rows: Sequence[Record] | None = None) -> Mapping[str, float]:
    """Share of right answers to hard unseen chains, sixteen to each at temperature 1, and their length."""
    asked = school.unseen if rows is None else rows
    answers = _asked(model, school.tokenizer, asked, 16, derive_seed(school.seed, "scores", len(asked)))
    length = float(answers.response_lengths.float().mean())
    return {
        "accuracy": float(answers["reward"].mean()),
        "length": length,
    }


@torch.no_grad()
def _chosen(model: Any, school: School) -> float:
    """Mean log-probability of a pair's chosen answer, a sum over its tokens."""
    won = school.pairs.select(slice(0, None, 2))
    return float(sequence_logps(token_logps(model, won), won.response_mask, "sum").mean())


def _best(school: School, learn: Any, given: Sequence[float]) -> Any:
    """The decoder of the learning rate that is best on development chains."""

    def found(model: Any) -> float:
        return scores(model, school, school.development)["accuracy"]

    return best(given[:1] if school.quick else given, learn, found)[1]


def supervised(school: School, order: Literal["curriculum", "shuffled", "hard only", "first"]) -> Any:
    """The weak decoder after as many steps in one of several orders."""
    first, second = school.data.first, school.data.second
    steps = [10, 5] if school.quick else [FIRST, SECOND]
    parts = {
        "curriculum": [(first, steps[0], 1.0), (second, steps[1], 0.2)],
        "shuffled": [([*first, *second], sum(steps), 1.0)],
        "hard only": [(second, sum(steps), 1.0)],
        "first": [(first, sum(steps), 1.0)],
    }[order]

    def learn(rate: float) -> Any:
        model = copy.deepcopy(school.weak)
        for number, (rows, count, share) in enumerate(parts):
            data = from_records(rows, school.tokenizer)
            own, where = _budget(rate * share, count, len(data)), school.directory / f"{order} {number} {rate:g}"
            taught(model, SFT(), data, own, where, school.seed)
        return model

    return _best(school, learn, RATES)


def preferred(school: School, kind: Literal["nca", "dpo"]) -> Any:
    """The decoder after the curriculum and a preference loss on its semi-on-policy pairs."""

    def learn(rate: float) -> Any:
        model, objective = copy.deepcopy(school.second), DPO(kind=kind, beta=METHOD.preference_beta)
        own = _budget(rate, 2 if school.quick else PREFERENCE, len(school.pairs), 32)
        return taught(model, objective, school.pairs, own, school.directory / f"{kind} {rate:g}", school.seed)

    return _best(school, learn, PREFERENCE_RATES)


def reinforced(school: School, prompts: Band) -> Any:
    """The decoder after the curriculum and GRPO, on prompts that are solved some of the time or on all."""
    asked: Sequence[Record] = school.data.questions
    if prompts == "band":
        own = verified(asked, _answers(school.second, school.tokenizer, asked, 8, school.seed), reward)
        asked = [asked[at] for at in difficulty_band(rates(own), *METHOD.band).nonzero()[:, 0].tolist()]
        if not asked:
            raise RunError("no chain is solved some of the time: the band is empty")
    rows = [{name: row[name] for name in ("prompt", "answer", "id")} for row in asked]
    worth = cosine_length(
        reward, LONGEST, right=METHOD.right_reward, wrong=METHOD.wrong_reward, most=METHOD.shortening_limit
    )

    def learn(rate: float) -> Any:
        model, rollouts = copy.deepcopy(school.second), 2 if school.quick else REINFORCEMENT
        prompts_each = min(PROMPTS, len(rows))
        sampling = Sampling(samples=8, prompts_per_rollout=prompts_each, max_new_tokens=LONGEST)
        training = Training(learning_rate=rate, micro_batch_size=512, epochs=rollouts * prompts_each / len(rows))
        return taught(
            model, grpo(METHOD), rows, training,
            school.directory / f"grpo {prompts} {rate:g}", school.seed,
            tokenizer=school.tokenizer, reward=worth, sampling=sampling,
        )  # fmt: skip

    return _best(school, learn, PREFERENCE_RATES)


def measured(make: Any, *given: Any) -> Any:
    """An arm: makes a decoder from the school, on one thread, and scores it."""

    @one_thread()
    def arm(school: School) -> Mapping[str, float]:
        model = make(school, *given)
        return {**scores(model, school), "chosen log-probability": _chosen(model, school)}

    return arm
