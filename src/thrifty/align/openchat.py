"""OpenChat: Advancing Open-source Language Models with Mixed-Quality Data (arXiv 2309.11235): C-RLFT.

The four slots: conversations are logged, of sources of different quality; worth is that of the source; credit is the
same for all tokens that the assistant speaks; the loss is the weighted likelihood under the source's condition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import nn

from thrifty.align.arithmetic_answers import EXPERT, two_teachers
from thrifty.align.base import Objective, Training, check_choices
from thrifty.align.conditioned import ConditionedTemplate
from thrifty.align.evaluate import likelihoods
from thrifty.align.job import Job
from thrifty.align.log import as_logged
from thrifty.align.nll import Level, weighted_nll
from thrifty.align.sources import Said, parse_weights, source_of, weighted_sequences
from thrifty.align.training import train
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.data.tasks import arithmetic
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

Conditions = Literal["class", "source", "none"]
_EMBEDDED_PROBLEMS = 320


@register("openchat")
@dataclass(frozen=True)
class OpenChat(Objective):
    r"""Learns from conversations of mixed quality of which only the source is known, and answers like the best source.

    .. math::
        \pi^*(y|x,c) \propto \pi_c(y|x,c)\, e^{r_c/\beta}, \qquad
        L = -\frac{\sum_t w_t \log\pi_\theta(y_t | x, c, y_{<t})}{\sum_t w_t}, \quad w = e^{r_c/\beta}

    The source's class c is written into the roles of the prompt (``GPT4 User: ...``, ``GPT4 Assistant: ...``), each
    class has a weight, and the tuned model is always asked under the experts' condition: the chat template that is
    saved with it says so. The divergence is to the data's policy under the class, not to the base model, so nothing is
    sampled and no reference model is needed. The sum of weights is that of the whole step. Only ratios of weights
    matter.

    The ablations: ``other_weight=1`` is the condition only, ``condition="none"`` the weights only, both together
    supervised fine-tuning on everything, and ``condition="none", other_weight=0`` on the experts alone.

    Parameters
    ----------
    expert
        Names of the expert sources (in the data's column ``source``), separated by commas.
    other_weight
        Weight of all other sources beside the experts' 1; 0 leaves them out.
    alpha
        Reward of the other sources beside the experts' 1, for ``beta``.
    beta
        Temperature of the closed form: the others' weight is then :math:`e^{(\alpha-1)/\beta}` of the experts', and
        ``other_weight`` is not used.
    source_weights
        Weights of single sources, such as ``gpt-4=1,forum=0.02``; they come before the class's.
    condition
        ``class``: two conditions, of the experts and of all others; ``source``: the source's own name; ``none``.
    expert_condition, other_condition
        What is written before the roles of either class.
    level
        ``token``: every token of an answer has its weight; ``sequence``: the tokens of a message share it, so that
        each message counts the same whatever its length.
    unwanted
        Phrases separated by ``|``: assistant's messages that hold one are read and not learnt.
    rate_divisor
        What the learning rate of :func:`auto_learning_rate` is divided by, where ``--learning-rate None`` asks for it;
        the authors' code has 6 for Mistral, 5.5 for Gemma and 5.3 for Llama 3.

    Raises
    ------
    InputError
        When a weight or temperature is out of range.

    References
    ----------
    Wang et al., "OpenChat: Advancing Open-source Language Models with Mixed-Quality Data", ICLR 2024, arXiv
    2309.11235, section 3.
    """

    training: ClassVar[Training] = Training(
        learning_rate=6.7e-5,
        batch_size=128,
        epochs=5.0,
        weight_decay=0.1,
        warmup_ratio=0.05,
        schedule="cosine",
        final_ratio=0.1,
        betas=(0.9, 0.95),
        epsilon=1e-5,
    )
    embedded: ClassVar[str] = "two-teachers"

    expert: str = EXPERT
    other_weight: float = 0.1
    alpha: float = 0.1
    beta: float | None = None
    source_weights: str = ""
    condition: Conditions = "class"
    expert_condition: str = "GPT4"
    other_condition: str = "GPT3"
    level: Level = "token"
    unwanted: str = ""
    rate_divisor: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.beta is not None and not self.beta > 0:
            raise InputError(f"beta must be above 0, not {self.beta:g}")
        if not 0 <= self.other_weight < math.inf:
            raise InputError(f"other_weight must be 0 or more, not {self.other_weight:g}")
        if not self.rate_divisor > 0:
            raise InputError(f"rate_divisor must be above 0, not {self.rate_divisor:g}")
        if not self.experts:
            raise InputError("expert names no source: give the name of the best one")
        parse_weights(self.source_weights)

    @property
    def experts(self) -> tuple[str, ...]:
        """The expert sources."""
        return tuple(name.strip() for name in self.expert.split(",") if name.strip())

    def weight(self, source: str) -> float:
        """The weight of a source."""
        given = parse_weights(self.source_weights)
        if source in given:
            return given[source]
        if source in self.experts:
            return 1.0
        return self.other_weight if self.beta is None else class_weight(self.alpha, self.beta, best=1.0)

    def condition_of(self, source: str) -> str:
        """What is written before the roles of a source's conversations."""
        named = self.expert_condition if source in self.experts else self.other_condition
        return {"class": named, "source": source, "none": ""}[self.condition]

    @property
    def inference_condition(self) -> str:
        """What is written before the roles when the tuned model is asked: the condition of the first expert."""
        return self.condition_of(self.experts[0])

    def sequences(
        self, records: Iterable[Mapping[str, Any]], template: ConditionedTemplate, *, max_length: int | None = None
    ) -> Sequences:
        """Records as sequences under the conditions of their sources, with what :meth:`loss` needs.

        Parameters
        ----------
        records, template, max_length
            As for :func:`thrifty.align.sources.weighted_sequences`.

        Returns
        -------
        Sequences
            With ``weight [N, T]``, 0 where nothing is learnt, and ``expert [N]``.

        Raises
        ------
        InputError
            When a record has no source or no conversation, no record is an expert's, or nothing is to be learnt.
        """
        listed = list(records)
        sources = [source_of(record, number) for number, record in enumerate(listed, start=1)]
        there = ", ".join(sorted(set(sources))[:12])
        if not set(sources) & set(self.experts):
            raise InputError(f"no record is of an expert source ({self.expert}): give --expert, one of {there}")
        strange = sorted(set(parse_weights(self.source_weights)) - set(sources))
        if strange:
            raise InputError(f"source_weights names {strange[0]!r}, of which there is no record: there are {there}")
        return weighted_sequences(
            listed,
            template,
            [Said(self.condition_of(source), self.weight(source), source in self.experts) for source in sources],
            level=self.level,
            unwanted=self.unwanted,
            max_length=max_length,
        )

    def prepare(self, data: Sequences) -> Sequences:
        """The sequences of :meth:`sequences` as they are.

        Raises
        ------
        InputError
            When they have no weights.
        """
        data["weight"]
        return data

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The weighted mean over the step's tokens, with the plain mean of either class in this part."""
        logps = token_logps(model, batch)
        mask, nll = batch.response_mask, -logps.detach()
        value = weighted_nll(logps, mask, batch["weight"], denominator=whole["weight"].sum())
        metrics = {}
        for name, rows in (("expert_nll", batch["expert"].bool()), ("other_nll", ~batch["expert"].bool())):
            if rows.any():
                metrics[name] = nll[rows].sum() / mask[rows].sum().clamp(min=1)
        return Loss(value, metrics)

    def work(self, job: Job) -> dict[str, Any]:
        """Trains on the user's conversations, or on two teachers' answers to arithmetic problems.

        The model is asked through the chat template that is saved with it, and under the other class's condition too.
        """
        own = self.training
        if job.inputs.data is None:
            problems = as_logged(arithmetic().problems(job.inputs.limit or _EMBEDDED_PROBLEMS, job.run.seed, "train"))
            records = two_teachers(problems, job.run.seed)
            own = replace(own, batch_size=16, epochs=2.0)
        else:
            records = job.records(["source"])
        template = ConditionedTemplate(job.tokenizer)
        data = self.sequences(records, template, max_length=job.inputs.max_length)
        training = job.training(own)
        if job.inputs.learning_rate is None:
            supervised = float(data.response_mask.sum()) / len(data) * training.batch_size
            training = replace(training, learning_rate=auto_learning_rate(supervised, self.rate_divisor))
        table = [self._row("before", job, data)]
        train(job.model, self, data, job.run.stage("train"), training)
        template.install(job.model, self.inference_condition)
        table.append(self._row(_asked(self.inference_condition), job, data))
        if self.condition == "class":
            others = self.other_condition
            table.append({"model": _asked(others)} | job.measure(lambda text: template.prompt_ids(text, others)))
        return {"table": table, "condition": self.inference_condition, "learning_rate": training.learning_rate}

    @staticmethod
    def _row(name: str, job: Job, data: Sequences) -> dict[str, Any]:
        expert = data["expert"].bool()
        measured = likelihoods(job.model, data, {"expert": expert, "other": ~expert}, job.run.device)
        return {"model": name} | job.measure() | measured


def class_weight(reward: float, beta: float, best: float = 0.0) -> float:
    r""":math:`e^{(r_c - r_\text{best})/\beta}`: the weight of a class in the closed form.

    Parameters
    ----------
    reward
        r of the class: 1 for experts, below it for others.
    beta
        Temperature: weight of the divergence from the data's policy.
    best
        Subtracted from the reward; 1 makes the experts' weight 1, which changes nothing, as only ratios matter.
    """
    return math.exp((reward - best) / beta)


def beta_for_ratio(ratio: float, alpha: float = 0.1) -> float:
    r""":math:`\beta = (1 - \alpha) / \ln(\text{ratio})`: where experts weigh ``ratio`` times as much as the others."""
    return (1 - alpha) / math.log(ratio)


def auto_learning_rate(supervised_tokens: float, divisor: float = 1.0) -> float:
    r""":math:`3\cdot10^{-4} \sqrt{n / 4\cdot10^6} \,/\, d`: the learning rate for a batch of n learnt tokens.

    Parameters
    ----------
    supervised_tokens
        Tokens with a weight above 0 in one batch.
    divisor
        d: 1 for Llama 2; see ``rate_divisor``.
    """
    return 3e-4 * math.sqrt(supervised_tokens / 4e6) / divisor


def _asked(condition: str) -> str:
    return f"after, asked as {condition}" if condition else "after"
