"""What a method of the room gets from the command: a loaded model, the user's data, and how they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from thrifty.align.adapter import merged, train_last_layers, with_lora
from thrifty.align.asking import Record, Reward, Sampling
from thrifty.align.base import Objective, Training, overridden
from thrifty.align.evaluate import Accuracy, evaluate
from thrifty.align.log import EMBEDDED_LOG, as_logged, read_log
from thrifty.align.training import train
from thrifty.core import processes
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.data.readers import read, require_columns
from thrifty.data.tasks import Problem, Task
from thrifty.data.tasks import task as find_task
from thrifty.lm.load import load_lm
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.records import PAIR, from_records
from thrifty.lm.sequences import Sequences
from thrifty.reward.verifiers import task_reward, verifier
from thrifty.select.history import AccuracyHistory


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        A causal language model: a local directory, a Hugging Face hub id, or ``smollm2-135m-instruct``.
    data
        The method's data as JSONL, Parquet, CSV or a saved ``datasets`` directory; ``thrifty show ID`` says which
        columns. By default what comes with the package for the method.
    reward_column
        In logged answers, the column that holds the score of each.
    reward
        Online, what scores an answer: a verifier's name (``math``, ``exact``, ``number``, ``choice``,
        ``regex:PATTERN``, ``python:MODULE:FUNCTION`` ...), which finds the right answer in the data's column
        ``answer``. By default the task's own judgement.
    task
        Problems whose answers can be checked, for the accuracy before and after and for online prompts
        (``arithmetic``, ``arithmetic:2``, ``reasoning-gym:chain_sum`` ...); ``none`` for no such problems. By default
        what fits the embedded data.
    problems
        How many held-out problems are asked.
    iterations
        Rounds of sampling answers, scoring and training, for the methods that can do without rounds; 0 trains on the
        data as they are.
    samples
        Answers to each prompt in a rollout or round; the method's own by default.
    prompts_per_rollout
        Prompts that are asked before the policy is updated; the method's own by default.
    max_new_tokens
        Longest sampled answer, in tokens.
    max_length
        Longest logged prompt and answer together, in tokens; longer ones are cut at the end.
    limit
        Use the first so many records (or training problems) only; all by default.
    lora_rank
        Train low-rank adapters of that rank instead of the weights; they are added to the weights in the end.
    trainable_layers
        Train only so many of the last layers, which takes less time and memory; all by default.
    gradient_checkpointing
        Keep no activations of a layer for the backward pass but its input: less memory, a third more time.
    activation_gib
        GiB for the activations of a forward pass; more is faster, as less is computed again in the backward pass.
    optimizer
        ``adamw`` or ``adafactor``; the method's own by default.
    learning_rate
        Of the optimizer. The methods' own are for models of billions of weights: the default here suits 135 million.
    batch_size
        Answers in one optimizer step; the method's own by default.
    micro_batch_size
        Answers in one forward pass; the method's own by default.
    epochs
        Passes over the data, for each round; the method's own by default.
    sampling_processes
        Of the processes that ``torchrun`` started, how many sample answers and do nothing else.
    """

    model: str = "smollm2-135m-instruct"
    data: str | None = None
    reward_column: str = "reward"
    reward: str | None = None
    task: str | None = None
    problems: int = 100
    iterations: int = 0
    samples: int | None = None
    prompts_per_rollout: int | None = None
    max_new_tokens: int = 64
    max_length: int = 1024
    limit: int | None = None
    lora_rank: int | None = None
    trainable_layers: int | None = None
    gradient_checkpointing: bool = False
    activation_gib: float | None = None
    optimizer: Literal["adamw", "adafactor"] | None = None
    learning_rate: float | None = 1e-5
    batch_size: int | None = None
    micro_batch_size: int | None = None
    epochs: float | None = None
    sampling_processes: int = 0


