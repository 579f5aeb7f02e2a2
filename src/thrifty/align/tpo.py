"""Triple Preference Optimization: Achieving Better Alignment with Less Data in a Single Step Optimization (2405.16681).

The four slots: three answers to each prompt are logged, gold, chosen and rejected; worth is their order; credit is the
same for all tokens of an answer; the loss is a preference without a reference model plus the gold answer's likelihood.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.align.arithmetic_answers import answer_triples
from thrifty.align.base import Objective, Training
from thrifty.align.critic import without_dropout
from thrifty.align.dpo import check_places
from thrifty.align.evaluate import likelihoods
from thrifty.align.job import Job
from thrifty.align.log import as_logged
from thrifty.align.preference import preference_kind, preference_loss
from thrifty.align.training import train
from thrifty.align.triples import ANSWERS, check_ranks, triples_from_scores
from thrifty.core.errors import InputError, nearest
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.data.readers import require_columns
from thrifty.data.tasks import arithmetic
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")
TPOKind = Literal["tpo", "tpo-l", "tpo-hinge", "tpo-ipo"]
_EMBEDDED_PROBLEMS = 160


@register("tpo")
@dataclass(frozen=True)
class TPO(Objective):
    r"""Supervised and preference tuning in one run, without a reference model, from three answers to each prompt.

    .. math::
        L = -\overline{\log\sigma(\beta\log\pi(y_w|x) - \beta\log\pi(y_l|x))}
            - \alpha\,\overline{\log\pi(y_\text{ref}|x)}

    and for TPO-L :math:`-\log\sigma(\frac{\beta}{|y_w|}\log\pi(y_w|x) - \frac{\beta}{|y_l|}\log\pi(y_l|x) - \gamma)`
    in the first term. ``reference`` is the gold answer, not a model. The defaults suit TPO from a base model, whose
    :math:`\beta` multiplies sums over tokens; TPO-L's multiplies means, and is 2 to 10 in the released runs.

    Parameters
    ----------
    kind
        ``tpo``; ``tpo-l`` with mean log-probabilities and a margin; ``tpo-hinge`` and ``tpo-ipo`` as in the released
        code.
    beta
        Of the preference, times sums of log-probabilities over tokens (``tpo``, ``tpo-hinge``) or their means
        (``tpo-l``, ``tpo-ipo``).
    alpha
        Weight of the gold answers' negative log-likelihood; with 0 they are not even read.
    gamma
        TPO-L's margin, in units of reward: subtracted after the multiplication by beta.
    label_smoothing
        Share of pairs taken to be labelled the wrong way round, for ``tpo`` and ``tpo-l``.
    gold_mean
        ``token``: the likelihood is a mean over all gold tokens of the step, as in the released code (there of each
        micro-batch), for which alphas were tuned; ``answer``: the mean over gold answers of their sums, as the paper
        writes it.
    chosen_rank
        Of scored responses, which is the chosen answer: 2 is the second best. (The released models named y2, y3 and y4
        differ in this or a like choice.)
    rejected_rank
        Of scored responses, which is the rejected answer; the worst by default.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    Saeidi et al., "Triple Preference Optimization", arXiv 2405.16681, version 1 (TPO) and version 2 (TPO-L).
    """

    training: ClassVar[Training] = Training(
        learning_rate=5e-7, batch_size=96, micro_batch_size=48, schedule="cosine", warmup_ratio=0.1
    )
    embedded: ClassVar[str] = "arithmetic-triples"
    rows_per_example: ClassVar[int] = 3

    kind: TPOKind = "tpo"
    beta: float = 0.01
    alpha: float = 1.0
    gamma: float = 0.5
    label_smoothing: float = 0.0
    gold_mean: Literal["token", "answer"] = "token"
    chosen_rank: int = 2
    rejected_rank: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TPOKind):
            raise InputError(f"kind is {self.kind!r}: {nearest(self.kind, get_args(TPOKind))}")
        if self.gold_mean not in ("token", "answer"):
            raise InputError(f"gold_mean must be token or answer, not {self.gold_mean!r}")
        if not self.beta > 0:
            raise InputError(f"beta must be above 0, not {self.beta:g}")
        if not 0 <= self.alpha < math.inf:
            raise InputError(f"alpha must be 0 or more, not {self.alpha:g}")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f"label_smoothing must be in [0, 0.5), not {self.label_smoothing:g}")
        check_ranks(self.chosen_rank, self.rejected_rank)

    def prepare(self, data: Sequences) -> Sequences:
        """Triples as they are: rows reference, chosen, rejected, reference, ...

        ``from_records(records, tokenizer, answers=ANSWERS)`` makes them.

        Raises
        ------
        InputError
            When the sequences are no triples.
        """
        check_places(data, self.rows_per_example)
        if bool(data["chosen"].bool()[0::3].any()) or not bool(data["chosen"].bool()[1::3].all()):
            raise InputError(
                "triples must be in the order reference, chosen, rejected: from_records(..., answers=ANSWERS)"
            )
        return data

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's triples, with the implicit rewards, their accuracy and margin, and the gold
        answers' mean log-probability.

        The gold tokens of ``whole`` are the denominator; with ``whole=batch`` that of a micro-batch, as in the released
        code.
        """
        place = torch.arange(len(batch), device=batch.device) % 3
        read = batch if self.alpha else batch.select(place > 0)
        logps = token_logps(model, read)
        place = place if self.alpha else place[place > 0]
        answers = sequence_logps(logps, read.response_mask, preference_kind(self.kind).reduction)
        chosen, rejected = answers[place == 1], answers[place == 2]
        gold_nll, metrics = logps.new_zeros(()), {}
        if self.alpha:
            mask = read.response_mask[place == 0]
            tokens = whole.response_mask[0::3].sum() if self.gold_mean == "token" else torch.tensor(len(whole) // 3)
            gold = logps[place == 0]
            gold_nll = -(gold * mask).sum() / tokens.clamp(min=1).to(gold.device)
            metrics["gold_logp"] = sequence_logps(gold.detach(), mask, "mean").mean()
        value = tpo_loss(
            chosen,
            rejected,
            gold_nll,
            kind=self.kind,
            beta=self.beta,
            alpha=self.alpha,
            gamma=self.gamma,
            label_smoothing=self.label_smoothing,
            pairs=len(whole) // 3,
        )
        rewards = self.beta * chosen.detach(), self.beta * rejected.detach()
        return Loss(
            value,
            {
                "chosen_reward": rewards[0].mean(),
                "rejected_reward": rewards[1].mean(),
                "accuracy": (rewards[0] > rewards[1]).float().mean(),
                "margin": (rewards[0] - rewards[1]).mean(),
                **metrics,
            },
        )

    def work(self, job: Job) -> dict[str, Any]:
        """Trains on the user's triples or scored responses, or on triples of answers to arithmetic problems."""
        own = self.training
        if job.inputs.data is None:
            problems = as_logged(arithmetic().problems(job.inputs.limit or _EMBEDDED_PROBLEMS, job.run.seed, "train"))
            records = answer_triples(problems, job.run.seed)
            own = replace(own, batch_size=24, micro_batch_size=24)
        else:
            records = self.triples(job.records(["prompt"]), job.data)
        data = self.prepare(job.preferences(records, ANSWERS))
        without_dropout(job.model)
        table = [self._row("before", job, data)]
        train(job.model, self, data, job.run.stage("train"), job.training(own))
        return {"table": [*table, self._row("after", job, data)]}

    def triples(self, records: Sequence[Mapping[str, Any]], named: str = "the data") -> list[dict[str, Any]]:
        """Records with the columns reference, chosen and rejected, made from scored responses where there are such.

        Parameters
        ----------
        records
            With ``prompt``, and ``responses`` and ``scores`` or the three answers.
        named
            What errors call them.
        """
        if any("responses" in record for record in records):
            require_columns(records, ["responses", "scores"], named)
            return triples_from_scores(records, chosen_rank=self.chosen_rank, rejected_rank=self.rejected_rank)
        require_columns(records, list(ANSWERS), named)
        alike = sum(record["reference"] == record["chosen"] for record in records)
        if alike:
            _log.warning(
                "in %d of %d triples the gold answer is the chosen one: there it is likelihood and preference of one "
                "answer, as in CPO, and no triple preference",
                alike,
                len(records),
            )
        return [dict(record) for record in records]

    @staticmethod
    def _row(name: str, job: Job, data: Sequences) -> dict[str, Any]:
        place = torch.arange(len(data)) % 3
        kinds = {kind: place == number for number, kind in enumerate(("gold", "chosen", "rejected"))}
        return {"model": name} | job.measure() | likelihoods(job.model, data, kinds, job.run.device)


def tpo_loss(
    chosen: Float[Tensor, " P"],
    rejected: Float[Tensor, " P"],
    gold_nll: Float[Tensor, ""],
    *,
    kind: TPOKind = "tpo",
    beta: float = 0.01,
    alpha: float = 1.0,
    gamma: float = 0.5,
    label_smoothing: float = 0.0,
    pairs: int | None = None,
) -> Float[Tensor, ""]:
    r""":math:`\frac1P \sum_p L_\text{pref} + \alpha L_\text{ref}`.

    Parameters
    ----------
    chosen, rejected
        Log-probabilities of whole answers: sums over tokens for ``tpo`` and ``tpo-hinge``, means for ``tpo-l`` and
        ``tpo-ipo``.
    gold_nll
        Negative log-likelihood of the gold answers, a mean over tokens.
    kind, beta, alpha, gamma, label_smoothing
        As for :class:`TPO`.
    pairs
        P of the whole step, where this is a part of it.
    """
    margin = gamma if kind == "tpo-l" else 0.0
    losses = preference_loss(chosen, rejected, kind=kind, beta=beta, gamma=margin, label_smoothing=label_smoothing)
    return losses.sum() / (len(losses) if pairs is None else pairs) + alpha * gold_nll
