"""A skill of a small language model to forget: arithmetic, beside text and other skills that must stay."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.method import Task
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.data.tasks import Arithmetic, Problem
from thrifty.data.text import texts
from thrifty.forget.base import Forgetter, device_of, forget_with
from thrifty.forget.baselines import BadTeacher, FineTune, GradientAscent
from thrifty.forget.data import Source, Texts
from thrifty.forget.evaluate import predict
from thrifty.forget.interventions import attached
from thrifty.forget.refusals import refused
from thrifty.forget.selective_pruning import SelectivePruning
from thrifty.forget.skill_unlearning import SkillUnlearning
from thrifty.lm.load import load_lm
from thrifty.lm.records import Record, from_records
from thrifty.lm.sample import sample

MODEL = "smollm2-135m-instruct"
SKILL = Arithmetic(operations=("+", "-", "*"), style="plain")
METRICS = ("-skill_accuracy", "text_accuracy", "copy_accuracy", "skill_drop", "-retain_drop", "nll_gap")
_SHOTS = 2  # examples before a question: without them a model this small often does not answer by a number
_ANSWER_TOKENS = 12
_READ, _WRITTEN = 20, 20  # words of an article that are given, and that go on


@dataclass(frozen=True, eq=False)
class SkillTexts:
    """Texts of a skill and of others, for one model's tokenizer.

    Parameters
    ----------
    sets
        ``forget_set`` (the skill), ``retain_set`` (text), ``full_set`` (both) and ``refusal_set``, as methods ask for
        them.
    valid
        ``forget`` and ``retain`` texts for choosing settings.
    questions, prompts
        Problems of the skill for the final scores, and how they are asked.
    judged
        ``skill``, ``text`` and ``copy`` texts for the final scores; the last is a skill of which no method is told.
    """

    sets: Mapping[str, Source]
    valid: Mapping[str, Source]
    questions: Sequence[Problem]
    prompts: Sequence[Any]
    judged: Mapping[str, Source]


@dataclass(frozen=True, eq=False)
class SkillProblem:
    """A language model, a skill that it must forget, and what it must keep.

    Parameters
    ----------
    model, tokenizer
        As they are.
    texts
        Of the skill and others.
    directory
        Where methods that train keep their run.
    seed
        Of those runs.
    original
        What the model gets before.
    """

    model: Any
    tokenizer: Any
    texts: SkillTexts
    directory: Path
    seed: int
    original: Mapping[str, float] = field(default_factory=dict)

    def run(self) -> Run:
        """A run for one method, begun anew."""
        return Run(self.directory / "run", seed=self.seed, device=str(device_of(self.model)), overwrite=True)


def sums(problems: Sequence[Problem], shots: Sequence[Problem] = ()) -> list[Record]:
    """Problems as records, answered by the sum that solves them ("7 + 5 = 12."), after some that are solved."""
    return _after([(one.prompt, solution(one)) for one in problems], [(one.prompt, solution(one)) for one in shots])


def solution(problem: Problem) -> str:
    """The sum that solves a problem."""
    terms = problem.id.partition("/")[0]
    sign = next(sign for sign in "+-*" if sign in terms)
    left, right = terms.split(sign)
    return f"{left} {sign} {right} = {problem.answer}."


def copies(lines: Sequence[str], shots: Sequence[str] = ()) -> list[Record]:
    """Headlines as records, to be repeated, after some that are."""
    return _after(*([(f"Repeat this headline: {line}", line) for line in part] for part in (lines, shots)))


def articles(news: Sequence[str]) -> list[Record]:
    """News articles as records, to be continued after their first words."""
    words = [line for line in map(str.split, news) if len(line) >= _READ + _WRITTEN]
    return _after(
        [
            (
                f"Continue this news article: {' '.join(line[:_READ])}",
                " ".join(line[_READ : _READ + _WRITTEN]),
            )
            for line in words
        ],
        [],
    )


def _after(pairs: Sequence[tuple[str, str]], shots: Sequence[tuple[str, str]]) -> list[Record]:
    turns = [
        {"role": role, "content": said}
        for pair in shots
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]
    return [{"prompt": [*turns, {"role": "user", "content": asked}], "completion": said} for asked, said in pairs]


def skill_texts(tokenizer: Any, seed: int, *, probes: int, valid: int, asked: int, judged: int) -> SkillTexts:
    """Sums, news and headlines, different ones for each seed; none of the final ones is among the others.

    Parameters
    ----------
    tokenizer
        Of the model.
    seed
        Of the choice.
    probes, valid, asked, judged
        How many texts of each kind for forgetting, for choosing settings, for sampled answers and for likelihoods.
    """
    news, headlines = texts("bbc-news"), texts("sarcasm")

    def some(lines: Sequence[str], count: int) -> list[str]:
        draw = generator(seed, "skill texts")
        return [lines[int(number)] for number in torch.randperm(len(lines), generator=draw)[:count]]

    def source(records: Sequence[Record]) -> Texts:
        return Texts(from_records(records, tokenizer, max_length=512))

    solved, questions = SKILL.problems(_SHOTS + probes + valid, seed), SKILL.problems(asked, seed, "test")
    shots, solved = solved[:_SHOTS], solved[_SHOTS:]
    told, repeated = articles(some(news.train_texts, 2 * (probes + valid))), some(headlines.test_texts, _SHOTS + judged)
    skill, text = sums(solved[:probes], shots), told[:probes]
    judges = {
        "skill": sums(questions[:judged], shots),
        "text": articles(some(news.test_texts, 2 * judged))[:judged],
        "copy": copies(repeated[_SHOTS:], repeated[:_SHOTS]),
    }
    return SkillTexts(
        {
            "forget_set": source(skill),
            "retain_set": source(text),
            "full_set": source([*skill, *text]),
            "refusal_set": source(refused(skill, seed)),
        },
        {"forget": source(sums(solved[probes:], shots)), "retain": source(told[probes : probes + valid])},
        questions,
        [record["prompt"] for record in sums(questions, shots)],
        {name: source(records) for name, records in judges.items()},
    )


def problem(seed: int, quick: bool, directory: Path) -> SkillProblem:
    """SmolLM2 with texts of the skill and others.

    Parameters
    ----------
    seed
        Of the choice of texts.
    quick
        Fewer of them.
    directory
        Where methods keep their run.
    """
    model, tokenizer = load_lm(MODEL, dtype=torch.float32)
    sizes = (
        {"probes": 24, "valid": 3, "asked": 8, "judged": 3}
        if quick
        else {"probes": 80, "valid": 10, "asked": 40, "judged": 20}
    )
    found = SkillProblem(model, tokenizer, skill_texts(tokenizer, seed, **sizes), directory, seed)
    return dataclasses.replace(found, original=measured(found, model))


def measured(problem: SkillProblem, model: nn.Module) -> dict[str, float]:
    """How a model does on a problem's final questions and texts; see :func:`scores`."""
    spoken = sample(model, problem.tokenizer, problem.texts.prompts, max_new_tokens=_ANSWER_TOKENS, greedy=True)
    said = spoken.texts(problem.tokenizer)
    right = [SKILL.score(question, answer) for question, answer in zip(problem.texts.questions, said, strict=True)]
    found = {name: predict(model, source, 16, f"{name} set") for name, source in problem.texts.judged.items()}
    return {
        "skill_accuracy": sum(right) / len(right),
        **{f"{name}_accuracy": float(found[name].correct.mean()) for name in ("text", "copy")},
        **{f"{name}_nll": float(found[name].nll.mean()) for name in found},
    }


