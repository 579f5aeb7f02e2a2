"""The comparison on a real model's own logged answers to small arithmetic problems.

SmolLM2-135M-Instruct answered each problem several times at temperature 1; a verifier scored the answers +1 or -1.
Every arm starts from the same model, sees the same log, and gets as many optimizer steps of as many answers at a
learning rate picked from the same grid.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from thrifty.align.adapter import train_last_layers
from thrifty.align.base import Objective, Training
from thrifty.align.evaluate import Accuracy, evaluate
from thrifty.align.log import LONGEST_ANSWER, as_logged, embedded_log, read_log
from thrifty.align.prompt_value import mean_rewards
from thrifty.align.sft import SFT, naive_reinforce, truncated_importance_sampling
from thrifty.align.topr import TOPR
from thrifty.align.training import train
from thrifty.core.method import Task
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.data.tasks import Problem, arithmetic
from thrifty.lm.load import load_lm
from thrifty.lm.sequences import Sequences

MODEL = "smollm2-135m-instruct"
LEARNING_RATES = {"TOPR": 1e-4, "supervised": 3e-4, "naive": 3e-5}
"""The best of 3e-5, 1e-4 and 3e-4 for each arm, by accuracy on 120 training problems that are not in the log."""
TRAINED_LAYERS = 10
"""Of 30: a third of the backward pass of all of them."""
BEST = LEARNING_RATES["TOPR"]
POSITIVE_FRACTION = 0.15
"""Middle of the range that the paper finds best."""


@dataclass(frozen=True)
class Setting:
    """What all arms of one seed share.

    Parameters
    ----------
    log
        Logged answers with ``reward`` and ``behaviour_logps``.
    tokenizer
        Of the model.
    problems
        Held-out problems.
    samples
        Answers to each of them at temperature 1.
    training
        Budget of each arm.
    directory
        Where runs go.
    seed
        Seed of data order and sampling.
    """

    log: Sequences
    tokenizer: PreTrainedTokenizerBase
    problems: list[Problem]
    samples: int
    training: Training
    directory: Path
    seed: int


def prepare(seed: int, quick: bool, directory: Path) -> Setting:
    """The log, the held-out problems and the budget of one seed."""
    _, tokenizer = load_lm(MODEL)
    log = read_log(str(embedded_log()), tokenizer)
    # For methods that compare an answer with what its prompt is worth: what was earned on it.
    log = log.with_columns(value=mean_rewards(log["reward"], log["group"]))
    steps, batch = (2, 8) if quick else (20, 16)
    return Setting(
        log=log,
        tokenizer=tokenizer,
        problems=as_logged(arithmetic().problems(20 if quick else 120, derive_seed(seed, "problems"), "test")),
        samples=1 if quick else 3,
        training=Training(batch_size=batch, micro_batch_size=batch, epochs=steps * batch / len(log)),
        directory=directory,
        seed=seed,
    )


def answer_after(method: Objective | None, setting: Setting, learning_rate: float = BEST) -> tuple[Accuracy, float]:
    """Trains a fresh copy of the model, and lets it answer.

    Parameters
    ----------
    method
        A method of the room; ``None`` leaves the model as it is.
    setting
        From :func:`prepare`.
    learning_rate
        Of this arm.

    Returns
    -------
    tuple
        What the answers came to, and the seconds of training.
    """
    arm = zlib.crc32(repr((method, learning_rate)).encode())
    name = "untrained" if method is None else f"{type(method).__name__}-{arm:x}"
    with Run(setting.directory / name, seed=setting.seed, device="cpu", overwrite=True) as run:
        model, _ = load_lm(MODEL, dtype=run.dtype, device=run.device)
        train_last_layers(model, TRAINED_LAYERS)
        started = time.perf_counter()
        if method is not None:
            budget = setting.training.as_many_steps(len(setting.log), len(method.prepare(setting.log)))
            train(model, method, setting.log, run, replace(budget, learning_rate=learning_rate), save_every=None)
        seconds = time.perf_counter() - started
    measured = evaluate(
        model,
        setting.tokenizer,
        arithmetic(),
        setting.problems,
        samples=setting.samples,
        max_new_tokens=LONGEST_ANSWER,
        seed=derive_seed(setting.seed, "answers"),
    )
    return measured, seconds


def measure(method: Objective | None, setting: Setting, learning_rate: float = BEST) -> Mapping[str, float]:
    """Accuracy, share of invalid answers, and seconds of training."""
    measured, seconds = answer_after(method, setting, learning_rate)
    return {
        "accuracy": measured.accuracy.mean,
        "invalid answers": measured.invalid_share.mean,
        "training seconds": seconds,
    }


def default_topr() -> TOPR:
    """TOPR at the paper's best share of positives."""
    return TOPR(positive_fraction=POSITIVE_FRACTION)


ARITHMETIC = Task(
    summary="SmolLM2-135M-Instruct's own logged answers to arithmetic problems; asked at temperature 1",
    gives=frozenset({"language-model", "prompts", "rewards"}),
    prepare=prepare,
    evaluate=measure,
    baselines={
        "supervised on right answers": lambda setting: measure(SFT(), setting, LEARNING_RATES["supervised"]),
        "naive REINFORCE": lambda setting: measure(naive_reinforce(), setting, LEARNING_RATES["naive"]),
        "truncated importance sampling": lambda setting: measure(truncated_importance_sampling(), setting),
        "untrained": lambda setting: measure(None, setting),
    },
    metrics=("accuracy", "-invalid answers", "-training seconds"),
    variants={f"topr, {POSITIVE_FRACTION:.0%} positive": default_topr},
)
