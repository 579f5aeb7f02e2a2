"""The data of TULU 3's stages: the user's files, or problems that come with the package, and pairs of rated answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from thrifty.align.asking import Record, Reward, Sampling
from thrifty.align.curation import mixes, rated_pairs
from thrifty.align.job import Job, as_record
from thrifty.align.recipe import own_answers
from thrifty.core.errors import InputError
from thrifty.core.seeding import derive_seed
from thrifty.data.readers import read, require_columns
from thrifty.data.tasks import Problem, Task, arithmetic
from thrifty.reward.base import checked_values, shown
from thrifty.reward.verifiers import verifier

_COLUMNS = {"sft": (), "preference": ("prompt",), "rlvr": ("prompt", "answer")}
_SUPERVISED, _PREFERENCE, _RLVR = 96, 48, 64


def training_data(job: Job, given: Mapping[str, str | None], stage: str) -> dict[str, dict[str, list[Record]]]:
    """Of each stage that is to run, its sources and their rows.

    Parameters
    ----------
    job
        Whose ``limit`` cuts each source.
    given
        Of each stage the user's files, as :func:`thrifty.align.curation.mixes` reads them.
    stage
        The only one to run, or ``all``.

    Raises
    ------
    InputError
        When the stage has no data, or a column is missing.
    """
    found: dict[str, dict[str, list[Record]]] = {}
    for name, text in (given if any(given.values()) else {}).items():
        if text:
            files = sorted({file for mix in mixes(text) for file in mix})
            found[name] = {file: [*read(file)][: job.inputs.limit] for file in files}
            for file, rows in found[name].items():
                require_columns(rows, _COLUMNS[name], file)
    if not any(given.values()):
        found = embedded_data(job)
    if stage != "all" and stage not in found:
        raise InputError(f"there are no data for the stage {stage}: give --{stage}-data")
    return {name: sources for name, sources in found.items() if stage in ("all", name)}


def embedded_data(job: Job) -> dict[str, dict[str, list[Record]]]:
    """Worked answers to sums (two sources), and prompts for the other two stages, in training problems of the task."""
    assert job.task is not None
    most = job.inputs.limit
    many = [min(count, most or count) for count in (_SUPERVISED, _SUPERVISED // 2, _PREFERENCE, _RLVR)]

    def problems(task: Task, count: int, what: str) -> list[Problem]:
        return task.problems(count, derive_seed(job.run.seed, what), "train")

    plain = arithmetic(digits=2, style="plain")
    return {
        "sft": {
            "stories": [worked(problem) for problem in problems(job.task, many[0], "stories")],
            "sums": [worked(problem) for problem in problems(plain, many[1], "sums")],
        },
        "preference": {"prompts": [as_record(problem) for problem in problems(job.task, many[2], "pairs")]},
        "rlvr": {"prompts": [as_record(problem) for problem in problems(job.task, many[3], "rlvr")]},
    }


def worked(problem: Problem) -> Record:
    """A problem with its answer in a sentence, as supervised data."""
    return {"prompt": problem.prompt, "completion": f"The answer is {problem.answer}."}


def preference_pairs(
    job: Job, records: Sequence[Record], reward: Reward, judge: str | None, samples: int
) -> list[dict[str, Any]]:
    """Pairs as they are given, of given answers and ratings, or of answers that are rated here.

    Parameters
    ----------
    job
        Whose model answers.
    records
        With ``chosen`` and ``rejected``; or ``answers`` and maybe ``ratings``; or ``prompt`` alone.
    reward
        Rates answers where there is no ``judge``.
    judge
        Names of verifiers, with commas between.
    samples
        The model's own answers to each prompt.

    Raises
    ------
    InputError
        When no pair is left, because all answers to each prompt are as good.
    """
    pairs = [dict(row) for row in records if "chosen" in row]
    rated = [row for row in records if "chosen" not in row and "ratings" in row]
    asked = [row for row in records if "chosen" not in row and "ratings" not in row]
    answers = [[str(said) for said in row["answers"]] for row in rated]
    ratings = [list(row["ratings"]) for row in rated]
    if asked:
        judges = [verifier(name.strip()) for name in judge.split(",")] if judge else [reward]
        sampling = Sampling(samples=samples, max_new_tokens=job.inputs.max_new_tokens)
        own = own_answers(job, asked, sampling, "answers to be rated")
        said = [[*map(str, row.get("answers", ())), *of_it] for row, of_it in zip(asked, own, strict=True)]
        answers += said
        ratings += [_rated(judges, row, of_it) for row, of_it in zip(asked, said, strict=True)]
    pairs += rated_pairs([row["prompt"] for row in [*rated, *asked]], answers, ratings, job.run.seed)
    if not pairs:
        raise InputError(
            "all answers to each prompt are rated alike, so there are no pairs: ask more, or other prompts"
        )
    return pairs


def _rated(judges: Sequence[Any], row: Record, answers: Sequence[str]) -> list[list[float]]:
    prompts = [row["prompt"]] * len(answers)
    columns = {name: [value] * len(answers) for name, value in row.items() if name not in ("prompt", "answers")}
    aspects = [checked_values(judge, prompts, answers, columns=columns) for judge in judges]
    rated = [[value for value in of_one if value is not None] for of_one in zip(*aspects, strict=True)]
    if not all(rated):
        raise InputError(f"no judge rates the answers to {shown(row['prompt'])}")
    return rated
