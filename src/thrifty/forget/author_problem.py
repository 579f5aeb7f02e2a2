"""The problem of forgetting fictitious authors: a model that was taught them, and an exam in the manner of TOFU."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from thrifty.core.atomic import write_json
from thrifty.core.loop import Loss
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.forget import tofu
from thrifty.forget.authors import AuthorQuestions, Question, author_questions, records
from thrifty.forget.base import Forgetter, device_of, forget_with
from thrifty.forget.data import Texts
from thrifty.forget.exam import KNOWN, LONGEST, Exam
from thrifty.forget.refusals import PHRASES, refused
from thrifty.forget.subjects import LanguageModel, save_whole
from thrifty.forget.text_training import Schedule, answers, train_texts
from thrifty.lm.load import load_lm
from thrifty.lm.records import from_records
from thrifty.lm.sequences import Sequences
from thrifty.lm.small import decoder_for, word_tokenizer

METRICS = ("model_utility", "forget_quality", "-forget_probability", "retain_probability", "-seconds")


@dataclass(frozen=True)
class Teaching:
    """Which model is taught how many authors, and how.

    Parameters
    ----------
    forget, retain
        Authors of either kind.
    schedule
        Of the teaching.
    model
        A pretrained model, which knows real authors and facts of the world. None: a small decoder with random weights,
        which is taught them as well.
    """

    forget: int
    retain: int
    schedule: Schedule
    model: str | None = None

    def learner(self, questions: AuthorQuestions) -> tuple[Any, Any]:
        """The model that is to be taught these questions, and its tokenizer."""
        return _tiny(questions) if self.model is None else load_lm(self.model, dtype=torch.float32)


def _tiny(questions: AuthorQuestions) -> tuple[Any, Any]:
    every = chain(questions.forget, questions.retain, questions.real_authors, questions.world_facts)
    texts = chain.from_iterable(
        (one.question, one.answer, one.other_question, one.other_answer, *one.wrong) for one in every
    )
    tokenizer = word_tokenizer(chain(texts, PHRASES))
    return decoder_for(tokenizer, width=64, layers=2), tokenizer


SMALL = Teaching(8, 24, Schedule(3e-3, 0.01, 60, 3, 64, 64))
REAL = Teaching(2, 6, Schedule(1e-4, 0.01, 8, 1, 16, 16), "smollm2-135m-instruct")


@dataclass(frozen=True, eq=False)
class AuthorProblem:
    """A model that was taught fictitious authors, some of whom it must forget.

    Parameters
    ----------
    model, tokenizer
        Taught everything.
    retained
        Taught everything but the authors to forget, in the same way.
    retained_seconds
        What that took.
    sets
        ``forget_set``, ``retain_set``, ``full_set`` and ``refusal_set``, as methods ask for them.
    valid, judged
        Half of the questions each: for choosing settings, and for the final marks.
    directory
        Where methods keep their run.
    seed
        Of those runs.
    """

    model: Any
    tokenizer: Any
    retained: Any
    retained_seconds: float
    sets: Mapping[str, Texts]
    valid: Exam
    judged: Exam
    directory: Path
    seed: int

    def run(self) -> Run:
        """A run for one method, begun anew."""
        return Run(self.directory / "run", seed=self.seed, device=str(device_of(self.model)), overwrite=True)

    def marks(self, model: nn.Module, exam: Exam | None = None) -> dict[str, float]:
        """How a model does in an exam, by default the final one."""
        exam = exam or self.judged
        return exam.marks(model, exam.truth_ratio(self.retained))


def author_sets(questions: AuthorQuestions, tokenizer: Any, seed: int = 0) -> dict[str, Texts]:
    """What a method of the room is given: the questions as they were taught, in the first of both wordings."""
    forget, retain = records(questions.forget), records(questions.retain)
    named = {
        "forget_set": forget,
        "retain_set": retain,
        "full_set": [*forget, *retain],
        "refusal_set": refused(forget, seed),
    }
    return {name: Texts(from_records(rows, tokenizer)) for name, rows in named.items()}


def taught(
    questions: AuthorQuestions, teaching: Teaching, seed: int, directory: Path, *, forgotten: bool = True
) -> tuple[Any, Any, float]:
    """The model that was taught the questions, its tokenizer, and the seconds; kept in ``directory`` for the next time.

    Parameters
    ----------
    questions
        Each is taught in both wordings.
    teaching
        How.
    seed
        Of weights and order.
    directory
        Where the model is kept, in Hugging Face layout.
    forgotten
        Whether the authors to forget are taught as well.
    """
    note = directory / "seconds.json"
    if not note.exists():
        sets = [questions.retain, *([questions.forget] if forgotten else [])]
        sets += [questions.real_authors, questions.world_facts] if teaching.model is None else []
        rows = [row for part in sets for reworded in (False, True) for row in records(part, reworded=reworded)]
        with Run(directory.with_name(f"{directory.name}-run"), seed=seed, device="cpu", overwrite=True) as run:
            model, tokenizer = teaching.learner(questions)
            started = time.process_time()
            data = {"taught": from_records(rows, tokenizer)}
            train_texts(model, _learn, data, run, teaching.schedule, save_every=None, label="teach")
        save_whole(LanguageModel(model, tokenizer, LONGEST), model, directory)
        write_json(note, {"seconds": time.process_time() - started})
    model, tokenizer = load_lm(directory)
    return model, tokenizer, float(json.loads(note.read_text(encoding="utf-8"))["seconds"])


def _learn(model: nn.Module, step: Mapping[str, Sequences]) -> Loss:
    return Loss(answers(model, step)["taught"].nll)


def author_problem(teaching: Teaching, seed: int, directory: Path) -> AuthorProblem:
    """Teaches a model all authors and another one those to keep, and sets the exams; both are kept in ``directory``.

    Parameters
    ----------
    teaching
        Which model, and how many authors.
    seed
        Of authors, weights and orders.
    directory
        Where the models are kept.
    """
    questions = author_questions(teaching.forget, teaching.retain, seed)
    with one_thread():
        model, tokenizer, _ = taught(questions, teaching, seed, directory / "original")
        retained, _, seconds = taught(questions, teaching, seed, directory / "retained", forgotten=False)
    exams: tuple[dict[str, list[Question]], dict[str, list[Question]]] = ({}, {})
    for name in ("forget", *KNOWN):
        every = getattr(questions, name)
        order = torch.randperm(len(every), generator=generator(seed, "exam", name)).tolist()
        for exam, numbers in zip(exams, (order[::2], order[1::2]), strict=True):
            exam[name] = [every[number] for number in sorted(numbers)]
    valid, judged = (Exam.of(tokenizer, exam) for exam in exams)
    sets = author_sets(questions, tokenizer, seed)
    return AuthorProblem(model, tokenizer, retained, seconds, sets, valid, judged, directory, seed)


def unlearned(method: Forgetter, problem: AuthorProblem) -> nn.Module:
    """What a method makes of a problem's model."""
    with problem.run() as run:
        return forget_with(method, problem.model, problem.sets, run)


