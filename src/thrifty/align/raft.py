"""Reward rAnked FineTuning for Generative Foundation Model Alignment (RAFT, arXiv 2304.06767).

The four slots: sequences are sampled anew each iteration, K to a prompt, or logged; worth is a score, of which only the
order counts; credit is 1 for the tokens of the best answers and 0 for the rest; the loss is the negative
log-likelihood, from the present policy on.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.align.asking import Sampling
from thrifty.align.base import NothingToLearnError, Objective, Training, check_choices
from thrifty.align.best_of import Strategy, Ties, first_of_each, select_best
from thrifty.align.credit import equal_groups
from thrifty.align.diversity import distinct_n, spoken
from thrifty.align.job import Job
from thrifty.align.reference import with_reference_logps
from thrifty.align.sft import SFT
from thrifty.align.tidy import Tidied, Tidiness
from thrifty.align.training import iterate, train
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.core.run import read_metrics
from thrifty.core.seeding import generator
from thrifty.lm.sampler import ModelSampler
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")


@register("raft")
@dataclass(frozen=True)
class RAFT(Objective):
    r"""Samples several answers to each prompt, keeps the best, learns them as if they were given; again and again.

    .. math::
        y_1, \dots, y_K \sim \pi_t(\cdot|x), \qquad B = \{(x, \arg\max_k r(x, y_k))\}, \qquad
        \pi_{t+1} = \arg\min_\pi \textstyle\sum_{(x,y) \in B} -\log \pi(y|x) \text{ from } \pi_t

    Only the order of rewards counts, so their scale does not matter. One model is in memory at a time. Each iteration
    goes on from the present weights with a fresh optimizer. With one answer to each prompt it is supervised
    fine-tuning on the policy's own answers; on a log that has several answers to each prompt, one such stage.

    Parameters
    ----------
    strategy
        ``local`` keeps the best answer to each prompt, which suits rewards that depend much on the prompt. ``top``
        asks K times as many prompts once each and keeps the best of all answers.
    fraction
        For ``top``, the share that is kept; one in K (``samples``) by default.
    ties
        Of answers with the same reward take a ``random`` one or the ``first``. The random choice depends on the answers
        only, so that a resumed run makes the same.
    min_reward
        Answers below it are not learnt, whatever their rank: without it, the best of eight wrong answers is. Where a
        task judges the answers, it is 1 by default: right.
    kl_coefficient
        Beta of the regularised reward :math:`r - \beta \log(\pi_t(y|x) / \pi_0(y|x))`, which ranks; it is no term of
        the loss.
    loss_on_prompt
        Learn the tokens of the prompt too, as LMFlow's first code does.
    temperature
        At which answers are sampled: high enough that they differ. LMFlow takes 0.85.
    turn_marker
        A text such as ``"###Human"``, at which an answer is taken to end.
    discard_marker
        Answers that hold this text are never learnt (``"#"`` in LMFlow).
    shortest_answer
        Answers of fewer characters are never learnt. LMFlow takes 2.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    Dong et al., "RAFT", TMLR 2023: Algorithm 1; the code of LMFlow (``RaftAligner``) for markers and short answers.
    """

    training: ClassVar[Training] = Training(learning_rate=2e-5, batch_size=16, epochs=1.0)
    sampling: ClassVar[Sampling] = Sampling(samples=8, prompts_per_rollout=2048)
    """K answers to each of b prompts in an iteration."""
    iterations: ClassVar[int] = 3
    """Of the command, where it is told nothing."""

    strategy: Strategy = "local"
    fraction: float | None = None
    ties: Ties = "random"
    min_reward: float | None = None
    kl_coefficient: float = 0.0
    loss_on_prompt: bool = False
    temperature: float = 1.0
    turn_marker: str | None = None
    discard_marker: str | None = None
    shortest_answer: int = 1

    def __post_init__(self) -> None:
        check_choices(self)
        if self.fraction is not None and self.strategy != "top":
            raise InputError("fraction is for strategy 'top': 'local' keeps one answer to each prompt")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise InputError(f"fraction must be within (0, 1], not {self.fraction:g}")
        for name, least in (("kl_coefficient", 0), ("shortest_answer", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name):g}")
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, not {self.temperature:g}: greedy answers are all the same")

    def needs(self) -> frozenset[str]:
        """Both policies' log-probabilities where the divergence counts."""
        return frozenset({"reference_logps", "behaviour_logps"} if self.kl_coefficient else ())

    def prepare(self, data: Sequences) -> Sequences:
        """Keeps the best answers.

        Parameters
        ----------
        data
            With ``reward [N]`` and ``group [N]`` (which prompt); ``discarded [N]`` marks answers that are never learnt.

        Raises
        ------
        NothingToLearnError
            When none is left.
        """
        chosen = self.selected(data)
        if not len(chosen):
            least = "" if self.min_reward is None else f" (best reward {float(data['reward'].max()):g})"
            raise NothingToLearnError(
                f"none of {len(data)} answers is left{least}: all are discarded or below min_reward"
            )
        alike = float(equal_groups(data["reward"].float(), data["group"]))
        if alike > 0.1 and self.min_reward is None:
            _log.warning(
                "%.0f%% of the answers are to prompts whose answers all have the same reward, so that none is the "
                "best: --min-reward leaves them out where they are below it",
                100 * alike,
            )
        kept = data.select(chosen)
        mask = kept.response_mask
        if self.loss_on_prompt:
            mask = kept.attention_mask.clone()
            mask[:, 0] = False  # nothing predicts it
        whole = Sequences(kept.input_ids, kept.attention_mask, mask, kept.columns)
        return whole.with_columns(weight=mask.float())

    def selected(self, data: Sequences) -> Int[Tensor, " M"]:
        """The rows that are kept, in order."""
        reward, group = self.ranked(data), data["group"]
        fraction = self.fraction
        if self.strategy == "top" and fraction is None:
            fraction = len(group.unique()) / len(group)
            if fraction == 1:
                raise InputError("strategy 'top' on one answer to each prompt: give fraction, the share to keep")
        # A draw that the answers alone decide: a resumed run selects the same.
        draw = generator(zlib.crc32(data.input_ids.cpu().numpy().tobytes()), "ties")
        return select_best(
            reward,
            group,
            strategy=self.strategy,
            fraction=fraction,
            ties=self.ties,
            draw=draw,
        )

    def ranked(self, data: Sequences) -> Float[Tensor, " N"]:
        """What each answer is ranked by: minus infinity where it is not to be learnt."""
        reward = data["reward"].float()
        below = torch.zeros(len(reward), dtype=torch.bool) if self.min_reward is None else reward < self.min_reward
        if self.kl_coefficient:
            logps, reference = data["behaviour_logps"], data["reference_logps"]
            reward = kl_regularised(reward, logps, reference, data.response_mask, self.kl_coefficient)
        if "discarded" in data.columns:
            below = below | data["discarded"].bool()
        return reward.masked_fill(below, -math.inf)

    def measured(self, answers: Sequences) -> Mapping[str, float]:
        """Of an iteration: ``policy_reward`` (of the first answer to each prompt, which is not selected),
        ``training_reward`` of the selected, their ``reward_gap``, how many are ``selected`` and ``discarded``, the
        ``ties`` (share of prompts whose answers all have one reward), and ``distinct_2`` of the first answers."""
        reward, chosen = answers["reward"].float(), self.selected(answers)
        first = first_of_each(answers["group"])
        found = {
            "policy_reward": float(reward[first].mean()),
            "selected": float(len(chosen)),
            "ties": float(equal_groups(reward, answers["group"])),
            "distinct_2": distinct_n(spoken(answers.select(first))),
        }
        if len(chosen):
            found["training_reward"] = float(reward[chosen].mean())
            found["reward_gap"] = found["training_reward"] - found["policy_reward"]
        if "discarded" in answers.columns:
            found["discarded"] = float(answers["discarded"].float().mean())
        return found

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """Mean negative log-likelihood of the selected answers' tokens."""
        return SFT().loss(model, batch, whole)

    def work(self, job: Job) -> dict[str, Any]:
        """Samples, selects and learns in iterations; on the user's log of answers and rewards, one stage of it."""
        inputs = job.inputs
        if inputs.data is not None and inputs.reward is None:
            if not inputs.iterations:
                return self._offline(job)
            if inputs.task is None:
                raise InputError("new answers to your prompts need a score: give --reward, or leave --iterations out")
        return self._online(job)

    def _offline(self, job: Job) -> dict[str, Any]:
        data = self.tidiness.applied(job.logged(), job.tokenizer)
        if self.kl_coefficient:
            if "behaviour_logps" not in data.columns:
                raise InputError("whose answers these are is not known: give behaviour_logps, or no --kl-coefficient")
            data = with_reference_logps(job.model, data, job.run.device, self.temperature)
        if int(data["group"].max()) + 1 == len(data) and self.strategy == "local":
            _log.warning("the log has one answer to each prompt, so all are the best: this is plain fine-tuning on it")
        training, measured = job.training(self.training), self.measured(data)
        summary = job.compared(lambda: train(job.model, self, data, job.run.stage("train"), training))
        return {**summary, "selection": measured}

    def _online(self, job: Job) -> dict[str, Any]:
        records, reward = job.prompts()
        own = self.sampling if job.inputs.data is not None else replace(self.sampling, prompts_per_rollout=32)
        sampling = replace(job.sampling(own), temperature=self.temperature)
        method = self
        if self.min_reward is None and job.inputs.reward is None:
            method = replace(self, min_reward=1.0)
        if self.strategy == "top":
            fraction = self.fraction or 1 / sampling.samples
            method = replace(method, fraction=fraction)
            many = sampling.prompts_per_rollout * sampling.samples
            sampling = replace(sampling, samples=1, prompts_per_rollout=many)
        elif sampling.samples == 1:
            _log.warning("of one answer to each prompt all are the best: give --samples 4 or more")
        sampler = Tidied(ModelSampler(job.model, job.tokenizer), job.model, job.tokenizer, self.tidiness)
        summary = job.compared(
            lambda: iterate(
                job.model,
                job.tokenizer,
                method,
                records,
                reward,
                job.run,
                iterations=job.inputs.iterations or self.iterations,
                sampling=sampling,
                training=job.training(self.training),
                sampler=sampler,
            )
        )
        return {**summary, "iterations": read_metrics(job.run.directory)}

    @property
    def tidiness(self) -> Tidiness:
        """Which answers are cut, and which are never learnt."""
        return Tidiness(self.turn_marker, self.discard_marker, self.shortest_answer)


def kl_regularised(
    reward: Float[Tensor, " N"],
    logps: Float[Tensor, "N T"],
    reference_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    coefficient: float,
) -> Float[Tensor, " N"]:
    r""":math:`\tilde r(x, y) = r(x, y) - \beta \log(\pi_t(y|x) / \pi_0(y|x))`.

    Parameters
    ----------
    reward
        Of each answer.
    logps, reference_logps
        Log-probabilities of its tokens under the policy that sampled and under the first one.
    mask
        Where the model spoke.
    coefficient
        Beta, in units of reward per nat.
    """
    return reward - coefficient * ((logps - reference_logps) * mask).sum(1)
