"""What recipes of several stages share: stages that keep their model, and evaluations that are made once."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thrifty.align.adapter import merged
from thrifty.align.asking import Asker, Record, Reward, Sampling
from thrifty.align.job import Job, as_record
from thrifty.core import processes
from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.core.statistics import share_interval
from thrifty.data.readers import read, require_columns, write_jsonl
from thrifty.data.tasks import Task
from thrifty.lm.chat import as_messages
from thrifty.lm.load import load_lm
from thrifty.reward.by_row import by_row
from thrifty.reward.verifiers import task_reward, verifier

_log = logging.getLogger("thrifty")


def staged(job: Job, name: str, work: Callable[[Run], None]) -> None:
    """Lets a stage change the job's model, or takes up the model that the stage has kept before.

    The model goes to ``<name>/model`` in the run's directory, and the job goes on with what is read from there, so that
    a run that was interrupted between two stages ends with the numbers of one that was not.

    Parameters
    ----------
    job
        Its ``model`` is what the stage starts from.
    name
        Of the stage.
    work
        ``work(stage)`` trains ``job.model`` in the stage's run, or puts another in its place.
    """
    stage = job.run.stage(name)
    folder = stage.directory / "model"
    if any(processes.gather(folder.exists())):
        _log.info("%s: finished before; its model is taken from %s", name, folder)
    else:
        _log.info("%s: begins", name)
        work(stage)
        job.model = merged(job.model)
        processes.on_main(lambda: _keep(job, folder))
    job.model, job.tokenizer = job.load(str(folder))


def _keep(job: Job, folder: Path) -> None:
    """Writes model and tokenizer; the folder is there when they are whole."""
    beside = folder.with_name("model.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    job.model.save_pretrained(beside)
    job.tokenizer.save_pretrained(beside)
    beside.rename(folder)


def start_from(job: Job, earlier: str | None, before: str) -> None:
    """Lets the job start from the model that a stage of an earlier run has kept.

    Parameters
    ----------
    job
        Its ``model`` is replaced.
    earlier
        Directory of that run; ``None`` leaves the model that the user gave.
    before
        The stage, ``start`` for none.

    Raises
    ------
    NotFoundError
        When the run has no such model.
    """
    if earlier is None or before == "start":
        return
    folder = Path(earlier) / before / "model"
    if not folder.is_dir():
        raise NotFoundError(f"{earlier} holds no model of the stage {before}: run that stage first, or give --model")
    job.model, job.tokenizer = job.load(str(folder))


def kept(file: Path, make: Callable[[], Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows that are made once: read from the file where it is there, else made by all processes and written to it.

    Parameters
    ----------
    file
        JSON lines.
    make
        Makes the rows.
    """
    if not any(processes.gather(file.exists())):
        rows = make()
        processes.on_main(lambda: write_jsonl(file, rows) and None)
    return [dict(row) for row in read(file)] if file.stat().st_size else []


@dataclass(frozen=True)
class Evaluation:
    """Sets of problems whose answers are checked.

    Parameters
    ----------
    sets
        Name to problems with ``prompt`` and what the reward wants to know.
    reward
        What checks answers: right is a score of 1.
    sampling
        How often and how each problem is answered.
    """

    sets: Mapping[str, Sequence[Record]]
    reward: Reward
    sampling: Sampling

    def row(self, job: Job, file: Path, prefix: str = "") -> dict[str, Any]:
        """Accuracy on each set, with the mean of all where there are several; measured once and kept in the file.

        Parameters
        ----------
        job
            With the model to be evaluated.
        file
            JSON: for each set the numbers of right and of all answers.
        prefix
            Of the sets' names in the row.
        """
        if not any(processes.gather(file.exists())):
            found = self.scores(job)
            processes.on_main(lambda: write_json(file, found))
        counts = json.loads(file.read_text(encoding="utf-8"))
        shares = {name: share_interval(right, answers) for name, (right, answers) in counts.items()}
        row: dict[str, Any] = {
            f"{prefix}{name}": f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for name, i in shares.items()
        }
        if len(shares) > 1:
            row[f"{prefix}mean"] = round(sum(i.mean for i in shares.values()) / len(shares), 3)
        return row

    def scores(self, job: Job) -> dict[str, tuple[int, int]]:
        """Of each set, how many answers are right, and how many there are."""
        asker = Asker(job.model, job.tokenizer, self.reward, self.sampling)
        found = {}
        for name, records in self.sets.items():
            answers = asker.ask(records, derive_seed(job.run.seed, "evaluation", name))
            found[name] = (int((answers["reward"] >= 1).sum()), len(answers))
        return found

    def average(self, file: Path) -> float:
        """The mean accuracy of the sets that :meth:`row` has kept in a file: what decisions are made by."""
        counts = json.loads(file.read_text(encoding="utf-8"))
        return sum(right / answers for right, answers in counts.values()) / len(counts)

    def texts(self, prefix: str = "") -> dict[str, list[str]]:
        """The users' turns of each set's problems, to be looked for in training data."""
        return {f"{prefix}{name}": [user_text(record) for record in records] for name, records in self.sets.items()}


