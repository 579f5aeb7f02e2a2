"""TULU 3: Pushing Frontiers in Open Language Model Post-Training (arXiv 2411.15124): a recipe of three stages.

The four slots, stage by stage. Supervised: sequences are logged, all worth 1, the loss is the negative log-likelihood.
Preference: pairs are logged, or made of the policy's own rated answers; the loss is DPO on mean log-probabilities.
Verifiable rewards: sequences are sampled, worth is a verifier's word, credit comes from a value model, the loss is PPO.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from thrifty.align.asking import Record, Reward, Sampling
from thrifty.align.base import Training
from thrifty.align.critic import RewardModelling, ValueModel
from thrifty.align.curation import Matching, decontaminated, mixed, mixes
from thrifty.align.dpo import DPO
from thrifty.align.job import Job
from thrifty.align.ppo import PPO, Place
from thrifty.align.recipe import Evaluation, judged_by, kept, problem_sets, staged, start_from, task_sets
from thrifty.align.sft import SFT
from thrifty.align.training import train
from thrifty.align.tulu3_data import preference_pairs, training_data
from thrifty.core import processes
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.lm.records import from_records
from thrifty.lm.sequences import Sequences
from thrifty.reward.mixture import Mixture
from thrifty.reward.models import OutcomeModel

_log = logging.getLogger("thrifty")

STAGES = ("sft", "preference", "rlvr")
SUPERVISED = Training(learning_rate=5e-6, schedule="linear", warmup_ratio=0.03, epochs=2.0, batch_size=128)
PREFERENCE = Training(learning_rate=5e-7, schedule="linear", warmup_ratio=0.1, batch_size=256)
"""128 pairs."""
_FEW = 32
_REWARD_MODEL = "reward-model.safetensors"
Sources = Mapping[str, Sequence[Record]]


@register("tulu3")
@dataclass(frozen=True)
class Tulu3:
    r"""Supervised fine-tuning, then length-normalised DPO, then reinforcement learning with verifiable rewards.

    .. math::
        a(y) = \tfrac{1}{|y|} \textstyle\sum_t \log\pi(y_t|x, y_{<t}), \qquad
        L_\text{pref} = -\overline{\log\sigma\big(\beta_\text{pref} [(a_\pi(y_w) - a_\pi(y_l))
            - (a_\text{ref}(y_w) - a_\text{ref}(y_l))]\big)}

        \text{RLVR:}\quad \max_\pi\; \mathbb{E}[v(x, y) - \beta\, \mathrm{KL}(\pi \| \pi_\text{ref})], \qquad
        v = \alpha \text{ if verified, else } 0

    Each stage starts from the model of the one before, which is also its reference, keeps its own in ``<stage>/model``
    of the run, and is not repeated when the run goes on. With ``--stage`` one is run by itself, from ``--model``.
    Training rows that hold an evaluation problem are dropped first, and reported (``decontamination-*.json``).
    Development evaluations are made after each stage and decide (which mix of data); the unseen ones are made once, at
    the end. The value model starts from a reward model that is trained on the preference pairs from the supervised
    model. Left out: writing prompts for personas, and the language model that rates answers in the authors' pipeline
    (give its ratings, or ``--judge``).

    Parameters
    ----------
    stage
        One of them, or ``all``; with own data those that have some.
    earlier
        Directory of an earlier run of this recipe, from whose stage before ``stage`` the model is taken.
    sft_data
        Supervised data (``prompt`` and ``completion``, or ``messages``): files with their weights in the mix,
        ``a.jsonl=0.5,b.jsonl``. Several mixes, ``a.jsonl; a.jsonl=0.5,b.jsonl``, are all tried, and the one that is
        best on the development evaluations is kept. A problem that comes with the package when no data are given.
    sft_loss
        ``sum`` over the tokens of a step, as in the paper, or their ``mean``. Either way no example weighs more for the
        part of the batch that it is in.
    preference_data
        Pairs (``prompt``, ``chosen``, ``rejected``); or prompts with ``answers`` and their ``ratings`` (a list of
        numbers, or of lists for several aspects); or prompts alone, to which the model's own answers are rated.
    preference_samples
        The model's own answers to each prompt, where answers are rated here.
    judge
        What rates answers to prompts: verifiers with commas between (``exact,python:MODULE:FUNCTION``), whose mean
        counts; by default the verifier of ``--reward`` or the task.
    preference_kind
        ``dpo-norm`` is the paper's; ``dpo`` and ``simpo`` were compared with it.
    preference_beta
        Of that loss; 5 for ``dpo-norm``, whose margins are means over tokens.
    rlvr_data
        Prompts with ``answer``, and ``verifier`` (a name as for ``--reward``) where rows differ in it: ``number``,
        ``math``, ``constraint`` and others.
    reward_model
        A decoder that classifies sequences, from which the value model starts; ``policy`` starts it from the policy.
        By default the one trained in this run, or the policy where there is none.
    reward_model_multiplier
        Weight of that reward model's logit in the score; the paper's runs use 0, as adding it was worse.
    alpha, beta, non_stop_penalty, min_length, score_position
        As for PPO: what a verified answer earns, the weight of the divergence, the score of an answer that did not end
        (``None`` leaves its own) or is too short, and where the score stands.
    passes
        Over each rollout.
    preference_learning_rate, rlvr_learning_rate, value_learning_rate
        Where they differ from ``--learning-rate`` (the paper's, for 8 billion weights: 5e-6, then 5e-7, then 3e-7).
    development, unseen
        Evaluation problems (``prompt``, ``answer``, maybe ``verifier``): ``FILE,FILE`` or ``NAME=FILE,NAME=FILE``. By
        default the task's test problems, one half for each.
    decontamination
        ``tokens`` is the paper's; ``ngram``, ``exact``, ``exact+ngram``, ``none``.
    ngram_size, match_threshold
        Words in an n-gram, and the share of a problem's tokens above which a row is dropped.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    Lambert et al., "TULU 3", arXiv 2411.15124: sections 3.2 (decontamination), 4.3 (supervised), 5.1.2 and 5.4
    (preference), 6 (verifiable rewards), 2.2 and 7 (evaluation).
    """

    embedded: ClassVar[str] = "arithmetic"

    stage: Literal["all", "sft", "preference", "rlvr"] = "all"
    earlier: str | None = None
    sft_data: str | None = None
    sft_loss: Literal["sum", "mean"] = "sum"
    preference_data: str | None = None
    preference_samples: int = 4
    judge: str | None = None
    preference_kind: Literal["dpo-norm", "dpo", "simpo"] = "dpo-norm"
    preference_beta: float = 5.0
    rlvr_data: str | None = None
    reward_model: str | None = None
    reward_model_multiplier: float = 0.0
    alpha: float = 10.0
    beta: float = 0.05
    non_stop_penalty: float | None = -10.0
    min_length: int = 0
    score_position: Place = "after"
    passes: int = 4
    preference_learning_rate: float | None = None
    rlvr_learning_rate: float | None = None
    value_learning_rate: float | None = None
    development: str | None = None
    unseen: str | None = None
    decontamination: Matching = "tokens"
    ngram_size: int = 8
    match_threshold: float = 0.5

    def __post_init__(self) -> None:
        self._dpo()
        self._ppo(None)
        for name in ("preference_samples", "passes", "ngram_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.reward_model_multiplier and self.reward_model in (None, "policy"):
            raise InputError("reward_model_multiplier weighs the score of a reward model: give --reward-model")

    @property
    def _own(self) -> bool:
        return any((self.sft_data, self.preference_data, self.rlvr_data))

    def _dpo(self) -> DPO:
        return DPO(kind=self.preference_kind, beta=self.preference_beta)

    def _ppo(self, value_start: Any) -> PPO:
        names = ("alpha", "beta", "non_stop_penalty", "min_length", "score_position", "value_learning_rate")
        return PPO(**{name: getattr(self, name) for name in names}, value_start=value_start)

    def _training(self, job: Job, own: Training, rate: float | None = None) -> Training:
        training = job.training(own)
        if not self._own and job.inputs.batch_size is None:
            training = replace(training, batch_size=_FEW)  # the data that come with the package are few
        return training if rate is None else replace(training, learning_rate=rate)

    def work(self, job: Job) -> dict[str, Any]:
        """Runs the stages that there are data for, with the evaluations between them and after all."""
        given = {"sft": self.sft_data, "preference": self.preference_data, "rlvr": self.rlvr_data}
        data = training_data(job, given, self.stage)
        reward = judged_by(job, embedded=not self._own)
        development, unseen = self._evaluations(job, reward)
        folder, texts = job.run.directory, {**development.texts(), **unseen.texts("unseen ")}
        for stage, sources in data.items():
            for number, source in enumerate(sources, start=1):
                report = folder / f"decontamination-{stage}-{number}.json"
                data[stage][source] = decontaminated(
                    sources[source],
                    texts,
                    self.decontamination,
                    n=self.ngram_size,
                    threshold=self.match_threshold,
                    file=report,
                )
        learn = {"sft": self._sft, "preference": self._preference, "rlvr": self._rlvr}
        first = self.earlier is None or self.stage in ("all", STAGES[0])
        before = "start" if first else STAGES[STAGES.index(self.stage) - 1]
        start_from(job, self.earlier, before)
        rows = {before: development.row(job, folder / before / "development.json")}
        for stage in data:
            learn[stage](job, data[stage], reward, development)
            rows[stage] = development.row(job, folder / stage / "development.json")
        for stage in rows:  # now that nothing is to be decided any more
            if stage in data:
                job.model, job.tokenizer = job.load(str(folder / stage / "model"))
            else:
                job.model, job.tokenizer = job.load()
                start_from(job, self.earlier, before)
            rows[stage] |= unseen.row(job, folder / stage / "unseen.json", prefix="unseen ")
        return {"table": [{"model": stage} | row for stage, row in rows.items()]}

    def _evaluations(self, job: Job, reward: Reward) -> tuple[Evaluation, Evaluation]:
        sets = [problem_sets(getattr(self, name), name) for name in ("development", "unseen")]
        if not any(sets) and job.task is not None and not (self._own and job.inputs.task is None):
            sets = list(task_sets(job.task, job.inputs.problems, job.run.seed))
        sampling = Sampling(samples=1, max_new_tokens=job.inputs.max_new_tokens, top_k=1)
        return Evaluation(sets[0], reward, sampling), Evaluation(sets[1], reward, sampling)

    def _sft(self, job: Job, sources: Sources, reward: Reward, development: Evaluation) -> None:
        """Supervised fine-tuning on the mix that is best on the development evaluations."""
        del reward
        candidates = mixes(self.sft_data) if self.sft_data else [dict.fromkeys(sources, 1.0)]
        if len(candidates) == 1:
            staged(job, "sft", partial(self._supervised, job, sources, candidates[0]))
            return
        if not development.sets:
            raise InputError("mixes are chosen by development evaluations: give --development, or one mix")
        scores = {}
        for number, weights in enumerate(candidates, start=1):
            name = f"sft-mix-{number}"
            job.model, job.tokenizer = job.load()
            staged(job, name, partial(self._supervised, job, sources, weights))
            file = job.run.directory / name / "development.json"
            development.row(job, file)
            scores[name] = development.average(file)
        best = max(scores, key=lambda name: scores[name])
        _log.info("%s is the best on the development evaluations: %s", best, scores)
        job.model, job.tokenizer = job.load(str(job.run.directory / best / "model"))
        staged(job, "sft", lambda _: None)

    def _supervised(self, job: Job, sources: Sources, weights: Mapping[str, float], stage: Run) -> None:
        rows = mixed(sources, weights, job.run.seed)
        data = from_records(rows, job.tokenizer, max_length=job.inputs.max_length)
        train(job.model, SFT(reduction=self.sft_loss), data, stage, self._training(job, SUPERVISED))

    def _preference(self, job: Job, sources: Sources, reward: Reward, development: Evaluation) -> None:
        """Pairs of rated answers, a reward model of them for the stage after, and DPO."""
        del development

        def learn(stage: Run) -> None:
            records = [row for rows in sources.values() for row in rows]
            pairs = kept(
                stage.directory / "pairs.jsonl",
                lambda: preference_pairs(job, records, reward, self.judge, self.preference_samples),
            )
            data = job.preferences(pairs)
            if self.reward_model is None and (self.stage == "preference" or not self._own or self.rlvr_data):
                self._reward_model(job, data, stage)
            training = self._training(job, PREFERENCE, self.preference_learning_rate)
            train(job.model, self._dpo(), data, stage, training)

        staged(job, "preference", learn)

    def _reward_model(self, job: Job, data: Sequences, stage: Run) -> None:
        part = stage.stage("reward-model")
        file = stage.directory / _REWARD_MODEL
        if not any(processes.gather(file.exists())):
            value = ValueModel.of(job.model)
            train(value, RewardModelling(), data, part, self._training(job, RewardModelling.training))
            processes.on_main(lambda: save_tree(file, value.state_dict()))

    def _rlvr(self, job: Job, sources: Sources, reward: Reward, development: Evaluation) -> None:
        """PPO with a value model, against the verifier."""
        del development

        def learn(_: Run) -> None:
            records = [row for rows in sources.values() for row in rows]
            start, file = None, Path(self.earlier or job.run.directory) / "preference" / _REWARD_MODEL
            worth: Reward = reward
            if self.reward_model is not None and self.reward_model != "policy":
                scorer = OutcomeModel.load(
                    self.reward_model, dtype=job.run.dtype, device=job.run.device, output="logit"
                )
                start = scorer.model
                if self.reward_model_multiplier:
                    assert callable(reward)
                    worth = Mixture([reward, scorer], [1.0, self.reward_model_multiplier / self.alpha])
            elif self.reward_model is None and file.exists():
                start = ValueModel.of(job.model)
                start.load_state_dict(load_tree(file))
            elif self.reward_model is None:
                _log.warning("there is no %s: the value model starts from the policy", file)
            sampling = replace(PPO.sampling, updates_per_rollout=self.passes, passes=self.passes)
            if not self._own:
                sampling = replace(sampling, prompts_per_rollout=_FEW)
            training = self._training(job, PPO.training, self.rlvr_learning_rate)
            job.online(self._ppo(start), records, worth, job.sampling(sampling), training, stage="rlvr")

        staged(job, "rlvr", learn)
