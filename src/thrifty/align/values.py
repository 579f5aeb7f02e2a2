"""Values for a log: what a model earns itself on each prompt, learnt from its own scored answers."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from thrifty.align.asking import Asker, Sampling
from thrifty.align.prompt_value import (
    HeadKind,
    PromptValueHead,
    fit_value_head,
    mean_rewards,
    prompt_states,
    prompt_values,
)
from thrifty.align.rollouts import as_tree
from thrifty.align.validation import Validation
from thrifty.core import processes
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")
_FEW = 32  # validation prompts below which a value is said to be rough


@dataclass(frozen=True)
class ValueSettings:
    """How values are learnt.

    Parameters
    ----------
    kind
        Of the head.
    epochs
        Passes over the validation prompts.
    learning_rate
        Of the head.
    max_value, min_value
        The largest and the smallest reward there can be; ``None`` for those that were seen.
    """

    kind: HeadKind = "mlp"
    epochs: int = 10
    learning_rate: float = 1e-3
    max_value: float | None = None
    min_value: float | None = None


def with_values(
    model: Any,
    tokenizer: Any,
    data: Sequences,
    validation: Validation | None,
    run: Run,
    settings: ValueSettings | None = None,
    *,
    max_new_tokens: int = 128,
) -> tuple[Sequences, dict[str, float]]:
    """A log with a column ``value``: what the model as it is now is expected to earn on each prompt.

    The model answers each validation prompt once, at temperature 1; a head on the frozen states of the prompts learns
    the scores. Its weights, the answers, and the log's rewards, values and advantages are kept in the run's stage
    ``value``, so that a run that goes on samples nothing twice.

    Parameters
    ----------
    model, tokenizer
        The reference; not changed.
    data
        Logged answers with ``reward [N]`` and ``group [N]``. Those that have a ``value`` keep it.
    validation
        Prompts and their reward; without it a prompt's value is the mean of its logged rewards (of all where it has
        one answer), and that is said.
    run
        Gets the stage.
    settings
        How values are learnt.
    max_new_tokens
        Longest answer, in tokens.

    Returns
    -------
    tuple
        The log with its values, and what to tell of them.

    Raises
    ------
    InputError
        When a reward lies outside of ``min_value`` and ``max_value``.
    RunError
        When the reward fails.
    """
    settings, reward = settings or ValueSettings(), data["reward"].float()
    if "value" in data.columns:
        _log.info("the log has the column value, which is used as it is")
        return data, {}
    if validation is None or not len(validation.records):
        _log.warning(
            "nothing scores new answers (give --reward, which must score as the log does), so a prompt's value is the "
            "mean of its logged rewards, or of all where it has one answer"
        )
        return data.with_columns(value=mean_rewards(reward, data["group"])), {}
    if len(validation.records) < _FEW:
        _log.warning("a value learnt from %d validation prompts is rough: give more", len(validation.records))
    _bounds(reward, settings)  # before anything is sampled
    stage = run.stage("value")
    answers = _answers(model, tokenizer, validation, stage, max_new_tokens)
    fresh = answers["reward"].float()
    low, high = _bounds(torch.cat([reward, fresh]), settings)
    states = prompt_states(model, answers, run.device)
    head = PromptValueHead(states[0].shape[1], settings.kind, max_value=high, min_value=low)
    errors = fit_value_head(
        head, states, fresh, epochs=settings.epochs, learning_rate=settings.learning_rate, seed=stage.seed
    )
    value = prompt_values(head, model, data, run.device)
    stage.latest()  # takes back what an earlier life of the run has logged
    for epoch, error in enumerate(errors):
        stage.log(epoch, value_error=error)
    if stage.main:
        save_tree(stage.directory / "value_head.safetensors", dict(head.state_dict()))
        save_tree(stage.directory / "values.safetensors", _columns(reward, value))
    _log.info("values: %.3g on average, squared error %.3g", float(value.mean()), min(errors))
    told = {"reference_reward": float(fresh.mean()), "value": float(value.mean()), "value_error": min(errors)}
    return data.with_columns(value=value), told


def _columns(reward: Tensor, value: Tensor) -> dict[str, Tensor]:
    return {"reward": reward, "value": value, "advantage": reward - value}


def _answers(model: Any, tokenizer: Any, validation: Validation, stage: Run, max_new_tokens: int) -> Sequences:
    file = stage.directory / "answers.safetensors"
    if not any(processes.gather(file.exists())):
        sampling = Sampling(samples=1, max_new_tokens=max_new_tokens)
        answers = Asker(model, tokenizer, validation.reward, sampling).ask(validation.records, stage.seed)
        if stage.main:
            save_tree(file, as_tree(answers))
        processes.gather(None)  # nobody reads before it is written
    return Sequences(**load_tree(file))


def _bounds(rewards: Tensor, settings: ValueSettings) -> tuple[float, float]:
    low, high = float(rewards.min()), float(rewards.max())
    for name, bound, wrong in (
        ("max_value", settings.max_value, settings.max_value is not None and high > settings.max_value),
        ("min_value", settings.min_value, settings.min_value is not None and low < settings.min_value),
    ):
        if wrong:
            raise InputError(f"rewards from {low:g} to {high:g} do not fit into {name} {bound:g}: give another")
    low = low if settings.min_value is None else settings.min_value
    high = high if settings.max_value is None else settings.max_value
    return low, high if high > low else low + 1.0
