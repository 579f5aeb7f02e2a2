"""The data of Light-R1's stages: questions filtered by two models, a teacher's answers, semi-on-policy pairs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.align.asking import Record, Reward, Sampling
from thrifty.align.job import Job
from thrifty.align.recipe import own_answers
from thrifty.core import processes
from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.data.readers import read, write_jsonl
from thrifty.lm.sequences import Sequences
from thrifty.reward.base import score, shared_columns
from thrifty.select.rank import difficulty_band, pass_rate

Answers = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Curriculum:
    """What the two filters leave.

    Parameters
    ----------
    questions
        Those that are hard for the weak model and have a right answer, each with the teacher's ``answers`` and which of
        them are ``right``, and both pass rates.
    first
        Rows (``prompt``, ``completion`` and what the questions have) of the first supervised stage.
    second
        The hard ones among them, for the second.
    report
        How many questions each step has kept.
    """

    questions: list[dict[str, Any]]
    first: list[dict[str, Any]]
    second: list[dict[str, Any]]
    report: dict[str, int]

    def save(self, folder: Path) -> None:
        """Writes ``questions.jsonl``, ``stage1.jsonl``, ``stage2.jsonl`` and, last, ``report.json``."""
        for name, rows in (("questions", self.questions), ("stage1", self.first), ("stage2", self.second)):
            write_jsonl(folder / f"{name}.jsonl", rows, overwrite=True)
        write_json(folder / "report.json", self.report)

    @classmethod
    def load(cls, folder: Path) -> Curriculum:
        """Reads what :meth:`save` wrote."""
        files = [folder / f"{name}.jsonl" for name in ("questions", "stage1", "stage2")]
        questions, first, second = ([dict(row) for row in read(file)] if file.stat().st_size else [] for file in files)
        return cls(questions, first, second, json.loads((folder / "report.json").read_text(encoding="utf-8")))


def curriculum(
    questions: Sequence[Record],
    weak: Float[Tensor, " N"],
    answers: Answers,
    right: Sequence[Sequence[bool]],
    *,
    weak_rate: float,
    teacher_rate: float,
    seed: int,
) -> Curriculum:
    """Filters questions by how often a weak model, then the teacher solves them, and pairs them with right answers.

    Parameters
    ----------
    questions
        N records with ``prompt`` and ``answer``.
    weak
        The weak model's pass rates.
    answers
        Of each question the teacher's answers.
    right
        Which of these were verified.
    weak_rate
        Questions that the weak model solves as often or more often are too easy.
    teacher_rate
        The same of the teacher, for the second stage; there, questions that it never solves or always solves are left
        out too: the former may be wrong, the latter are not hard.
    seed
        Of the draw of one right answer, where there are several.

    Raises
    ------
    InputError
        When no question is left.
    """
    draw = generator(seed, "one right answer")
    kept, first, second = [], [], []
    hard = [number for number in range(len(questions)) if float(weak[number]) < weak_rate]
    for number in hard:
        good = [said for said, fine in zip(answers[number], right[number], strict=True) if fine]
        if not good:
            continue
        rate = len(good) / len(answers[number])
        chosen = good[int(torch.randint(len(good), (), generator=draw))]
        row = {**questions[number], "weak_pass_rate": float(weak[number]), "teacher_pass_rate": rate}
        kept.append({**row, "answers": list(answers[number]), "right": list(right[number])})
        first.append({**row, "completion": chosen})
        if rate < min(teacher_rate, 1.0):
            second.append(first[-1])
    report = {
        "questions": len(questions),
        "hard for the weak model": len(hard),
        "with a right answer": len(first),
        "hard for the teacher": len(second),
    }
    if not first:
        raise InputError(
            f"of {len(questions)} questions {len(hard)} are hard for the weak model, and the teacher has no right "
            "answer to these: raise --weak-rate, or give more answers"
        )
    return Curriculum(kept, first, second, report)


def verified(questions: Sequence[Record], answers: Answers, reward: Reward) -> list[list[bool]]:
    """Which of each question's answers the verifier accepts.

    Parameters
    ----------
    questions
        With what the verifier wants to know.
    answers
        Of each question.
    reward
        The verifier: right is a score of 1.
    """
    rows = [(question, said) for question, of_it in zip(questions, answers, strict=True) for said in of_it]
    if not rows:
        return [[] for _ in questions]
    columns = shared_columns([question for question, _ in rows])
    assert callable(reward)
    scores = iter(score(reward, [q["prompt"] for q, _ in rows], [said for _, said in rows], columns=columns).tolist())
    return [[next(scores) >= 1 for _ in of_it] for of_it in answers]


def rates(right: Sequence[Sequence[bool]]) -> Float[Tensor, " N"]:
    """The share of right samples of each question, of which all have as many."""
    return pass_rate(torch.tensor(right, dtype=torch.bool))


def semi_on_policy_pairs(
    questions: Sequence[Record], own: Answers, own_right: Sequence[Sequence[bool]], seed: int
) -> list[dict[str, Any]]:
    """Pairs of the teacher's verified answer and one of the model's own that was found wrong.

    Parameters
    ----------
    questions
        N records with ``prompt``, the teacher's ``answers``, and which of them are ``right``.
    own, own_right
        Of each question the model's own answers, and which of them are right.
    seed
        Of the draw of one answer on each side.

    Returns
    -------
    list
        With ``prompt``, ``chosen``, ``rejected``; none for a question without both.
    """
    draw = generator(seed, "pairs")

    def one(of_it: Sequence[str]) -> str:
        return of_it[int(torch.randint(len(of_it), (), generator=draw))]

    pairs = []
    for question, mine, fine in zip(questions, own, own_right, strict=True):
        wrong = [said for said, right in zip(mine, fine, strict=True) if not right]
        better = [said for said, right in zip(question["answers"], question["right"], strict=True) if right]
        if wrong and better:
            pairs.append({"prompt": question["prompt"], "chosen": one(better), "rejected": one(wrong)})
    return pairs


def own_pairs(job: Job, questions: Sequence[Record], reward: Reward, sampling: Sampling) -> list[dict[str, Any]]:
    """Semi-on-policy pairs with answers that the job's model gives now; those that were cut off are left out.

    Raises
    ------
    InputError
        When there are none.
    """
    own = own_answers(job, questions, sampling, "pairs", ended=True)
    pairs = semi_on_policy_pairs(questions, own, verified(questions, own, reward), job.run.seed)
    if not pairs:
        raise InputError(
            f"none of the model's own answers to {len(questions)} questions ended and was wrong, so there are no "
            "pairs: give harder questions, or a larger --max-new-tokens"
        )
    return pairs


def prompts_in_band(
    job: Job,
    asked: Sequence[Record],
    reward: Reward,
    sampling: Sampling,
    band: tuple[float, float],
    model: str | None,
    folder: Path,
) -> list[dict[str, Any]]:
    """The prompts that are solved some of the time, with their ``pass_rate``; ``never-solved.jsonl`` has the others.

    Parameters
    ----------
    job
        Whose model is asked, unless another is named.
    asked
        Records with ``prompt`` and what the reward wants to know.
    reward, sampling
        What checks answers, and how many there are to each prompt.
    band
        Lowest and highest pass rate.
    model
        Another model.
    folder
        Where the prompts go that are never solved: their reference answers may be wrong.

    Raises
    ------
    InputError
        When no prompt is within the band.
    """
    rate = rates(verified(asked, own_answers(job, asked, sampling, "band", model=model), reward))
    inside = difficulty_band(rate, *band)
    never = [asked[at] for at in (rate == 0).nonzero()[:, 0].tolist()]
    processes.on_main(lambda: write_jsonl(folder / "never-solved.jsonl", never, overwrite=True) and None)
    if not inside.any():
        raise InputError(
            f"no prompt has a pass rate within {band[0]:g} to {band[1]:g} (they are {rate.min():g} to {rate.max():g}, "
            f"{len(never)} are never solved): give another --band, or other prompts"
        )
    return [{**asked[at], "pass_rate": float(rate[at])} for at in inside.nonzero()[:, 0].tolist()]


def without_special_tokens(pairs: Sequences, special: Iterable[int]) -> Sequences:
    """Pairs in which the special tokens of rejected answers (their end among them) do not count.

    Parameters
    ----------
    pairs
        Rows chosen, rejected, chosen, ...
    special
        Token ids.
    """
    ids = torch.tensor(sorted(special), dtype=torch.long)
    rejected = (~pairs["chosen"].bool())[:, None]
    return replace(pairs, response_mask=pairs.response_mask & ~(torch.isin(pairs.input_ids, ids) & rejected))