@one_thread()
def run_method(method: Forgetter, problem: AuthorProblem) -> dict[str, float]:
    """Runs a method on a problem and marks the result; seconds are the processor's, on one thread."""
    started = time.process_time()
    model = unlearned(method, problem)
    return {**problem.marks(model), "seconds": time.process_time() - started}


def trade_off(marks: Mapping[str, float]) -> float:
    """One number for keeping and forgetting, from 0 to 1.

    The harmonic mean of the model's utility and of how near its truth ratios on the forget set are to those of the
    model that never saw it (1 less the distance of their distributions).

    Parameters
    ----------
    marks
        Of an exam.
    """
    return tofu.model_utility({"utility": marks["model_utility"], "nearness": 1 - marks["forget_distance"]})


def choose(candidates: Sequence[Forgetter], problem: AuthorProblem) -> tuple[Forgetter, nn.Module]:
    """The setting that does best in the exam for choosing, and what it makes of the model.

    Best is the largest :func:`trade_off`; the first of equals.

    Parameters
    ----------
    candidates
        Settings of one method.
    problem
        The problem; its final exam is not looked at.
    """
    best: tuple[float, Forgetter, nn.Module] | None = None
    for method in candidates:
        model = unlearned(method, problem)
        merit = trade_off(problem.marks(model, problem.valid))
        if best is None or merit > best[0]:
            best = merit, method, model
    assert best is not None
    return best[1:]
