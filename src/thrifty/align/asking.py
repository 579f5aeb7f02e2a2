"""The first two slots online: the policy answers prompts, and what it said is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from thrifty.core import processes
from thrifty.core.errors import InputError
from thrifty.core.sharding import gathered
from thrifty.lm.draw import Draw
from thrifty.lm.remote import RemoteSampler, sampler_apart
from thrifty.lm.sampler import ModelSampler, Request, Sampler
from thrifty.lm.sequences import Sequences
from thrifty.reward.base import score, shared_columns

Record = Mapping[str, Any]
"""A prompt (``prompt``: text, messages or token ids) with whatever its reward wants to know, such as ``answer``."""


@dataclass(frozen=True)
class Sampling:
    """How answers are sampled, and how long each rollout is learnt from.

    Parameters
    ----------
    samples
        Answers to each prompt.
    prompts_per_rollout
        Prompts that are asked before the policy is updated.
    max_new_tokens
        Longest answer, in tokens.
    temperature, top_k, top_p
        The distribution that answers are drawn from; log-probabilities are compared at the same temperature.
    updates_per_rollout
        Optimizer steps on each rollout: 1 is on-policy.
    passes
        How often each rollout is gone through in these updates.
    resample
        How often prompts whose answers all got the same reward are replaced by others (dynamic sampling, DAPO);
        0 keeps them.
    """

    samples: int = 8
    prompts_per_rollout: int = 16
    max_new_tokens: int = 128
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    updates_per_rollout: int = 1
    passes: int = 1
    resample: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "prompts_per_rollout", "max_new_tokens", "updates_per_rollout", "passes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        Draw(self.temperature, self.top_k, self.top_p)

    @property
    def draw(self) -> Draw:
        """The distribution of each token."""
        return Draw(self.temperature, self.top_k, self.top_p)


class Answered(NamedTuple):
    """Answers of a rollout, as they are scored: one prompt, record and text for each row."""

    sequences: Sequences
    prompts: list[Any]
    texts: list[str]
    records: list[Record]


class Worth(Protocol):
    """A reward that says more than one number an answer, such as one for each step."""

    def columns(self, answered: Answered) -> Mapping[str, Tensor]:
        """Columns ``[N]`` or ``[N, T]`` to add to the answers.

        ``reward`` is one of them. ``right`` says which answers are right, for a history of accuracies, where a reward
        of at least 1 does not; ``checked``, of which that is known.
        """
        ...


Reward = Callable[..., Sequence[float | None]] | Worth
"""``reward(prompts, completions)`` or TRL's signature: one score a completion; or a :class:`Worth`."""


def signed(reward: Reward) -> Callable[..., list[float]]:
    """The reward with right answers (scores of at least 1) worth 1 and all others -1."""

    def plus_or_minus(prompts: Any, completions: Any, completion_ids: Any = None, **columns: Any) -> list[float]:
        assert callable(reward)
        scores = score(reward, prompts, completions, completion_ids=completion_ids, columns=columns)
        return [1.0 if value >= 1 else -1.0 for value in scores.tolist()]

    return plus_or_minus


def as_records(prompts: Sequence[Any]) -> list[Record]:
    """Prompts as records: texts, messages, token ids, or records already.

    Raises
    ------
    InputError
        When there is none, or a record has no ``prompt``.
    """
    records = [prompt if isinstance(prompt, Mapping) else {"prompt": prompt} for prompt in prompts]
    if not records:
        raise InputError("there are no prompts: the data set is empty")
    for number, record in enumerate(records, start=1):
        if "prompt" not in record:
            raise InputError(
                f"record {number} has no column 'prompt' (it has: {', '.join(sorted(record)) or 'nothing'})"
            )
    return records


class Asker:
    """Lets the policy answer prompts and scores what it says; the work is dealt out to all processes.

    Parameters
    ----------
    model
        The policy.
    tokenizer
        Its tokenizer.
    reward
        Scores completions.
    sampling
        How to sample.
    sampler
        What samples; when ``None`` the job's sampling processes where it has some, else this process's model.
    """

    def __init__(
        self, model: Any, tokenizer: Any, reward: Reward, sampling: Sampling, sampler: Sampler | None = None
    ) -> None:
        self.model, self.tokenizer, self.reward, self.sampling = model, tokenizer, reward, sampling
        self.sampler = sampler or sampler_apart(model, tokenizer) or ModelSampler(model, tokenizer)

    def ask(self, records: Sequence[Record], seed: int) -> Sequences:
        """``samples`` answers to each prompt, in order, on the CPU.

        Parameters
        ----------
        records
            The prompts.
        seed
            Of the sampling. The answers are the same however many processes share the work.

        Returns
        -------
        Sequences
            With ``behaviour_logps``, ``group`` (number of the prompt), ``finished``, ``reward`` and what else the
            reward says.

        Raises
        ------
        RunError
            When the reward function fails, or returns the wrong number of scores or one that is not finite.
        """
        rank, world = processes.rank(), processes.world()
        if isinstance(self.sampler, RemoteSampler):
            rank, world = (0, 1) if processes.is_main() else (len(records), 1)  # the main process asks for all
        mine = range(rank, len(records), world)
        parts: list[Sequences] = []
        with gathered(self.model):
            self.sampler.refresh(self.model)
            if mine:
                request = Request(
                    self.sampling.samples,
                    max_new_tokens=self.sampling.max_new_tokens,
                    draw=self.sampling.draw,
                    seed=seed,
                    numbering=(len(records), list(mine)),
                )
                prompts = [records[number]["prompt"] for number in mine]
                answers = self.sampler.sample(prompts, request).to("cpu")
                answers = answers.with_columns(group=torch.tensor(list(mine))[answers["group"]])
                parts = [answers.with_columns(**self._worth(answers, records))]
        found = Sequences.cat([part for of_one in processes.gather(parts) for part in of_one], pad_id=self._pad())
        return found.select(found["group"].argsort(stable=True))

    def _worth(self, answers: Sequences, records: Sequence[Record]) -> Mapping[str, Tensor]:
        asked = [records[number] for number in answers["group"].tolist()]
        prompts = [record["prompt"] for record in asked]
        texts = answers.texts(self.tokenizer) if self.tokenizer is not None else [""] * len(answers)
        if hasattr(self.reward, "columns"):
            return self.reward.columns(Answered(answers, prompts, texts, asked))
        ids = [row[spoken].tolist() for row, spoken in zip(answers.input_ids, answers.response_mask, strict=True)]
        return {"reward": score(self.reward, prompts, texts, completion_ids=ids, columns=shared_columns(asked))}

    def _pad(self) -> int:
        return int(getattr(self.tokenizer, "pad_token_id", None) or 0)
