"""How the command runs a method of the room: load, read the log, train, evaluate, save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from thrifty.align.arithmetic import ARITHMETIC
from thrifty.align.base import Objective, overridden, train_last_layers
from thrifty.align.evaluate import Accuracy, evaluate
from thrifty.align.log import EMBEDDED_LOG, as_logged, read_log
from thrifty.align.training import iterate, train, with_behaviour_logps
from thrifty.core import processes
from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.data.tasks import Task
from thrifty.data.tasks import task as find_task
from thrifty.lm.load import load_lm
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        A causal language model: a local directory, a Hugging Face hub id, or ``smollm2-135m-instruct``.
    data
        Logged answers as JSONL, Parquet, CSV or a saved ``datasets`` directory, with the columns ``prompt``,
        ``completion`` and the reward's; ``arithmetic`` is a log of SmolLM2's own answers that comes with the package.
    reward_column
        The column that holds the score of each answer.
    task
        Problems whose answers can be checked, for the accuracy before and after (``arithmetic``, ``arithmetic:2``,
        ``reasoning-gym:chain_sum`` ...); ``none`` for no such problems. By default what fits the embedded log.
    problems
        How many held-out problems are asked.
    iterations
        Rounds of sampling answers to the task's training problems, scoring and training, instead of logged answers; 0
        trains on the log.
    samples
        Answers to each problem in a round.
    max_new_tokens
        Longest sampled answer, in tokens.
    max_length
        Longest logged prompt and answer together, in tokens; longer ones are cut at the end.
    limit
        Train on the first so many logged answers (or problems, with ``iterations``); all by default.
    trainable_layers
        Train only so many of the last layers, which takes less time and memory; all by default.
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
    """

    model: str = "smollm2-135m-instruct"
    data: str = EMBEDDED_LOG
    reward_column: str = "reward"
    task: str | None = None
    problems: int = 100
    iterations: int = 0
    samples: int = 4
    max_new_tokens: int = 64
    max_length: int = 1024
    limit: int | None = None
    trainable_layers: int | None = None
    optimizer: Literal["adamw", "adafactor"] | None = None
    learning_rate: float | None = 1e-5
    batch_size: int | None = None
    micro_batch_size: int | None = None
    epochs: float | None = None


def run(method: Objective, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Trains a model with a method of the room and measures it before and after.

    The trained model is saved to ``model`` in the run's directory and loads with ``from_pretrained``.
    """
    model, tokenizer = load_lm(inputs.model, dtype=run.dtype, device=run.device)
    train_last_layers(model, inputs.trainable_layers)
    problems_of = _task(inputs)
    data = None if inputs.iterations else _log(inputs, model, tokenizer, run)
    training = overridden(method.training, inputs)
    before = processes.on_main(lambda: _measure(model, tokenizer, problems_of, data, inputs, run))
    if data is not None:
        train(model, method, data, run.stage("train"), training)
    elif problems_of is None:
        raise InputError("--iterations samples answers to a task's problems: give --task")
    else:
        chosen = problems_of.problems(inputs.limit or inputs.problems, run.seed, "train")
        by_prompt = {problem.prompt: problem for problem in chosen}

        def reward(prompts: list[str], completions: list[str]) -> list[float]:
            judged = zip(prompts, completions, strict=True)
            return [1.0 if problems_of.score(by_prompt[p], c) >= 1 else -1.0 for p, c in judged]

        iterate(
            model,
            tokenizer,
            method,
            list(by_prompt),
            reward,
            run,
            iterations=inputs.iterations,
            samples=inputs.samples,
            max_new_tokens=inputs.max_new_tokens,
            training=training,
        )
    after = processes.on_main(lambda: _measure(model, tokenizer, problems_of, data, inputs, run))
    if run.main:
        model.save_pretrained(run.directory / "model")
        tokenizer.save_pretrained(run.directory / "model")
    return {"table": [{"model": "before"} | before, {"model": "after"} | after], "model": str(run.directory / "model")}


def _task(inputs: Inputs) -> Task | None:
    name = inputs.task
    if name is None and (inputs.data == EMBEDDED_LOG or inputs.iterations):
        name = "arithmetic"
    return None if name in {None, "none"} else find_task(str(name))


def _log(inputs: Inputs, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Run) -> Sequences:
    data = read_log(
        inputs.data, tokenizer, reward=inputs.reward_column, max_length=inputs.max_length, limit=inputs.limit
    )
    return with_behaviour_logps(model, data, run)


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task | None,
    data: Sequences | None,
    inputs: Inputs,
    run: Run,
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    if task is not None:
        asked = task.problems(inputs.problems, run.seed, "test")
        if inputs.data == EMBEDDED_LOG:
            asked = as_logged(asked)
        row |= accuracy_row(
            evaluate(model, tokenizer, task, asked, max_new_tokens=inputs.max_new_tokens, seed=run.seed)
        )
    if data is not None:
        row |= _logps_row(model, data, run)
    return row


def accuracy_row(measured: Accuracy) -> dict[str, str]:
    """Accuracy and share of invalid answers with their intervals, as text for a table."""
    named = {"accuracy": measured.accuracy, "invalid": measured.invalid_share}
    return {name: f"{i.mean:.3f} [{i.low:.3f}, {i.high:.3f}]" for name, i in named.items()}


@torch.no_grad()
def _logps_row(model: PreTrainedModel, data: Sequences, run: Run, most: int = 64) -> dict[str, float]:
    """Mean log-probability of a token of good and of bad logged answers, over the first few."""
    part = data.select(torch.arange(min(most, len(data)))).trim().to(run.device)
    logps = sequence_logps(token_logps(model, part), part.response_mask, reduction="mean")
    good = part["reward"] > 0
    return {
        f"log-probability of {name} answers": float(logps[which].mean())
        for name, which in (("good", good), ("bad", ~good))
        if which.any()
    }


ROOM = Room(inputs=Inputs, run=run, tasks={"arithmetic": ARITHMETIC}, parallel=True)
