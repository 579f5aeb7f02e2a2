"""Prompts that are not trained on, what scores fresh answers to them, and the choice of a model by that score."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.align.asking import Asker, Record, Reward, Sampling, signed
from thrifty.align.job import Job, as_record
from thrifty.align.learning import Source
from thrifty.align.log import embedded_log
from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.data.readers import read, require_columns
from thrifty.data.tasks import Task
from thrifty.lm.sequences import Sequences
from thrifty.reward.base import score, shared_columns
from thrifty.reward.verifiers import task_reward, verifier

_log = logging.getLogger("thrifty")
_CHECKED = 64  # logged answers that are scored again, to see that scores and log are on one scale
_OF_ANSWERS = {"completion", "completion_ids", "prompt_ids", "behaviour_logps"}


@dataclass(frozen=True)
class Validation:
    """Prompts with what their reward wants to know, and the reward."""

    records: Sequence[Record]
    reward: Reward


def validation_of(
    job: Job, log: Sequences, *, file: str | None = None, share: float = 0.1, most: int = 128
) -> tuple[Sequences, Validation | None]:
    """Validation prompts for a job on a log, and what of the log is left to train on.

    With ``--reward`` the prompts are those of a file, or a share of the log's, whose answers are then not trained on;
    with the log that comes with the package, other problems of its task. Without a reward that can score new answers
    there is no validation.

    Parameters
    ----------
    job
        The job.
    log
        Its log, with ``reward`` and ``group``.
    file
        Prompts, with the columns that the reward wants.
    share
        Of the log's prompts, to be held out where there is no file.
    most
        Prompts at most.

    Raises
    ------
    InputError
        When the reward does not score logged answers as the log does.
    """
    inputs = job.inputs
    if inputs.reward is not None:
        if inputs.data is None:
            raise InputError("--reward scores answers to your own prompts: give --data with the column prompt")
        reward = verifier(inputs.reward)
        rows = list(read(job.data))[: inputs.limit]
        prompts = _by_group(rows, inputs.reward_column)
        _check_scale(job, log, prompts, reward)
        if file is not None:
            found = read(file)
            require_columns(found, ["prompt"], file)
            return log, Validation(list(found)[:most], reward)
        held = _held_out(len(prompts), share, most, job.run.seed)
        if held is None:
            return log, None
        return log.select(~torch.isin(log["group"], held)), Validation([prompts[i] for i in held.tolist()], reward)
    if file is not None:
        raise InputError("answers to validation prompts need a score: give --reward")
    if inputs.data is not None or job.task is None:
        return log, None
    logged = {str(row["prompt"]) for row in read(embedded_log())}
    records = _other_problems(job, job.task, logged, most)
    plain = task_reward(job.task)
    return log, Validation(records, signed(plain) if float(log["reward"].min()) < 0 else plain)


def _by_group(rows: Sequence[Record], reward_column: str) -> list[Record]:
    """The first record of each prompt in order of appearance, as the log numbers them, without what was answered."""
    found: dict[str, Record] = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if name not in {*_OF_ANSWERS, reward_column}}
        found.setdefault(str(row["prompt"]), kept)
    return list(found.values())


def _held_out(many: int, share: float, most: int, seed: int) -> Tensor | None:
    count = min(most, max(1, round(share * many)))
    if many < 2:
        return None
    return torch.randperm(many, generator=generator(seed, "validation"))[:count].sort().values


def _other_problems(job: Job, task: Task, logged: set[str], most: int) -> list[Record]:
    for count in (most + len(logged), most):
        try:
            problems = task.problems(count, job.run.seed, "train")
        except InputError:
            continue
        return [as_record(problem) for problem in job.asked(problems) if problem.prompt not in logged][:most]
    return []


def _check_scale(job: Job, log: Sequences, prompts: Sequence[Record], reward: Reward) -> None:
    part = log.select(slice(0, _CHECKED))
    asked = [prompts[int(group)] for group in part["group"].tolist()]
    assert callable(reward)
    prompts_asked = [row["prompt"] for row in asked]
    again = score(reward, prompts_asked, part.texts(job.tokenizer), columns=shared_columns(asked))
    logged, everything = part["reward"].float(), log["reward"]
    spread = float(everything.max() - everything.min())
    if float((again - logged).abs().mean()) > max(0.1 * spread, 1e-6):
        raise InputError(
            f"--reward {job.inputs.reward} gives the first {len(part)} logged answers {float(again.mean()):g} on "
            f"average, the log's column {job.inputs.reward_column!r} {float(logged.mean()):g}: a value is compared "
            "with a reward, so both must be of one kind; score the log with the same reward"
        )


class Selecting:
    """A source that has the policy answer validation prompts every so many steps, and keeps its best weights.

    Answers are greedy. Part of a run's state.

    Parameters
    ----------
    source
        Where batches come from.
    model
        The policy.
    tokenizer
        Of the model.
    validation
        The prompts and their reward.
    every
        Steps between two looks; the first is before the first step.
    max_new_tokens
        Longest answer, in tokens.
    """

    def __init__(
        self, source: Source, model: nn.Module, tokenizer: Any, validation: Validation, every: int, max_new_tokens: int
    ) -> None:
        if every < 1:
            raise InputError(f"the steps between two looks at the validation prompts must be at least 1, not {every}")
        self.source, self.model, self.validation, self.every = source, model, validation, every
        greedy = Sampling(samples=1, top_k=1, max_new_tokens=max_new_tokens)
        self.asker = Asker(model, tokenizer, validation.reward, greedy)
        self.looked, self.best_step, self.best = -1, -1, float("-inf")
        self.weights: dict[str, Tensor] = {}
        self.metrics: dict[str, float] = {}

    def rows(self) -> int:
        """See :class:`thrifty.align.learning.Source`."""
        return self.source.rows()

    def batch(self, step: int) -> Sequences:
        """The source's batch, after a look at the model where it is time."""
        if step % self.every == 0:
            self.look(step)
        return self.source.batch(step)

    def look(self, step: int) -> None:
        """Answers the validation prompts with the model as it is after ``step`` steps, once."""
        if step <= self.looked:
            return
        self.looked = step
        reward = float(self.asker.ask(self.validation.records, step)["reward"].mean())
        self.metrics = {**self.source.metrics, "validation_reward": reward}
        _log.info("step %d: validation reward %.4g", step, reward)
        if reward > self.best:
            self.best, self.best_step = reward, step
            self.weights = {name: p.detach().cpu().clone() for name, p in self._trained()}

    def restore_best(self) -> None:
        """Gives the model its best weights."""
        with torch.no_grad():
            for name, parameter in self._trained():
                parameter.copy_(self.weights[name])

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and the best weights."""
        numbers = {"looked": self.looked, "best_step": self.best_step, "best": self.best}
        return {**numbers, "metrics": dict(self.metrics), "weights": dict(self.weights)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that :meth:`state_dict` gave."""
        self.looked, self.best_step, self.best = state["looked"], state["best_step"], state["best"]
        self.metrics, self.weights = dict(state["metrics"]), dict(state["weights"])
