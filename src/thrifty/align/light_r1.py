"""Light-R1: Curriculum SFT, DPO and RL for Long COT from Scratch and Beyond (arXiv 2503.10460): a recipe of stages.

The four slots, stage by stage. Supervised, twice: a teacher's right answers are logged, to all hard questions and then
to the hardest. Preference: the teacher's right answer against one's own wrong one, by noise-contrastive alignment.
Reinforcement: sequences are sampled, worth is right or wrong with a cosine of the length, credit is normalised in
groups, the loss is the policy gradient clipped on both sides.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from thrifty.align.asking import Reward
from thrifty.align.curation import Matching, decontaminated
from thrifty.align.dpo import DPO
from thrifty.align.job import Job, as_record
from thrifty.align.light_r1_data import Curriculum, curriculum, rates, verified
from thrifty.align.light_r1_questions import EMBEDDED, balanced, embedded_questions, programmed_teacher, read_teacher
from thrifty.align.light_r1_stages import STAGES, answering, grpo
from thrifty.align.recipe import Evaluation, judged_by, own_answers, problem_sets, start_from
from thrifty.core import processes
from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.data.tasks import Task
from thrifty.reward.by_row import by_row
from thrifty.reward.verifiers import task_reward

_log = logging.getLogger("thrifty")


@register("light-r1")
@dataclass(frozen=True)
class LightR1:
    r"""Teaches reasoning: imitate a teacher on hard questions, then on the hardest; learn from own mistakes; reinforce.

    .. math::
        s_w = \beta \log\frac{\pi(y_w|x)}{\pi_\text{ref}(y_w|x)}, \quad s_l \text{ likewise}, \qquad
        L_\text{NCA} = \overline{-\log\sigma(s_w) - \tfrac12\log\sigma(-s_w) - \tfrac12\log\sigma(-s_l)}

    A weak model's pass rate leaves out the easy questions, the teacher's own picks the hard ones for the second stage.
    Pairs are semi-on-policy: rejected are the model's own answers that were found wrong, chosen the teacher's that were
    found right. The models of the second, the preference stage and a variant of it are merged (TIES). Reinforcement
    learning uses the prompts that are solved some of the time.

    Each stage keeps its model in ``<stage>/model`` of the run and is not repeated when the run goes on. With
    ``--stage`` one is run by itself, from ``--model``, or from an earlier run. The data go to ``data``. Left out: the
    tagger of topics (give a column ``category``), and the second look at wrong reference answers (prompts that are
    never solved are not used, and are listed).

    Parameters
    ----------
    stage
        One of them, ``data`` for the filters alone, or ``all``.
    earlier
        Directory of an earlier run of this recipe, from which data and models of the stages before ``stage`` are taken.
    teacher
        File of a stronger model's answers to the questions of ``--data``: ``prompt``, and ``completion`` (a row an
        answer) or ``answers`` (a list). For the questions that come with the package a program answers.
    teacher_samples
        That program's answers to each question.
    weak_model
        What finds easy questions; the model itself by default.
    weak_samples
        Its answers to each question.
    weak_rate, teacher_rate
        Pass rates below which a question is hard for either (alpha, which is not published).
    category_limit
        Most questions of a ``category`` of the data.
    preference_samples
        The model's own answers to each question, for the pairs.
    preference_kind
        ``nca``, or ``dpo`` for comparison.
    preference_beta
        Of that loss, on sums over tokens.
    second_variant
        Train a second model on pairs whose rejected answers are taken without special tokens, for the merge.
    merge_density, merge_scale
        Share of each model's changes that are kept, and what their mean is multiplied by (not published).
    band
        Pass rates of the prompts for reinforcement learning.
    band_model
        What these are measured with; the model itself by default.
    rl_data
        Prompts with ``answer`` for that; by default the questions.
    right_reward, wrong_reward
        Of an answer of no length and of one at the limit, that is right and that is wrong (not published).
    shortening_limit
        Most that a right answer gets for being short: the cosine is cut off there.
    dual_clip
        c: with a negative advantage the loss is at most c times its size, whatever the ratio.
    kl_coefficient
        Weight of the divergence from the model before.
    sft2_learning_rate, preference_learning_rate, rl_learning_rate
        Where they differ from ``--learning-rate`` (the paper's: 5e-5, then 1e-5, 5e-7, 1e-6).
    evaluation
        Problems (``prompt``, ``answer``): ``FILE,FILE`` or ``NAME=FILE,NAME=FILE``. By default held-out ones of the
        task.
    evaluation_samples
        Answers to each of them, at temperature 0.6 (64 in the paper: with 16, runs differ by over three points).
    decontamination
        ``exact+ngram`` is the paper's: the same text without digits and punctuation, or a shared n-gram; ``tokens``,
        ``ngram``, ``exact``, ``none``. Questions that come with the package differ from held-out ones in digits alone,
        and are kept.
    ngram_size
        Words in an n-gram.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    Wen et al., "Light-R1", arXiv 2503.10460: sections 2 (data), 3.1 (curriculum), 3.2 (preference, merge), 4 (GRPO).
    """

    embedded: ClassVar[str] = "arithmetic"

    stage: Literal["all", "data", "sft1", "sft2", "preference", "merge", "rl"] = "all"
    earlier: str | None = None
    teacher: str | None = None
    teacher_samples: int = 4
    weak_model: str | None = None
    weak_samples: int = 4
    weak_rate: float = 0.75
    teacher_rate: float = 0.8
    category_limit: int | None = None
    preference_samples: int = 4
    preference_kind: Literal["nca", "dpo"] = "nca"
    preference_beta: float = 0.3
    second_variant: bool = True
    merge_density: float = 0.5
    merge_scale: float = 1.0
    band: tuple[float, float] = (0.25, 0.625)
    band_model: str | None = None
    rl_data: str | None = None
    right_reward: tuple[float, float] = (1.0, 0.5)
    wrong_reward: tuple[float, float] = (-1.0, -0.5)
    shortening_limit: float = 0.75
    dual_clip: float = 3.0
    kl_coefficient: float = 1e-3
    sft2_learning_rate: float | None = None
    preference_learning_rate: float | None = None
    rl_learning_rate: float | None = None
    evaluation: str | None = None
    evaluation_samples: int = 4
    decontamination: Matching = "exact+ngram"
    ngram_size: int = 32

    def __post_init__(self) -> None:
        for name in ("teacher_samples", "weak_samples", "preference_samples", "evaluation_samples", "ngram_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("weak_rate", "teacher_rate"):
            if not 0 < getattr(self, name) <= 1.01:
                raise InputError(f"{name} must be in (0, 1], not {getattr(self, name):g}")
        if not 0 <= self.band[0] <= self.band[1] <= 1:
            raise InputError(f"band must be 0 <= low <= high <= 1, not {self.band[0]:g} and {self.band[1]:g}")
        DPO(kind=self.preference_kind, beta=self.preference_beta)
        grpo(self)

    def work(self, job: Job) -> dict[str, Any]:
        """Filters the data, runs the stages, and evaluates after each."""
        stages = [name for name in STAGES if self.stage in ("all", name)]
        alone = stages and self.earlier is not None
        before = ("start", *STAGES)[list(STAGES).index(stages[0])] if alone else "start"
        start_from(job, self.earlier, before)
        if job.inputs.data is None and job.inputs.task not in (None, EMBEDDED.name):
            raise InputError(
                f"the embedded questions are {EMBEDDED.name}, not {job.inputs.task}: give --data with --task"
            )
        task = EMBEDDED if job.inputs.data is None else job.task
        reward = by_row(task_reward(task)) if job.inputs.data is None and task else judged_by(job, embedded=False)
        evaluation = self._evaluation(job, task, reward)
        data = self._data(job, reward, evaluation)
        if not stages:
            return {"table": [{"step": step, "left": count} for step, count in data.report.items()]}
        folder = job.run.directory
        rows = {before: evaluation.row(job, folder / before / "evaluation.json")}
        for stage in stages:
            STAGES[stage](self, job, data, reward)
            rows[stage] = evaluation.row(job, folder / stage / "evaluation.json")
        return {"table": [{"model": stage} | row for stage, row in rows.items()], "questions": data.report}

    def _evaluation(self, job: Job, task: Task | None, reward: Reward) -> Evaluation:
        sets = problem_sets(self.evaluation, "evaluation")
        if not sets and task is not None:
            problems = task.problems(job.inputs.problems, job.run.seed, "test")
            sets = {task.name: [as_record(problem) for problem in problems]}
        return Evaluation(sets, reward, answering(job, self.evaluation_samples, temperature=0.6))

    def _data(self, job: Job, reward: Reward, evaluation: Evaluation) -> Curriculum:
        """The questions with a teacher's answers, filtered by the pass rates of the weak model and of the teacher."""
        folder = Path(self.earlier or job.run.directory) / "data"
        if any(processes.gather((folder / "report.json").exists())):
            return Curriculum.load(folder)
        if self.earlier is not None:
            raise InputError(f"{self.earlier} holds no data of this recipe: give the directory of one of its runs")
        embedded = job.inputs.data is None
        if not embedded and self.teacher is None:
            raise InputError("your own questions need a stronger model's answers: give --teacher FILE")
        asked = embedded_questions(job) if embedded else job.records(["prompt", "answer"])
        how: Matching = "none" if embedded else self.decontamination
        report = folder / "decontamination.json"
        asked = decontaminated(asked, evaluation.texts(), how, n=self.ngram_size, file=report)
        asked = balanced(asked, self.category_limit, job.run.seed)
        if self.teacher is not None:
            answers = read_teacher(self.teacher, asked)
        else:
            answers = programmed_teacher(asked, self.teacher_samples, job.run.seed)
        weak = own_answers(job, asked, answering(job, self.weak_samples), "weak model", model=self.weak_model)
        right = [verified(asked, said, reward) for said in (weak, answers)]
        limits = {"weak_rate": self.weak_rate, "teacher_rate": self.teacher_rate}
        found = curriculum(asked, rates(right[0]), answers, right[1], **limits, seed=job.run.seed)
        _log.info("%s", ", ".join(f"{count} {what}" for what, count in found.report.items()))
        processes.on_main(lambda: found.save(folder))
        return found
