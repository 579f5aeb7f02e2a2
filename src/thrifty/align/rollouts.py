"""Batches that the policy makes itself: rollouts, each learnt from in one update or several."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from thrifty.align.asking import Asker, Record
from thrifty.align.base import Objective
from thrifty.align.credit import equal_groups
from thrifty.align.reference import Reference, column_of_logps
from thrifty.core.loop import Shuffled
from thrifty.core.seeding import derive_seed
from thrifty.lm.remote import RemoteSampler
from thrifty.lm.sampler import ModelSampler
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")


class History(Protocol):
    """What keeps each prompt's accuracy over a run: :class:`thrifty.select.history.AccuracyHistory`."""

    def update(self, prompt_ids: Sequence[str], success: Tensor, epoch: int) -> None: ...

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Rollouts:
    """Batches from the policy itself: every so many steps it answers the next prompts, and these answers are learnt.

    Part of a run's state: a run that goes on in the middle of a rollout has its answers.

    Parameters
    ----------
    asker
        Samples and scores.
    records
        The prompts, gone through in an order that the seed decides.
    objective
        Turns answers into what its loss uses, once a rollout.
    seed
        Of order and sampling.
    device
        Where the policy is.
    reference
        Gives ``reference_logps`` where the objective needs them.
    critic
        ``critic(batch)`` gives ``values`` where the objective needs them.
    history
        Takes each prompt's share of right answers, one epoch being a pass over the prompts.
    """

    def __init__(
        self,
        asker: Asker,
        records: Sequence[Record],
        objective: Objective,
        seed: int,
        device: torch.device,
        *,
        reference: Reference | None = None,
        critic: Callable[[Sequences], Tensor] | None = None,
        history: History | None = None,
    ) -> None:
        self.asker, self.records, self.objective, self.seed, self.device = asker, records, objective, seed, device
        self.reference, self.critic, self.history = reference, critic, history
        self.order = Shuffled(len(records), min(asker.sampling.prompts_per_rollout, len(records)), seed, last="fill")
        self.number, self.spent = -1, 0
        self.current: Sequences | None = None
        self.metrics: dict[str, float] = {}

    def rows(self) -> int:
        """Answers in a rollout."""
        return self.order.batch_size * self.asker.sampling.samples

    def batch(self, step: int) -> Sequences:
        """The prepared answers that step ``step`` learns from."""
        updates = self.asker.sampling.updates_per_rollout
        number, update = divmod(step, updates)
        if number != self.number or self.current is None:
            self.current, self.number = self._prepared(self._answers(number)), number
        if updates == 1 and self.asker.sampling.passes == 1:
            return self.current
        return self.current.select(self._dealt(self.current, number, update))

    def _dealt(self, answers: Sequences, number: int, update: int) -> Tensor:
        """The rows of one of a rollout's updates; whole groups where there are enough of them."""
        sampling = self.asker.sampling
        group = answers.columns.get("group")
        units = torch.arange(len(answers)) if group is None else group.unique(return_inverse=True)[1]
        if int(units.max()) + 1 < sampling.updates_per_rollout:
            units = torch.arange(len(answers))
        count = int(units.max()) + 1
        size = max(1, round(count * sampling.passes / sampling.updates_per_rollout))
        chosen = Shuffled(count, size, derive_seed(self.seed, "deal", number), last="fill")(update)
        return torch.isin(units, chosen).nonzero()[:, 0]

    def _answers(self, number: int) -> Sequences:
        """A rollout's answers; with dynamic sampling, of prompts whose answers differ in their rewards."""
        sampling = self.asker.sampling
        asked = [self.records[i] for i in self.order(self.spent).tolist()]
        answers = self._ask(asked, number, 0)
        for attempt in range(1, sampling.resample + 1):
            differ = _differing(answers)
            if bool(differ.all()):
                break
            others = [self.records[i] for i in self.order(self.spent).tolist()]
            fresh = self._ask(others, number, attempt)
            fresh = fresh.with_columns(group=fresh["group"] + int(answers["group"].max()) + 1)
            kept = Sequences.cat([answers.select(differ), fresh.select(_differing(fresh))])
            if not len(kept):
                continue
            groups = kept["group"].unique_consecutive()[: self.order.batch_size]
            answers = kept.select(torch.isin(kept["group"], groups))
        return answers

    def _ask(self, records: Sequence[Record], number: int, attempt: int) -> Sequences:
        answers = self.asker.ask(records, derive_seed(self.seed, "rollout", number, attempt))
        epoch = self.spent * self.order.batch_size // len(self.records)
        self.spent += 1
        if self.history is not None:
            known = _known(answers)
            ids = [str(records[i].get("id", records[i]["prompt"])) for i in known["group"].tolist()]
            self.history.update(ids, known.columns.get("right", known["reward"] >= 1).float(), epoch)
        return answers

    def _prepared(self, answers: Sequences) -> Sequences:
        needs = self.objective.needs()
        if "reference_logps" in needs and self.reference is not None:
            reference, temperature = self.reference, self.asker.sampling.temperature
            logps = column_of_logps(lambda part: reference.logps(part, temperature), answers, self.device)
            answers = answers.with_columns(reference_logps=logps)
        if "values" in needs and self.critic is not None:
            answers = answers.with_columns(values=column_of_logps(self.critic, answers, self.device))
        self.metrics = _metrics(answers)
        sampling, prepared = self.asker.sampling, self.objective.prepare(answers)
        if sampling.updates_per_rollout == 1 and isinstance(self.asker.sampler, (ModelSampler, RemoteSampler)):
            # On-policy, the policy is its own behaviour: ratios are 1, not off by the rounding of two ways to compute.
            prepared = prepared.without_columns("behaviour_logps")
        return prepared

    def state_dict(self) -> dict[str, Any]:
        """The current rollout, prepared, and what was spent."""
        return {
            "number": self.number,
            "spent": self.spent,
            "metrics": dict(self.metrics),
            "current": None if self.current is None else as_tree(self.current),
            "history": None if self.history is None else self.history.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state that :meth:`state_dict` gave."""
        self.number, self.spent, self.metrics = state["number"], state["spent"], dict(state["metrics"])
        self.current = None if state["current"] is None else Sequences(**state["current"])
        if self.history is not None:
            self.history.load_state_dict(state["history"])


def as_tree(data: Sequences) -> dict[str, Any]:
    """Sequences as a tree that a checkpoint can hold; ``Sequences(**tree)`` is the way back."""
    return {
        "input_ids": data.input_ids,
        "attention_mask": data.attention_mask,
        "response_mask": data.response_mask,
        "columns": dict(data.columns),
    }


def _known(answers: Sequences) -> Sequences:
    """The answers that were checked, where their worth says which could be."""
    checked = answers.columns.get("checked")
    return answers if checked is None else answers.select(checked.bool())


def _differing(answers: Sequences) -> Tensor:
    _, place = answers["group"].unique(return_inverse=True)
    reward, groups = answers["reward"], int(place.max()) + 1
    low = reward.new_full((groups,), float("inf")).scatter_reduce(0, place, reward, "amin")
    high = reward.new_full((groups,), float("-inf")).scatter_reduce(0, place, reward, "amax")
    return (low < high)[place]


def _metrics(answers: Sequences) -> dict[str, float]:
    reward = answers["reward"].float()
    alike = float(equal_groups(reward, answers["group"]))
    if alike == 1.0:
        _log.warning("all answers to each prompt have the same reward: this rollout gives the policy no direction")
    return {
        "reward": float(reward.mean()),
        "equal_groups": alike,
        "answer_tokens": float(answers.response_lengths.float().mean()),
        "cut_off": float((~answers["finished"].bool()).float().mean()),
    }
