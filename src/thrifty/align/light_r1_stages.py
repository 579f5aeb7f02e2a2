"""The stages of Light-R1: two supervised ones, preference with a variant of it, merge, reinforcement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thrifty.align.asking import Record, Reward, Sampling
from thrifty.align.base import Training
from thrifty.align.dpo import DPO
from thrifty.align.grpo import GRPO
from thrifty.align.job import Job
from thrifty.align.light_r1_data import Curriculum, own_pairs, prompts_in_band, without_special_tokens
from thrifty.align.merging import ties_merge
from thrifty.align.recipe import kept, staged
from thrifty.align.sft import SFT
from thrifty.align.training import train
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.data.readers import read, require_columns
from thrifty.lm.load import load_lm
from thrifty.lm.records import from_records
from thrifty.reward.lengths import cosine_length

if TYPE_CHECKING:
    from thrifty.align.light_r1 import LightR1

FIRST = Training(
    learning_rate=5e-5, schedule="cosine", warmup_ratio=0.01, betas=(0.9, 0.95), weight_decay=0.1, epochs=4.0,
    batch_size=96,
)  # fmt: skip
SECOND = replace(FIRST, learning_rate=1e-5, epochs=8.0, batch_size=32)
PREFERENCE = Training(learning_rate=5e-7, epochs=3.0, batch_size=32)
"""16 pairs."""
REINFORCEMENT = Training(learning_rate=1e-6, epochs=3.0)
ROLLOUTS = Sampling(samples=8, prompts_per_rollout=128)
_FEW = 32


def answering(job: Job, samples: int, temperature: float = 1.0) -> Sampling:
    """So many answers to each prompt."""
    return Sampling(samples=samples, max_new_tokens=job.inputs.max_new_tokens, temperature=temperature)


def grpo(method: LightR1) -> GRPO:
    """The objective of the last stage."""
    return GRPO(dual_clip=method.dual_clip, kl_coefficient=method.kl_coefficient)


def _training(job: Job, own: Training, rate: float | None) -> Training:
    training = job.training(own)
    if job.inputs.data is None and job.inputs.batch_size is None:
        training = replace(training, batch_size=min(training.batch_size, _FEW))  # the embedded data are few
    return training if rate is None else replace(training, learning_rate=rate)


def _imitated(job: Job, name: str, rows: Sequence[Record], own: Training, rate: float | None) -> None:
    def learn(stage: Run) -> None:
        if not rows:
            raise InputError("no question is hard for the teacher: it solves all of them always, or often enough")
        data = from_records(rows, job.tokenizer, max_length=job.inputs.max_length)
        train(job.model, SFT(), data, stage, _training(job, own, rate))

    staged(job, name, learn)


def _first(method: LightR1, job: Job, data: Curriculum, reward: Reward) -> None:
    del method, reward
    _imitated(job, "sft1", data.first, FIRST, None)


def _second(method: LightR1, job: Job, data: Curriculum, reward: Reward) -> None:
    del reward
    _imitated(job, "sft2", data.second, SECOND, method.sft2_learning_rate)


def _preference(method: LightR1, job: Job, data: Curriculum, reward: Reward) -> None:
    """Two models learn from the same pairs; the first, on answers without special tokens, is for the merge."""
    origin = _folder(method, job, "sft2")

    def learn(plain: bool, stage: Run) -> None:
        sampling = answering(job, method.preference_samples)
        pairs = kept(job.run.directory / "pairs.jsonl", lambda: own_pairs(job, data.questions, reward, sampling))
        # A rejected answer that is cut off might have become right, so its pair is left out.
        rows = from_records(pairs, job.tokenizer, max_length=job.inputs.max_length, truncation="drop")
        rows = without_special_tokens(rows, job.tokenizer.all_special_ids) if plain else rows
        objective = DPO(kind=method.preference_kind, beta=method.preference_beta)
        train(job.model, objective, rows, stage, _training(job, PREFERENCE, method.preference_learning_rate))

    if method.second_variant:
        staged(job, "preference-2", partial(learn, True))
        job.model, job.tokenizer = job.load(origin)
    staged(job, "preference", partial(learn, False))


def _folder(method: LightR1, job: Job, stage: str) -> str | None:
    """Where a stage's model is: in this run or in the earlier one; None where the user's model stands for it."""
    folders = [Path(run) / stage / "model" for run in (job.run.directory, method.earlier) if run is not None]
    return next((str(folder) for folder in folders if folder.is_dir()), None)


def _merge(method: LightR1, job: Job, data: Curriculum, reward: Reward) -> None:
    """TIES of the supervised and the preference models, as changes of the model that all started from."""
    del data, reward

    def learn(_: Run) -> None:
        found = [_folder(method, job, name) for name in ("sft2", "preference", "preference-2")]
        if None in found[:2]:
            raise InputError("nothing to merge: run the stages sft2 and preference first, or give --earlier")
        models = [load_lm(folder, dtype=job.run.dtype)[0].state_dict() for folder in found if folder is not None]
        job.model, _ = load_lm(job.inputs.model, dtype=job.run.dtype)
        changed = ties_merge(job.model.state_dict(), models, density=method.merge_density, scale=method.merge_scale)
        job.model.load_state_dict(changed)

    staged(job, "merge", learn)


def _reinforced(method: LightR1, job: Job, data: Curriculum, reward: Reward) -> None:
    """GRPO on the prompts that are solved some of the time, with a reward that looks at the length."""

    def learn(stage: Run) -> None:
        asked: Sequence[Record] = data.questions
        if method.rl_data is not None:
            asked = list(read(method.rl_data))
            require_columns(asked, ["prompt", "answer"], method.rl_data)
        probing, folder = answering(job, ROLLOUTS.samples), stage.directory
        chosen = kept(
            folder / "prompts.jsonl",
            lambda: prompts_in_band(job, asked, reward, probing, method.band, method.band_model, folder),
        )
        assert callable(reward)
        worth = cosine_length(
            reward,
            job.inputs.max_new_tokens,
            right=method.right_reward,
            wrong=method.wrong_reward,
            most=method.shortening_limit,
        )
        train(
            job.model,
            grpo(method),
            chosen,
            stage,
            _training(job, REINFORCEMENT, method.rl_learning_rate),
            tokenizer=job.tokenizer,
            reward=worth,
            sampling=job.sampling(ROLLOUTS if job.inputs.data else replace(ROLLOUTS, prompts_per_rollout=8)),
        )

    staged(job, "rl", learn)


STAGES: Mapping[str, Callable[[LightR1, Job, Curriculum, Reward], None]] = {
    "sft1": _first,
    "sft2": _second,
    "preference": _preference,
    "merge": _merge,
    "rl": _reinforced,
}
"""The stages by name, in their order: each takes the job's model and leaves its own there."""
