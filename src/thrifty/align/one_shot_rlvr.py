"""Reinforcement Learning for Reasoning in Large Language Models with One Training Example (arXiv 2504.20571).

The four slots: sequences are sampled by the policy, again and again to the same one prompt (or few), which the
variance of its accuracy in an earlier run picked; worth is whether the answer is right; credit is normalised in groups
of the copies; the loss is the clipped policy gradient with a small divergence and an entropy bonus, which goes on
teaching when the prompt is long solved.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar

from thrifty.align.asking import Record, Sampling
from thrifty.align.base import Training
from thrifty.align.grpo import GRPO
from thrifty.align.job import Job
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register
from thrifty.select.history import AccuracyHistory
from thrifty.select.rank import Ranking, rank_by_history

_log = logging.getLogger("thrifty")


@register("one-shot-rlvr")
@dataclass(frozen=True)
class OneShotRLVR(GRPO):
    r"""GRPO on one training example, or a few.

    .. math::
        v_i = \mathrm{Var}(\text{acc}_{i,1}, \dots, \text{acc}_{i,E}), \qquad
        L = c_\pi\, \overline{\max(-A\rho,\, -A\,\mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon))}
            + \beta\, \overline{k_3(\pi_\text{ref}, \pi)} - c_H\, \overline{H(\pi)}

    Prompts are ranked by the variance :math:`v` of their accuracy over the epochs of an earlier run. The best ones are
    copied until a batch is full; each copy has a group of its own, because of one group of all samples most would have
    no advantage. Held-out accuracy keeps rising after the prompt is solved: rare failures have a large advantage, and
    the entropy bonus keeps exploring. So the loop is never stopped for want of contrast.

    With ``policy_coefficient=0`` only entropy and divergence are left, the paper's ablation.

    Parameters
    ----------
    examples
        How many of the highest-ranked prompts are trained on.
    rank
        ``std``: historical variance, the paper's; ``lim``: LIMR's score; ``linear``: steady improvement; ``random``.
    history
        File of the earlier run's accuracies (``history.jsonl`` of any online run here); without one, and with your own
        data, an earlier run on all prompts is made first, which costs as much as training on all of them. For the
        embedded data, a history comes with the package.
    prompt_id
        The id of the prompt to train on, in place of the ranking.
    copies
        Rows of a batch, filled with copies of the chosen prompts; the paper's 128 by default, 8 on the embedded data.
    updates
        Gradient steps on each rollout: the paper's 8; the released scripts make 1 of them.
    rollouts
        How often the batch is sampled; the paper's 2000 by default, 10 on the embedded data.
    history_epochs
        Passes over all prompts in the earlier run, where one has to be made.

    Raises
    ------
    InputError
        When there are fewer prompts than ``examples``, or the history or the data do not know a prompt.

    References
    ----------
    Wang et al., "Reinforcement Learning for Reasoning in Large Language Models with One Training Example", NeurIPS
    2025: section 2 (loss and ranking), section 4.2 (ablation of the terms).
    """

    training: ClassVar[Training] = Training(learning_rate=1e-6, weight_decay=0.01, micro_batch_size=32)
    embedded: ClassVar[str] = "arithmetic"

    credit_epsilon: float = 1e-6
    kl_coefficient: float = 1e-3
    entropy_coefficient: float = 1e-3
    temperature: float = 0.6
    examples: int = 1
    rank: Ranking = "std"
    history: str | None = None
    prompt_id: str | None = None
    copies: int | None = None
    updates: int = 8
    rollouts: int | None = None
    history_epochs: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("examples", "copies", "updates", "rollouts", "history_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        if self.copies is not None and self.copies < self.examples:
            raise InputError(f"copies ({self.copies}) must be at least examples ({self.examples}): each has one row")

    def sampling(self, rows: int) -> Sampling:
        """How a batch of so many rows is sampled."""
        return Sampling(
            samples=8, prompts_per_rollout=rows, temperature=self.temperature, updates_per_rollout=self.updates
        )

    def work(self, job: Job) -> dict[str, Any]:
        """Chooses the prompts, copies them, and trains on nothing else."""
        copies, rollouts = (8, 10) if job.inputs.data is None else (128, 2000)
        copies = max(copies, self.examples) if self.copies is None else self.copies
        sampling = replace(job.sampling(self.sampling(copies)), prompts_per_rollout=copies)
        records, reward = job.prompts()
        ranked = self._ranked(job, records, reward, sampling)
        chosen = choose(records, ranked, self.examples)
        for record, (name, score) in zip(chosen, ranked, strict=False):
            _log.info("training on %r (%s %.3f): %s", name, self.rank, score, str(record["prompt"])[:120])
        training = replace(job.training(self.training), epochs=self.rollouts or rollouts)
        rows = batch_of_copies(chosen, copies)
        summary = job.compared(lambda: job.online(self, rows, reward, sampling, training))
        return {**summary, "trained_on": [{"id": record_id(r), "prompt": str(r["prompt"])} for r in chosen]}

    def _ranked(self, job: Job, records: Sequence[Record], reward: Any, sampling: Sampling) -> list[tuple[str, float]]:
        if self.prompt_id is not None:
            return [(self.prompt_id, float("nan"))]
        if self.history is not None:
            known = AccuracyHistory.load(self.history)
        elif job.inputs.data is None and job.inputs.task is None:
            known = AccuracyHistory.load(embedded_history())
        else:
            known = self._earlier_run(job, records, reward, sampling)
        return rank_by_history(known, method=self.rank, seed=job.run.seed)

    def _earlier_run(self, job: Job, records: Sequence[Record], reward: Any, sampling: Sampling) -> AccuracyHistory:
        _log.info("no history is given: an earlier run on all %d prompts is made first", len(records))
        training = replace(job.training(self.training), epochs=self.history_epochs)
        found = job.online(self, records, reward, sampling, training, stage="history")
        job.model, job.tokenizer = job.load()  # the earlier run only ranks; training begins from the same start
        return found


def embedded_history() -> Path:
    """Accuracies of SmolLM2-135M-Instruct on small arithmetic problems, epoch by epoch of an online run."""
    return Path(str(files("thrifty.align"))) / "history.jsonl"


def record_id(record: Record) -> str:
    """What a history calls a prompt: its ``id``, else its text."""
    return str(record.get("id", record["prompt"])).strip()


def choose(records: Sequence[Record], ranked: Sequence[tuple[str, float]], count: int) -> list[Record]:
    """The records of the highest-ranked prompts.

    Parameters
    ----------
    records
        The pool.
    ranked
        Ids with their scores, the best first.
    count
        How many to take.

    Raises
    ------
    InputError
        When a ranked prompt is not in the pool, or there are fewer than ``count``.
    """
    by_id: Mapping[str, Record] = {record_id(record): record for record in records}
    found = []
    for name, _ in ranked[:count]:
        if name not in by_id:
            raise InputError(f"the prompt {name!r} is not in the data: {nearest(name, by_id) or 'other prompts are'}")
        found.append(by_id[name])
    if len(found) < count:
        raise InputError(f"{count} examples were asked for, the history knows {len(found)}")
    return found


def batch_of_copies(chosen: Sequence[Record], rows: int) -> list[Record]:
    """The chosen prompts over and over until the batch is full: each row will have a group of its own.

    Parameters
    ----------
    chosen
        At least one record.
    rows
        Of the batch.
    """
    return [chosen[number % len(chosen)] for number in range(rows)]