def user_text(record: Record) -> str:
    """What the user says in a record: the prompt, or the user's turns of its messages.

    Raises
    ------
    InputError
        When it has neither.
    """
    said = record.get("prompt", record.get("messages"))
    if isinstance(said, str):
        return said
    if not said or isinstance(said[0], int):
        raise InputError("a record has no text to be compared with evaluation sets: give it a prompt, or messages")
    return "\n".join(turn["content"] for turn in as_messages(said) if turn["role"] == "user")


def named_files(given: str | None, what: str) -> dict[str, str]:
    """``name=file,name=file`` or ``file,file`` as names and files.

    Parameters
    ----------
    given
        What the user wrote; ``None`` for no file.
    what
        The option, for errors.

    Raises
    ------
    InputError
        When a name comes twice.
    """
    found: dict[str, str] = {}
    for part in (given or "").split(","):
        name, equals, file = (piece.strip() for piece in part.partition("="))
        if not name:
            continue
        name, file = (name, file) if equals else (name.rpartition("/")[2].partition(".")[0], name)
        if name in found:
            raise InputError(f"--{what} names {name!r} twice: write other=FILE for one of them")
        found[name] = file
    return found


def problem_sets(given: str | None, what: str) -> dict[str, list[Record]]:
    """Evaluation sets from files with the columns ``prompt`` and ``answer``."""
    found: dict[str, list[Record]] = {}
    for name, file in named_files(given, what).items():
        records = read(file)
        require_columns(records, ["prompt", "answer"], file)
        found[name] = list(records)
    return found


def task_sets(task: Task, many: int, seed: int) -> tuple[dict[str, list[Record]], dict[str, list[Record]]]:
    """A task's test problems, half for development and half unseen."""
    problems = [as_record(problem) for problem in task.problems(many, seed, "test")]
    half = (len(problems) + 1) // 2
    return {task.name: problems[:half]}, {task.name: problems[half:]}


def own_answers(
    job: Job, records: Sequence[Record], sampling: Sampling, name: str, *, model: str | None = None, ended: bool = False
) -> list[list[str]]:
    """What a model answers to each record's prompt.

    Parameters
    ----------
    job
        Whose model answers, unless another is named.
    records
        With ``prompt``.
    sampling
        How often and how.
    name
        Of what this is for: the seed of the draws.
    model
        Another model.
    ended
        Leave answers out that were cut off.
    """
    asked, tokenizer = (job.model, job.tokenizer) if model is None else _other(job, model)
    asker = Asker(asked, tokenizer, lambda completions: [0.0] * len(completions), sampling)
    sampled = asker.ask(records, derive_seed(job.run.seed, name))
    found: list[list[str]] = [[] for _ in records]
    columns = sampled["group"].tolist(), sampled["finished"].tolist(), sampled.texts(tokenizer)
    for number, finished, text in zip(*columns, strict=True):
        if finished or not ended:
            found[number].append(text)
    return found


def _other(job: Job, name: str) -> tuple[Any, Any]:
    return load_lm(name, dtype=job.run.dtype, device=job.run.device)


def judged_by(job: Job, embedded: bool) -> Reward:
    """The user's verifier, a row's own (the column ``verifier``), or the task's judgement.

    Raises
    ------
    InputError
        When there is neither a task nor a verifier, and the rows of own data name none.
    """
    if job.inputs.reward is not None:
        return by_row(verifier(job.inputs.reward))
    if job.task is not None and (embedded or job.inputs.task is not None):
        return by_row(task_reward(job.task))
    return by_row(None)
