"""Leftover Lunch: Advantage-based Offline Reinforcement Learning for Language Models (A-LoL, arXiv 2305.14718).

The four slots: sequences are logged; worth is a score minus what the reference earns on the prompt, and what is not
above 0 is dropped; credit is the same for all tokens; the loss is the negative log-likelihood weighted by worth and by
the clipped ratio of the policy to the reference.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from thrifty.align.base import NothingToLearnError, Objective, Training, check_choices
from thrifty.align.job import Job
from thrifty.align.learning import Logged, learn
from thrifty.align.leftover import VARIANTS, Terms, Variant, a_lol_loss, worth_of
from thrifty.align.log import read_log
from thrifty.align.priority import priority_weights
from thrifty.align.prompt_value import HeadKind
from thrifty.align.reference import with_reference_logps
from thrifty.align.sft import SFT
from thrifty.align.training import train
from thrifty.align.validation import Selecting, Validation, validation_of
from thrifty.align.values import ValueSettings, with_values
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")

Order = Literal["priority", "good_random", "all_priority", "shuffle"]


@register("a-lol")
@dataclass(frozen=True)
class ALoL(Objective):
    r"""Learns only those logged answers that are better than what the model itself would have earned on their prompts.

    .. math::
        A(x, y) = R(x, y) - V(x), \qquad
        \rho = \mathrm{sg}\,\mathrm{clip}(\pi_\theta(y|x) / \pi_\text{ref}(y|x),\, 1 - \epsilon,\, 1 + \epsilon)

        L = \frac1B \textstyle\sum_i \max(A_i, 0)\, \rho_i \sum_t -\log \pi_\theta(y_{it} | x_i, y_{i,<t})

    A whole answer is one action, so each prompt has one value V: of the answers that the reference, the model before
    training, gives to it. A small head on the frozen states of the prompt learns it from one scored answer to each
    of some validation prompts. Tokens are summed, not averaged.

    Parameters
    ----------
    variant
        ``a_lol``; ``a_lol_ref_free`` without the ratio; ``a_lol_seq`` with each token's own ratio (a heuristic);
        ``a_lol_kl`` with a penalty on the log-ratio instead. The baselines: ``nll``; ``wbc`` weighs by the reward;
        ``r_gold`` also by each token's probability; ``r_lol`` is ``a_lol`` with the reward for the advantage.
    clip
        Epsilon: how far the ratio may be from 1, without gradient. ``None`` leaves it as it is.
    kl_coefficient
        Beta of ``a_lol_kl``, set by hand in the paper.
    gold_floor
        Of ``r_gold``: what a token's probability counts at least.
    order
        ``priority`` draws answers with replacement, with probability proportional to their advantage (where they are
        weighed by the reward: to that); ``good_random`` with the same probability; ``shuffle`` goes through them in
        passes. Where the log has a column ``preferred``, these leave out the answers where it is false, and
        ``all_priority`` does not.
    scale_steps
        Take fewer steps for fewer answers, so that an epoch is one of what is kept. Otherwise as many as on the log.
    nll_epochs
        Passes of plain fine-tuning on the log first, whose result is the reference; 0 where the model given has
        learnt from the log already.
    value_head
        ``mlp`` or ``attention``.
    value_epochs
        Passes over the validation prompts.
    value_learning_rate
        Of the head. The paper's 1e-5 is for thousands of prompts and states of width 4096.
    max_value, min_value
        The largest and the smallest reward there can be; by default those that were seen. Where answers are weighed
        by their reward, it is counted from ``min_value``.
    validation
        A file of prompts (with the columns that ``--reward`` wants) for value and selection.
    validation_share
        Share of the log's prompts that is held out for that where there is no file.
    validation_prompts
        At most so many.
    select_every
        Look at the validation reward of greedy answers every so many steps, and end with the best weights seen.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    Baheti et al., "Leftover Lunch", ICLR 2024, arXiv 2305.14718: section 3; its code for the heads and orders.
    """

    training: ClassVar[Training] = Training(
        learning_rate=2e-4, batch_size=16, clip_norm=0.3, epsilon=1e-6, warmup_ratio=0.03
    )

    variant: Variant = "a_lol"
    clip: float | None = 0.9
    kl_coefficient: float = 0.1
    gold_floor: float = 0.1
    order: Order = "priority"
    scale_steps: bool = True
    nll_epochs: float = 0.0
    value_head: HeadKind = "mlp"
    value_epochs: int = 10
    value_learning_rate: float = 1e-3
    max_value: float | None = None
    min_value: float | None = None
    validation: str | None = None
    validation_share: float = 0.1
    validation_prompts: int = 128
    select_every: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.clip is not None and not self.clip > 0:
            raise InputError(f"clip must be above 0 (or None), not {self.clip:g}")
        for name in ("kl_coefficient", "nll_epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if not 0 < self.validation_share < 1:
            raise InputError(f"validation_share must be within (0, 1), not {self.validation_share:g}")
        for name in ("value_epochs", "validation_prompts", "select_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")

    @property
    def terms(self) -> Terms:
        """What the variant is made of."""
        return VARIANTS[self.variant]

    def needs(self) -> frozenset[str]:
        """The reference's log-probabilities where they count."""
        return frozenset({"reference_logps"} if self.terms.reference else ())

    def prepare(self, data: Sequences) -> Sequences:
        """Drops answers that are worth nothing, and says how often each of the others is drawn.

        Parameters
        ----------
        data
            With ``reward [N]`` and, for the advantage, ``value [N]`` (see :func:`thrifty.align.values.with_values`);
            ``preferred [N]`` where there is one.

        Raises
        ------
        InputError
            When the value is missing, or rewards below ``min_value`` would weigh answers.
        NothingToLearnError
            When no answer has an advantage above 0.
        """
        if "preferred" in data.columns and self.order != "all_priority":
            data = data.select(data["preferred"].bool())
        least = self.min_value or 0.0
        if self.terms.worth == "reward" and bool((data["reward"] < least).any()):
            raise InputError(
                f"variant {self.variant} weighs answers by their reward, and the smallest is "
                f"{float(data['reward'].min()):g}: give --min-value {float(data['reward'].min()):g} to count from there"
            )
        data = data.with_columns(reward=data["reward"].float() - least)
        if self.terms.worth == "advantage":
            data = data.with_columns(value=data["value"].float() - least)
        worth = worth_of(data["reward"], data.columns.get("value"), self.terms)
        if self.terms.worth == "advantage":
            kept = worth > 0
            many, good = len(data), int(kept.sum())
            _log.info("%d of %d answers (%.0f%%) have an advantage above 0", good, many, 100 * good / max(many, 1))
            if not good:
                raise NothingToLearnError(
                    f"none of {many} answers is better than what its prompt is worth: log better answers, or compare "
                    "the scale of the rewards with that of the values"
                )
            data, worth = data.select(kept), worth[kept]
        if self.order == "shuffle" or self.variant == "nll":
            return data
        if not bool((worth > 0).any()):
            raise NothingToLearnError(f"all {len(data)} answers have the smallest reward: none is worth learning")
        drawn = (worth > 0).float() if self.order == "good_random" else worth
        return data.with_columns(sampling_weight=priority_weights(drawn))

    def teaches(self, batch: Sequences) -> Bool[Tensor, " N"]:
        """Answers worth nothing are left out of the forward pass."""
        if self.terms.divergence:
            return torch.ones(len(batch), dtype=torch.bool)
        return worth_of(batch["reward"], batch.columns.get("value"), self.terms) > 0

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's answers: see :func:`a_lol_loss`."""
        found = a_lol_loss(
            token_logps(model, batch),
            batch.response_mask,
            batch.columns.get("reference_logps"),
            batch["reward"],
            batch.columns.get("value"),
            variant=self.variant,
            clip=self.clip,
            kl_coefficient=self.kl_coefficient,
            gold_floor=self.gold_floor,
        )
        # The mean is over the answers of the whole step.
        return Loss(found.value * (len(batch) / len(whole)), found.metrics)

    def work(self, job: Job) -> dict[str, Any]:
        """Fine-tunes the reference where wanted, learns values, and trains on the answers that are better."""
        inputs = job.inputs
        log = read_log(
            job.data,
            job.tokenizer,
            reward=inputs.reward_column,
            max_length=inputs.max_length,
            limit=inputs.limit,
            optional=("preferred", "value"),
        )
        job.log = log
        data, validation = validation_of(
            job, log, file=self.validation, share=self.validation_share, most=self.validation_prompts
        )
        if self.select_every is not None and validation is None:
            raise InputError("select_every looks at answers to validation prompts: give --reward, which scores them")
        found: dict[str, Any] = {}
        summary = job.compared(lambda: found.update(self._trained(job, data, validation)))
        return {**summary, **found}

    def _trained(self, job: Job, data: Sequences, validation: Validation | None) -> dict[str, Any]:
        model, run, training = job.model, job.run, job.training(self.training)
        if self.nll_epochs:
            plain = replace(training, epochs=self.nll_epochs)
            train(model, SFT(threshold=-math.inf), data, run.stage("reference"), plain)
        fitted: dict[str, float] = {}
        if self.terms.worth == "advantage":
            settings = ValueSettings(
                self.value_head, self.value_epochs, self.value_learning_rate, self.max_value, self.min_value
            )
            data, fitted = with_values(
                model, job.tokenizer, data, validation, run, settings, max_new_tokens=job.inputs.max_new_tokens
            )
        kept = self.prepare(data)
        if self.terms.reference:
            kept = with_reference_logps(model, kept, run.device)
        if not self.scale_steps:
            training = training.as_many_steps(len(data), len(kept))
        stage = run.stage("train")
        source = Logged(kept, min(training.batch_size, len(kept)), stage.seed)
        steps = training.steps(len(kept))
        summary = {"logged": len(data), "kept": len(kept), "steps": steps, **fitted}
        if self.select_every is None or validation is None:
            learn(model, self, source, stage, training, steps)
            return summary
        longest = job.inputs.max_new_tokens
        looking = Selecting(source, model, job.tokenizer, validation, self.select_every, longest)
        learn(model, self, looking, stage, training, steps, state={"selection": looking})
        looking.look(steps)
        looking.restore_best()
        return {**summary, "best_step": looking.best_step, "validation_reward": looking.best}