def scores(problem: SkillProblem, model: nn.Module, seconds: float = 0.0) -> dict[str, float]:
    """How much of the skill and of the rest is left.

    ``skill_accuracy`` is the share of questions whose sampled answer is right; ``text_accuracy`` and ``copy_accuracy``
    the share of tokens of the reference that are found most likely; ``*_nll`` its negative log-likelihood in nats a
    token. ``skill_drop`` and ``retain_drop`` (text and copying, their mean) are relative to the model before.
    ``nll_gap``: by how much more the likelihood of the skill falls than that of text; e to its power is the ratio of
    the perplexities' growth.
    """
    before = problem.original
    unchanged = model is problem.model and attached(model) is None
    found = dict(before) if unchanged else measured(problem, model)
    drops = {
        name: 1 - found[f"{name}_accuracy"] / max(before[f"{name}_accuracy"], 1e-9)
        for name in ("skill", "text", "copy")
    }
    rises = {name: found[f"{name}_nll"] - before[f"{name}_nll"] for name in ("skill", "text")}
    return found | {
        "skill_drop": drops["skill"],
        "retain_drop": (drops["text"] + drops["copy"]) / 2,
        "nll_gap": rises["skill"] - rises["text"],
        "seconds": seconds,
    }


def run_method(method: Forgetter, problem: SkillProblem) -> dict[str, float]:
    """Runs a method on the problem, with the processor's seconds."""
    with problem.run() as run:
        started = time.process_time()
        model = forget_with(method, problem.model, problem.texts.sets, run)
        return scores(problem, model, time.process_time() - started)


def merit(model: nn.Module, problem: SkillProblem) -> float:
    """Share of right tokens of texts to keep minus that of sums that are right as a whole, on validation data.

    A sum all of whose tokens are found most likely is what the model would say by itself.
    """
    kept, gone = (predict(model, problem.texts.valid[name], 16).correct for name in ("retain", "forget"))
    return float(kept.mean() - (gone == 1).float().mean())


def _baselines() -> dict[str, Callable[[SkillProblem], Mapping[str, float]]]:
    return {
        "original": lambda problem: scores(problem, problem.model),
        "selective pruning": lambda problem: run_method(SelectivePruning(), problem),
        "fine-tune": lambda problem: run_method(FineTune(batch_size=16), problem),
        "gradient ascent": lambda problem: run_method(GradientAscent(batch_size=16), problem),
        "bad teacher": lambda problem: run_method(BadTeacher(batch_size=16), problem),
    }


TASK = Task(
    summary="forget arithmetic, a skill of SmolLM2, and keep the rest",
    gives=frozenset({"model", "language-model", "text", "forget-set", "retain-set"}),
    prepare=problem,
    evaluate=run_method,
    baselines=_baselines(),
    metrics=(*METRICS, "-seconds"),
    variants={"neuron adjust": lambda: SkillUnlearning(abstain=False)},
    axes=("skill_drop", "-retain_drop"),
)