class Job:
    """One method's work on one user's inputs.

    Parameters
    ----------
    inputs
        What the user gave.
    run
        The job's directory, seed, device and precision.
    embedded
        The name of the data that the method takes where the user gives none.
    """

    def __init__(self, inputs: Inputs, run: Run, embedded: str = EMBEDDED_LOG) -> None:
        self.inputs, self.run = inputs, run
        self.data = embedded if inputs.data is None else inputs.data
        self.task = self._task(inputs)
        self.model, self.tokenizer = self.load()
        self.log: Sequences | None = None

    def _task(self, inputs: Inputs) -> Task | None:
        name = inputs.task
        if name is None and (inputs.data is None or inputs.iterations):
            name = "arithmetic"
        return None if name in {None, "none"} else find_task(str(name))

    def load(self, name: str | None = None) -> tuple[Any, Any]:
        """A model and its tokenizer, with the weights chosen that the user wants trained; by default the user's."""
        model, tokenizer = load_lm(name or self.inputs.model, dtype=self.run.dtype, device=self.run.device)
        return self.prepared(model), tokenizer

    def prepared(self, model: Any) -> Any:
        """A loaded model with the weights chosen that the user wants trained."""
        inputs = self.inputs
        if inputs.lora_rank is not None and inputs.trainable_layers is not None:
            raise InputError("lora_rank and trainable_layers exclude each other: give one")
        if inputs.lora_rank is not None:
            model = with_lora(model, inputs.lora_rank)
        train_last_layers(model, inputs.trainable_layers)
        if inputs.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if inputs.lora_rank is not None:
                model.enable_input_require_grads()
        return model

    def training(self, own: Training) -> Training:
        """How long and how fast: the method's own, with what the user gave."""
        return overridden(own, self.inputs)

    def sampling(self, own: Sampling) -> Sampling:
        """How answers are sampled: the method's own, with what the user gave."""
        names = ("samples", "prompts_per_rollout")
        changes = {name: getattr(self.inputs, name) for name in names if getattr(self.inputs, name) is not None}
        return replace(own, **changes, max_new_tokens=self.inputs.max_new_tokens)

    def logged(self) -> Sequences:
        """The user's log of answers with their scores (``prompt``, ``completion``, the reward's column)."""
        inputs = self.inputs
        self.log = read_log(
            self.data, self.tokenizer, reward=inputs.reward_column, max_length=inputs.max_length, limit=inputs.limit
        )
        return self.log

    def records(self, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The records of the user's data, which must have these columns."""
        records = read(self.data)
        require_columns(records, list(columns), self.data)
        return list(records)[: self.inputs.limit]

    def preferences(self, records: Sequence[Record], answers: Sequence[str] = PAIR) -> Sequences:
        """Preference records as sequences, one row for each of the named answers."""
        return from_records(records, self.tokenizer, max_length=self.inputs.max_length, answers=answers)

    def prompts(self) -> tuple[list[Record], Reward]:
        """Prompts to be answered, and what scores the answers: the task's training problems, or the user's data."""
        inputs = self.inputs
        if inputs.reward is not None:
            if inputs.data is None:
                raise InputError("--reward scores answers to your own prompts: give --data with the column prompt")
            return list(self.records(["prompt"])), verifier(inputs.reward)
        if self.task is None:
            raise InputError("answers are sampled to a task's problems or to your prompts: give --task, or --reward")
        found = self.asked(self.task.problems(inputs.limit or inputs.problems, self.run.seed, "train"))
        return [as_record(problem) for problem in found], task_reward(self.task)

    def online(
        self,
        objective: Objective,
        records: Sequence[Record],
        reward: Reward,
        sampling: Sampling,
        training: Training,
        stage: str = "train",
    ) -> AccuracyHistory:
        """Trains ``model`` online, as a stage, and writes each prompt's accuracies to ``history.jsonl``.

        Parameters
        ----------
        objective, records, reward, sampling, training
            As for :func:`thrifty.align.training.train`.
        stage
            Of the run.
        """
        history = AccuracyHistory()
        part = self.run.stage(stage)
        train(
            self.model,
            objective,
            records,
            part,
            training,
            tokenizer=self.tokenizer,
            reward=reward,
            sampling=sampling,
            history=history,
        )
        if self.run.main:
            history.save(part.directory / "history.jsonl", overwrite=True)
        return history

    def asked(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems in the words in which the embedded data asked them, where they are used."""
        return as_logged(problems) if self.inputs.data is None else list(problems)

    def compared(self, work: Callable[[], Any], prompt: Callable[[str], Any] | None = None) -> dict[str, Any]:
        """Measures before and after a piece of work on the model; a summary with both rows.

        Parameters
        ----------
        work
            Trains ``model``.
        prompt
            As for :meth:`measure`.
        """
        before = self.measure(prompt)
        work()
        return {"table": [{"model": "before"} | before, {"model": "after"} | self.measure(prompt)]}

    def measure(self, prompt: Callable[[str], Any] | None = None) -> dict[str, Any]:
        """Accuracy on held-out problems, and how likely logged answers are; a row of the table.

        Parameters
        ----------
        prompt
            What becomes of a problem's text before it is asked.
        """
        return processes.on_main(lambda: self._measured(prompt))

    def _measured(self, prompt: Callable[[str], Any] | None) -> dict[str, Any]:
        row: dict[str, Any] = {}
        if self.task is not None:
            asked = self.asked(self.task.problems(self.inputs.problems, self.run.seed, "test"))
            if prompt is not None:
                asked = [replace(problem, prompt=prompt(problem.prompt)) for problem in asked]
            longest = self.inputs.max_new_tokens
            found = evaluate(self.model, self.tokenizer, self.task, asked, max_new_tokens=longest, seed=self.run.seed)
            row |= accuracy_row(found)
        if self.log is not None:
            row |= _logps_row(self.model, self.log, self.run)
        return row

    def save(self) -> str:
        """Writes the trained model, with adapters added to the weights, to ``model`` in the run's directory."""
        folder = self.run.directory / "model"
        self.model = merged(self.model)
        if self.run.main:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
        return str(folder)


def as_record(problem: Problem) -> Record:
    """A problem as a record of a data set."""
    return {"prompt": problem.prompt, "answer": problem.answer, "id": problem.id}


def accuracy_row(measured: Accuracy) -> Mapping[str, str]:
    """Accuracy and share of invalid answers with their intervals, as text for a table."""
    named = {"accuracy": measured.accuracy, "invalid": measured.invalid_share}
    return {name: f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for name, i in named.items()}


@torch.no_grad()
def _logps_row(model: Any, data: Sequences, run: Run, most: int = 64) -> dict[str, float]:
    """Mean log-probability of a token of good and of bad logged answers, over the first few."""
    part = data.select(torch.arange(min(most, len(data)))).trim().to(run.device)
    logps = sequence_logps(token_logps(model, part), part.response_mask, reduction="mean")
    good = part["reward"] > 0
    return {
        f"log-probability of {name} answers": float(logps[which].mean())
        for name, which in (("good", good), ("bad", ~good))
        if which.any()
    }
