"""Training on logged sequences, on sequences that the policy samples itself, or in rounds of both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from thrifty.align.asking import Asker, Reward, Sampling, as_records
from thrifty.align.base import NothingToLearnError, Objective, Training
from thrifty.align.learning import Logged, Source, learn
from thrifty.align.reference import Reference, column_of_logps, values_after, with_behaviour_logps
from thrifty.align.rollouts import History, Rollouts, as_tree
from thrifty.core import processes
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled, Stateful
from thrifty.core.run import Run
from thrifty.lm.sampler import Sampler
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")


def train(
    model: Any,
    objective: Objective,
    data: Sequences | Sequence[Any],
    run: Run,
    training: Training | None = None,
    *,
    tokenizer: Any = None,
    reward: Reward | None = None,
    sampling: Sampling | None = None,
    samples: int | None = None,
    reference: Any = None,
    sampler: Sampler | None = None,
    history: History | None = None,
    save_every: int | None = 50,
) -> Any:
    """Trains a language model in place, on logged sequences or on answers that it samples itself; resumable.

    Parameters
    ----------
    model
        Any causal language model of Hugging Face's kind, adapters included.
    objective
        A method of the room, such as ``TOPR()`` or ``GRPO()``.
    data
        Logged: sequences with the columns that the method needs. Online: prompts (texts, messages, or records with
        ``prompt`` and what the reward wants to know), for which ``reward`` and ``tokenizer`` must be given.
    run
        Where metrics and checkpoints go.
    training
        How long and how fast; the method's own when ``None``. Online, an epoch is a pass over the prompts, and
        ``batch_size`` is not used: ``sampling`` says how many answers a step has.
    tokenizer
        Of the model; for online training.
    reward
        Scores completions: ``reward(prompts, completions)``, TRL's signature, or a
        :class:`~thrifty.align.asking.Worth`.
    sampling
        How answers are sampled, and how often a rollout is learnt from.
    samples
        Answers to each prompt, in place of ``sampling``'s.
    reference
        A model to be compared with where the method has a reference; by default the model as it is now (with
        adapters: with the adapters off).
    sampler
        What samples, such as :class:`thrifty.lm.sampler.VLLMSampler`; this model when ``None``.
    history
        Takes each prompt's accuracy in each epoch.
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
    RunError
        When the reward function fails.
    """
    training = training or objective.training
    model.to(run.device)
    critic = objective.critic(model)
    values = None if critic is None else partial(values_after, critic.to(run.device))
    source: Source
    state: dict[str, Stateful] = {}
    if isinstance(data, Sequences):
        source, steps = _logged(model, objective, data, run, training, reference, values)
    else:
        if reward is None:
            raise InputError("prompts need a reward that scores what the model answers: give reward=...")
        chosen = sampling or Sampling()
        chosen = chosen if samples is None else replace(chosen, samples=samples)
        asker = Asker(model, tokenizer, reward, chosen, sampler)
        wanted = Reference(model, reference) if "reference_logps" in objective.needs() else None
        asking = Rollouts(
            asker,
            as_records(data),
            objective,
            run.seed,
            run.device,
            reference=wanted,
            critic=values,
            history=history,
        )
        rollouts = max(1, round(training.epochs * len(asking.records) / asking.order.batch_size))
        steps = rollouts * chosen.updates_per_rollout
        source, state = asking, {"rollouts": asking}
    learn(model, objective, source, run, training, steps, critic=critic, state=state, save_every=save_every)
    return model


def _logged(
    model: Any, objective: Objective, data: Sequences, run: Run, training: Training, reference: Any, values: Any
) -> tuple[Logged, int]:
    if not len(data):
        raise InputError("there is no sequence to train on: the data set is empty")
    needs = objective.needs()
    if "behaviour_logps" in needs:
        data = with_behaviour_logps(model, data, run.device, getattr(objective, "temperature", 1.0))
    if "reference_logps" in needs and "reference_logps" not in data.columns:
        logps = column_of_logps(Reference(model, reference).logps, data, run.device)
        data = data.with_columns(reference_logps=logps)
    if values is not None and "values" in needs and "values" not in data.columns:
        data = data.with_columns(values=column_of_logps(values, data, run.device))
    prepared = objective.prepare(data)
    rows = objective.rows_per_example
    source = Logged(prepared, min(training.batch_size, len(prepared)), run.seed, rows)
    return source, training.steps(len(prepared))


def iterate(
    model: Any,
    tokenizer: Any,
    objective: Objective,
    prompts: Sequence[Any],
    reward: Reward,
    run: Run,
    *,
    iterations: int,
    sampling: Sampling | None = None,
    training: Training | None = None,
    reference: Any = None,
    sampler: Sampler | None = None,
) -> Any:
    """Rounds of sampling from the present policy, scoring, and training on what was sampled.

    Every round is a stage of the run, with an optimizer of its own, and its data set counts as logged by the policy
    at its start. A round's answers are kept in its stage, so that a resumed run samples nothing twice. A round whose
    answers leave nothing to learn from is skipped. The run's own metrics have a line for each round: the mean
    ``reward``, the ``temperature`` and what the method measures.

    Parameters
    ----------
    model, tokenizer
        A causal language model and its tokenizer; trained in place.
    objective
        A method of the room.
    prompts
        What to answer, as for :func:`train`. Each round asks the next ``sampling.prompts_per_rollout`` of them, in an
        order that the seed decides.
    reward
        Scores completions.
    run
        Every round is a stage of it.
    iterations
        Number of rounds.
    sampling
        How answers are sampled; ``updates_per_rollout`` and ``passes`` are not used, as ``training`` says how long to
        train.
    training
        As for :func:`train`, for each round.
    reference, sampler
        As for :func:`train`.

    Raises
    ------
    RunError
        When the reward function fails, or returns the wrong number of scores, or one that is not finite.
    """
    records = as_records(prompts)
    sampling = sampling or Sampling()
    order = Shuffled(len(records), min(sampling.prompts_per_rollout, len(records)), run.seed, last="fill")
    asker = Asker(model, tokenizer, reward, sampling, sampler)
    compared = Reference(model, reference) if "reference_logps" in objective.needs() else None
    model.to(run.device)
    for iteration in range(iterations):
        stage = run.stage(f"iteration-{iteration + 1}")
        file = stage.directory / "answers.safetensors"
        if not any(processes.gather(file.exists())):
            asked = [records[i] for i in order(iteration).tolist()]
            answers = asker.ask(asked, stage.seed)
            if compared is not None:
                logps = column_of_logps(lambda part: compared.logps(part, sampling.temperature), answers, run.device)
                answers = answers.with_columns(reference_logps=logps)
            measured = {"reward": float(answers["reward"].mean()), "temperature": sampling.temperature}
            run.log(iteration, **measured, **objective.measured(answers))
            if run.main:
                save_tree(file, as_tree(answers))
            processes.gather(None)  # nobody reads before it is written
        data = Sequences(**load_tree(file))
        _log.info("round %d of %d: mean reward %.3f", iteration + 1, iterations, float(data["reward"].mean()))
        try:
            train(model, objective, data, stage, training)
        except NothingToLearnError as error:
            _log.warning("round %d of %d teaches nothing and is skipped: %s", iteration + 1, iterations, error)
    return model
