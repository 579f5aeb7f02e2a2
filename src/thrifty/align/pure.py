"""Stop Summation: Min-Form Credit Assignment Is All Process Reward Model Needs for Reasoning (arXiv 2504.15275).

The four slots: sequences are sampled by the policy, several to a prompt; worth is the score that a process reward model
gives each step and, for prompts with a known answer, whether the answer is right; credit is the least score to come
instead of the sum of all, minus what the other answers get; the loss is PPO's clipped policy gradient.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.align.asking import Record, Sampling
from thrifty.align.base import Training
from thrifty.align.equations import EquationSteps, ask_for_steps
from thrifty.align.job import Job, as_record
from thrifty.align.process_worth import ProcessWorth, StepScorer
from thrifty.align.step_credit import CreditForm, min_form, repeated_share
from thrifty.align.step_returns import StepReturns
from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.lm.sequences import Sequences
from thrifty.reward.base import Reward
from thrifty.reward.models import ProcessModel
from thrifty.reward.step_format import StepFormat
from thrifty.reward.verifiers import task_reward, verifier

_log = logging.getLogger("thrifty")


@register("pure")
@dataclass(frozen=True)
class PURE(StepReturns):
    r"""Trains with a process reward model without the policy farming its points: the worst step to come counts.

    .. math::
        r^*_i = \mathrm{softmax}(-r / T)_i \, r_i, \qquad
        G_t = \sum_{t' \ge t} \left( r^*_{t'} + c_V\, \text{right} \cdot 1[t' = |y|] - \beta\, \mathrm{kl}_{t'} \right)
        \approx \min_{j \ge t} r_j + \dots, \qquad
        A_{i,t} = G_{i,t} - \frac{1}{(K-1) N} \sum_{k \ne i} \sum_{t'} G_{k,t'}

    with advantages normalised over the batch. r are the scores of the K-th answer's steps in (-1, 1), N is the longest
    possible answer. Summed, scores reward answers of many steps; their least does not.

    The transform gives steps after the worst one next to nothing, so a last step better than the ones before earns no
    credit, while a filler step that is scored above 0 can earn its score: with such a reward model and no verifier,
    the transform can still be hacked. ``mode="strict"`` credits each step with the least score from it on.

    Reward models are trained by :func:`thrifty.align.process_training.train_process_model`.

    Parameters
    ----------
    mode
        ``transform``, the released code's and the paper's; ``strict``, the least score to come itself; ``sum``, the
        usual sum, which the paper finds to collapse.
    credit_temperature
        T of the transform: the lower, the nearer to the least.
    reward_mode
        ``prm+vr``: step scores, and a reward for right answers of records that have an ``answer`` (a tenth of them is
        enough, says the paper); ``prm``: step scores only; ``vr``: right answers only.
    drop_pseudo_positives
        Leave answers out that the verifier calls right but that were cut off or repeat themselves: a few updates on
        them destroy the policy. The released code has no such filter.
    repetition_size, repetition_share
        An answer repeats itself when more than ``repetition_share`` of its runs of ``repetition_size`` tokens were
        there before.
    process_model
        The process reward model for ``thrifty run``: a folder or hub id of a token classifier with two classes, or a
        causal language model with two words. Not needed for ``vr``; for the embedded problems, by default a rule that
        checks the sums that a step writes out.
    separator
        What ends a step.
    step_token
        What the reward model reads instead of ``separator``, where it was trained with another.
    good_token, bad_token
        The two words of a causal language model.
    process_coefficient, verifiable_coefficient, kl_reward_coefficient, kl_estimator
        As for :class:`~thrifty.align.step_returns.StepReturns`, which describes the other fields too. The paper: 1, 1,
        1e-3, k3; the released main branch: k1.
    baseline
        ``returns``, the paper's; ``token``, the released main branch's; ``step``, which favours answers of few steps.
    aggregation
        ``token``, the paper's; ``sequence``, the main branch's.

    Raises
    ------
    InputError
        When a value is out of range.

    References
    ----------
    Cheng et al., "Stop Summation: Min-Form Credit Assignment Is All Process Reward Model Needs for Reasoning", NeurIPS
    2025: section 3 (min-form, transform), section 4 (rewards, advantage), section 5 (hacking, pseudo-positives).
    """

    # 1e-6 with a verifier; the paper halves it for step scores alone.
    training: ClassVar[Training] = Training(learning_rate=1e-6, micro_batch_size=32)
    embedded: ClassVar[str] = "arithmetic"

    mode: CreditForm = "transform"
    credit_temperature: float = 0.1
    reward_mode: Literal["prm+vr", "prm", "vr"] = "prm+vr"
    drop_pseudo_positives: bool = True
    repetition_size: int = 8
    repetition_share: float = 0.5
    process_model: str | None = None
    separator: str = "\n\n"
    step_token: str | None = None
    good_token: str = "+"  # noqa: S105 (a word, no password)
    bad_token: str = "-"  # noqa: S105

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("transform", "strict", "sum"):
            raise InputError(f"mode is {self.mode!r}, expected transform, strict or sum")
        if self.reward_mode not in ("prm+vr", "prm", "vr"):
            raise InputError(f"reward_mode is {self.reward_mode!r}, expected prm+vr, prm or vr")
        if not self.credit_temperature > 0:
            raise InputError(f"credit_temperature must be above 0, not {self.credit_temperature:g}; or mode strict")
        if self.repetition_size < 1 or not 0 < self.repetition_share <= 1:
            raise InputError("repetition_size must be at least 1, and repetition_share within (0, 1]")

    def step_rewards(self, score: Float[Tensor, "N T"], step_end: Bool[Tensor, "N T"]) -> Float[Tensor, "N T"]:
        """Step scores transformed so that their sum to go is the least of them; nothing without ``prm``."""
        if self.reward_mode == "vr":
            return torch.zeros_like(score)
        return min_form(score, step_end, temperature=self.credit_temperature, form=self.mode)

    def prepare(self, data: Sequences) -> Sequences:
        """See :meth:`StepReturns.prepare`; without ``vr``, right answers count for nothing."""
        if self.reward_mode == "prm":
            data = data.with_columns(right=torch.zeros(len(data)))
        return super().prepare(data)

    def counts(self, data: Sequences) -> Bool[Tensor, " N"]:
        """All answers but pseudo-positive ones."""
        counts = super().counts(data)
        return counts & ~self.pseudo_positive(data) if self.drop_pseudo_positives else counts

    def pseudo_positive(self, data: Sequences) -> Bool[Tensor, " N"]:
        """Answers that count as right but were cut off or repeat themselves."""
        found = torch.zeros(len(data), dtype=torch.bool)
        for row in (data["right"] > 0).nonzero()[:, 0].tolist():
            said = data.input_ids[row][data.response_mask[row]]
            repeats = repeated_share(said, self.repetition_size) > self.repetition_share
            found[row] = repeats or ("finished" in data.columns and not bool(data["finished"][row]))
        return found

    @property
    def sampling(self) -> Sampling:
        """How the paper samples."""
        return Sampling(samples=8, prompts_per_rollout=64, temperature=self.temperature)

    def work(self, job: Job) -> dict[str, Any]:
        """Samples answers to the user's prompts (or embedded problems), scores their steps, and trains."""
        records, right = self._prompts(job)
        worth = ProcessWorth(
            None if self.reward_mode == "vr" else self._scorer(job),
            None if self.reward_mode == "prm" else right,
            job.tokenizer,
        )
        sampling = self.sampling
        if job.inputs.data is None:
            sampling = replace(sampling, prompts_per_rollout=4, samples=4)  # minutes, not hours
        sampling = job.sampling(sampling)
        method = self if self.longest is not None else replace(self, longest=sampling.max_new_tokens)
        return job.compared(
            lambda: job.online(method, records, worth, sampling, job.training(self.training)),
            ask_for_steps if job.inputs.data is None else None,
        )

    def _prompts(self, job: Job) -> tuple[list[Record], Reward]:
        """Prompts and what judges final answers."""
        if job.inputs.data is None and job.task is not None:
            problems = job.task.problems(job.inputs.limit or 40, job.run.seed, "train")
            records = [as_record(replace(one, prompt=ask_for_steps(one.prompt))) for one in problems]
            return list(records), task_reward(job.task)
        records = list(job.records(["prompt"]))
        with_answer = sum(record.get("answer") not in (None, "") for record in records)
        if self.reward_mode != "prm":
            if self.reward_mode == "vr" and not with_answer:
                raise InputError(f"{job.data} has no answers to verify: add a column answer, or give --reward-mode prm")
            _log.info("%d of %d prompts have an answer to verify", with_answer, len(records))
        return records, verifier(job.inputs.reward or "math")

    def _scorer(self, job: Job) -> StepScorer:
        form = StepFormat(self.separator, self.step_token, self.good_token, self.bad_token)
        if self.process_model is not None:
            return ProcessModel.load(self.process_model, format=form, device=job.run.device, dtype=job.run.dtype)
        if job.inputs.data is not None:
            raise InputError(
                "steps of answers to your own prompts need a process reward model: give --process-model, or "
                "--reward-mode vr to learn from final answers alone"
            )
        return EquationSteps(separator=self.separator)
