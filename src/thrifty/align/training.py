"""Training on logged sequences, once or in rounds of sampling, scoring and training."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from thrifty.align.base import Objective, Training
from thrifty.core import processes
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError, RunError
from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.run import Run
from thrifty.core.schedules import warmup_constant
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")
Reward = Callable[[list[str], list[str]], Sequence[float]]
"""``reward(prompts, completions)``: one score a completion."""


def train(
    model: PreTrainedModel,
    objective: Objective,
    data: Sequences,
    run: Run,
    training: Training | None = None,
    *,
    save_every: int | None = 50,
) -> PreTrainedModel:
    """Trains a language model in place on logged sequences; resumable.

    Parameters
    ----------
    model
        Any causal language model of Hugging Face's kind, adapters included.
    objective
        A method of the room, such as ``TOPR()``.
    data
        Sequences with the columns that the method needs.
    run
        Where metrics and checkpoints go.
    training
        How long and how fast; the method's own when ``None``.
    save_every
        Steps between checkpoints; ``None`` for none.

    Returns
    -------
    PreTrainedModel
        ``model``.

    Raises
    ------
    InputError
        When the data are empty or lack what the method needs.
    """
    training = training or objective.training
    if not len(data):
        raise InputError("there is no sequence to train on: the data set is empty")
    prepared = objective.prepare(data)
    batch = min(training.batch_size, len(prepared))
    parts = _parts(batch, training.micro_batch_size)
    order = Shuffled(len(prepared), batch, run.seed, last="fill")
    tokens = prepared.response_mask.sum(1)
    counts = tokens if objective.mean_over == "tokens" else torch.ones_like(tokens)

    def part_of(index: int) -> tuple[Tensor, float]:
        """Rows of a part of a step, and what its mean weighs in the step's."""
        step = order(index // parts)
        rows = step.tensor_split(parts)[index % parts]
        return rows, float(counts[rows].sum() / counts[step].sum().clamp(min=1))

    def loss(net: nn.Module, part: tuple[Tensor, float]) -> Loss:
        rows, weight = part
        found = objective.loss(net, prepared.select(rows).trim().to(run.device))
        return Loss(found.value * weight, found.metrics)

    fit(
        loss,
        model,
        part_of,
        training.build_optimizer(model),
        run,
        training.steps(len(prepared)),
        clip_norm=training.clip_norm,
        accumulate=parts,
        combine="sum",
        schedule=warmup_constant(training.warmup_steps) if training.warmup_steps else None,
        save_every=save_every,
    )
    return model


def _parts(batch: int, most: int) -> int:
    """Into how many parts of at most ``most`` rows a step's batch is cut, as many for each process."""
    world = processes.world()
    parts = math.ceil(batch / (most * world)) * world
    if parts > batch:
        raise InputError(f"a batch of {batch} can't be dealt out to {world} processes: give a larger --batch-size")
    return parts


def iterate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    prompts: Sequence[str],
    reward: Reward,
    run: Run,
    *,
    iterations: int,
    samples: int,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    training: Training | None = None,
) -> PreTrainedModel:
    """Rounds of sampling from the present policy, scoring, and training on what was sampled.

    Every round's data set counts as logged by the policy at its start. A round's answers are kept in its stage, so
    that a resumed run samples nothing twice.

    Parameters
    ----------
    model, tokenizer
        A causal language model and its tokenizer; trained in place.
    objective
        A method of the room.
    prompts
        What to answer.
    reward
        Scores completions.
    run
        Every round is a stage of it.
    iterations
        Number of rounds.
    samples
        Answers to each prompt in a round.
    max_new_tokens
        Longest answer, in tokens.
    temperature
        Of the sampling.
    training
        As for :func:`train`, for each round.

    Raises
    ------
    RunError
        When the reward function returns the wrong number of scores, or one that is not finite.
    """
    for iteration in range(iterations):
        stage = run.stage(f"iteration-{iteration + 1}")
        file = stage.directory / "answers.safetensors"
        processes.on_main(
            partial(_answer, model, tokenizer, prompts, reward, stage, file, samples, max_new_tokens, temperature)
        )
        data = _kept(file)
        share = float((data["reward"] > 0).float().mean())
        _log.info("round %d of %d: %.0f%% of %d answers are right", iteration + 1, iterations, 100 * share, len(data))
        train(model, objective, data, stage, training)
    return model


def _answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    reward: Reward,
    stage: Run,
    file: Path,
    samples: int,
    max_new_tokens: int,
    temperature: float,
) -> None:
    """Samples answers and keeps them with their scores, unless an earlier life of the run did."""
    if file.exists():
        return
    answers = sample(
        model,
        tokenizer,
        list(prompts),
        n=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        generator=stage.generator("answers"),
    )
    rewards = _scored(reward, [prompts[i] for i in answers["group"].tolist()], answers.texts(tokenizer))
    _keep(file, answers.with_columns(reward=torch.tensor(rewards)))


def _scored(reward: Reward, prompts: list[str], completions: list[str]) -> list[float]:
    scores = [float(score) for score in reward(prompts, completions)]
    if len(scores) != len(completions):
        raise RunError(f"the reward function returned {len(scores)} scores for {len(completions)} completions")
    for prompt, score in zip(prompts, scores, strict=True):
        if not math.isfinite(score):
            raise RunError(f"the reward function returned {score} for a completion of the prompt {prompt[:80]!r}")
    return scores


def _keep(file: Path, data: Sequences) -> None:
    save_tree(
        file,
        {
            "input_ids": data.input_ids,
            "attention_mask": data.attention_mask,
            "response_mask": data.response_mask,
            "columns": dict(data.columns),
        },
    )


def _kept(file: Path) -> Sequences:
    return Sequences(**load_tree(file))


@torch.no_grad()
def with_behaviour_logps(model: PreTrainedModel, data: Sequences, run: Run, batch_size: int = 16) -> Sequences:
    """Adds ``behaviour_logps`` where the log has none, as if the model given had sampled the answers.

    Parameters
    ----------
    model
        The model before training.
    data
        Logged sequences; given back as they are when they have the column.
    run
        Says which device is used.
    batch_size
        Sequences in one forward pass.
    """
    if "behaviour_logps" in data.columns:
        return data
    _log.info("the log has no behaviour_logps: the model given is taken for the one that answered")
    model.to(run.device)
    logps = torch.zeros(data.input_ids.shape)
    for start in range(0, len(data), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(data)))
        part = token_logps(model, data.select(indices).to(run.device))
        logps[indices] = part.float().cpu()
    return data.with_columns(behaviour_logps=logps)
