"""How well a language model answers problems that can be checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from thrifty.align.reference import column_of_logps
from thrifty.core.statistics import Interval, share_interval
from thrifty.data.tasks import Problem, Task, parse_integer
from thrifty.lm.backbone import evaluating
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences


@dataclass(frozen=True)
class Accuracy:
    """Shares over sampled or greedy answers, with 95% intervals.

    Parameters
    ----------
    right, invalid
        Number of right answers, and of those without any whole number in them.
    answers
        Number of answers.
    """

    right: int
    invalid: int
    answers: int

    @property
    def accuracy(self) -> Interval:
        """Share of right answers."""
        return share_interval(self.right, self.answers)

    @property
    def invalid_share(self) -> Interval:
        """Share of answers that hold no answer."""
        return share_interval(self.invalid, self.answers)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    problems: Sequence[Problem],
    *,
    samples: int = 1,
    temperature: float = 1.0,
    greedy: bool = False,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> Accuracy:
    """Answers the problems and counts what is right and what is no answer.

    Parameters
    ----------
    model, tokenizer
        A causal language model and its tokenizer.
    task
        Judges the answers; right is a score of 1.
    problems
        What is asked.
    samples
        Sampled answers to each problem; one when ``greedy``.
    temperature
        Of the sampling.
    greedy
        Take the likeliest token each time instead.
    max_new_tokens
        Longest answer, in tokens.
    seed
        Of the sampling.
    """
    count = 1 if greedy else samples
    answers = sample(
        model,
        tokenizer,
        [problem.prompt for problem in problems],
        n=count,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        greedy=greedy,
        generator=torch.Generator().manual_seed(seed),
    )
    texts = answers.texts(tokenizer)
    asked = [problem for problem in problems for _ in range(count)]
    right = sum(task.score(problem, text) >= 1.0 for problem, text in zip(asked, texts, strict=True))
    invalid = sum(parse_integer(text) is None for text in texts)
    return Accuracy(right, invalid, len(texts))


def likelihoods(
    model: Any, data: Sequences, kinds: Mapping[str, Bool[Tensor, " N"]], device: torch.device, most: int = 32
) -> dict[str, float]:
    """Mean log-probability of a token of each kind of answer, over the first few of the kind; a part of a table's row.

    Parameters
    ----------
    model
        On the device.
    data
        Sequences with answers of several kinds.
    kinds
        What each kind is called, and which rows are of it.
    device
        Where the model is.
    most
        Rows of each kind.
    """
    found = {}
    for name, rows in kinds.items():
        part = data.select(rows.nonzero()[:most, 0])
        if len(part):
            with evaluating(model):
                logps = column_of_logps(lambda batch: token_logps(model, batch), part, device)
            found[f"log-probability of {name} answers"] = float(
                sequence_logps(logps, part.response_mask, "mean").mean()
            )
    return found
