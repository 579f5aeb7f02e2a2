"""CLS-RL: Image Classification with Rule-Based Reinforcement Learning (arXiv 2503.16188).

The four slots: sequences are sampled by the policy, several to a picture with a question and a list of classes; worth
is whether the class name is right, plus, with thinking, whether the answer has the form asked for; credit is normalised
in each picture's group; the loss is the policy gradient, never clipped as it is fully on-policy, with the divergence
from the first model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from thrifty.align.asking import Answered, Record, Sampling
from thrifty.align.base import Training
from thrifty.align.classifier import Asking, ClassificationJob, Classifier, Tested
from thrifty.align.classify import Example, Setting, read_examples, split
from thrifty.align.grpo import GRPO
from thrifty.align.job import Inputs
from thrifty.align.policy_gradient import Aggregation
from thrifty.align.small_vlm import DIRECT, PICTURES, QUESTION, THINKING
from thrifty.align.training import train
from thrifty.core import processes
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.core.statistics import share_interval
from thrifty.lm.draw import Draw
from thrifty.lm.sequences import Sequences
from thrifty.reward.answers import answer_tag_accuracy, equality, think_answer_format

_log = logging.getLogger("thrifty")

RELEASED_TESTS = {
    True: "First output the thinking process in <think> </think> and final answer in <answer> </answer> tags.",
    False: "Please directly output the answer name.",
}
"""How the released code asks in its tests, with thinking and without."""
_EMBEDDED_EPOCHS = 3.0
_STARTING_PROMPTS = 16
_HARDLY_EVER = 0.01


@register("cls-rl")
@dataclass(frozen=True)
class CLSRL(GRPO):
    r"""Makes a classifier of an image-text model by rewarding the right class name, with a written thought or without.

    .. math::
        R = 1[\text{answer} = \text{label}] + 1[\text{completion is } \texttt{<think>...</think> <answer>...</answer>}]

    or, without thinking (No-Thinking-CLS-RL), :math:`R = 1[\text{completion} = \text{label}]`, letter by letter. Then

    .. math::
        A = \frac{R - \text{mean}_g R}{\text{std}_g R + 10^{-4}}, \qquad
        L = -\overline{\frac{1}{|y|} \sum_t \left[ e^{\log\pi - \text{sg} \log\pi} A - \beta (e^d - d - 1) \right]},
        \quad d = \log\pi_\text{ref} - \log\pi

    The prompt is a question and a list of classes with the true one among them; without that list the reward is hardly
    ever hit at first. Groups in which all answers are worth the same have no advantage: ``equal_groups`` in the log is
    their share. The method needs text alone: a causal language model classifies texts in the same way.

    Left out: the symbolic mathematics parser that the released reward tries first, which adds noise to class names; and
    the later version's Think-After-Answer and Adaptive-Thinking, whose prompts and rewards are not in its code.

    Data (``--data``): a folder with one sub-folder of pictures a class; an NPZ of pictures ``x`` and classes ``y``; or
    rows with ``label`` and ``text`` (or ``prompt``), or ``image`` (a file's path).

    Parameters
    ----------
    thinking
        Ask for a thought before the answer, and reward its form too; ``False`` is No-Thinking-CLS-RL, whose answers are
        a few tokens long.
    strict
        Without thinking, case and white space count, as in the paper.
    setting
        ``few-shot``: all classes are learnt and tested; ``base-to-new``: one half is learnt, both are tested.
    shots
        Examples of each class to learn from.
    question
        Asked of each example; one that fits the data by default.
    choice_fraction, fewest_choices, most_choices
        So large a share of the classes is offered; all of them where that is fewer than the second, and never more than
        the third.
    words
        Of a text, so many are shown.
    image_size
        Pixels a side that the pictures of your files are resized to.
    test_prompt
        ``same``: tests ask as training does; ``released``: in the slightly different words of the released code.
    other_data
        Labelled data of other classes to test with too, of which nothing is learnt (the paper's cross-dataset setting).

    Raises
    ------
    InputError
        When ``shots`` is below 1, or the share of the choices is not within (0, 1].

    References
    ----------
    Li et al., "CLS-RL" (later "Think or Not Think"), arXiv 2503.16188: sections 3.2 (CLS-RL), 3.3 (No-Thinking).
    """

    training: ClassVar[Training] = Training(learning_rate=1e-6, epochs=50)
    embedded: ClassVar[str] = PICTURES
    sampling: ClassVar[Sampling] = Sampling(samples=4, prompts_per_rollout=4)

    clip: float | None = None
    kl_coefficient: float = 0.04
    aggregation: Aggregation = "sequence"
    thinking: bool = True
    strict: bool = True
    setting: Setting = "base-to-new"
    shots: int = 4
    question: str | None = None
    choice_fraction: float = 0.4
    fewest_choices: int = 30
    most_choices: int = 100
    words: int = 60
    image_size: int = 384
    test_prompt: Literal["same", "released"] = "same"
    other_data: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shots < 1:
            raise InputError(f"shots must be at least 1, not {self.shots}")
        if not 0 < self.choice_fraction <= 1:
            raise InputError(f"choice_fraction must be within (0, 1], not {self.choice_fraction:g}")

    @property
    def reward(self) -> ClassReward:
        """What answers are worth."""
        return ClassReward(self.thinking, self.strict)

    def asking(self, example: Example, test: bool = False, question: str | None = None) -> Asking:
        """How classes are asked for, of data with examples like this one; ``question`` where the user has none."""
        usual = "What is the topic of the text?" if example.image is None else "What is in the photo?"
        question = self.question or question or usual
        suffix = THINKING if self.thinking else DIRECT
        if test and self.test_prompt == "released":
            suffix = RELEASED_TESTS[self.thinking]
        return Asking(question, suffix, self.choice_fraction, self.fewest_choices, self.most_choices, self.words)

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """As :meth:`GRPO.loss`, with the two parts of the reward where they are known."""
        found = super().loss(model, batch, whole)
        parts = {name: whole.columns[name].float().mean() for name in ("right", "formed") if name in whole.columns}
        return Loss(found.value, {**found.metrics, **parts})

    def job(self, inputs: Inputs, run: Run) -> ClassificationJob:
        """A job whose model may see."""
        return ClassificationJob(inputs, run, self.embedded, self.image_size)

    def work(self, job: ClassificationJob) -> dict[str, Any]:
        """Tests, learns from a few examples of each class, and tests again."""
        inputs, classifier = job.inputs, Classifier(job.model, job.reader or job.tokenizer)
        parts = split(
            job.examples, self.setting, self.shots, inputs.problems, Random(derive_seed(job.run.seed, "split"))
        )
        rng = Random(derive_seed(job.run.seed, "choices"))

        def asked(examples: Sequence[Example], names: Sequence[str], data: str, test: bool = True) -> list[Record]:
            asking = self.asking(examples[0], test, QUESTION if data == PICTURES else None)
            return classifier.records(examples, names, asking, rng)

        records = asked(parts.train, parts.classes, job.data, test=False)
        tests = {name: asked(*test, job.data) for name, test in parts.tests.items()}
        if self.other_data is not None:
            others = read_examples(self.other_data, image_size=self.image_size)
            few = rng.sample(others, min(inputs.problems, len(others)))
            tests["other data"] = asked(few, sorted({example.label for example in others}), self.other_data)
        start = processes.on_main(lambda: self.at_start(classifier, records, inputs.max_new_tokens, job.run.seed))

        def measure() -> dict[str, Any]:
            return processes.on_main(
                lambda: _shown({name: classifier.test(test, inputs.max_new_tokens) for name, test in tests.items()})
            )

        before = measure()
        training = job.training(self.training)
        if inputs.data is None and inputs.epochs is None:
            training = replace(training, epochs=_EMBEDDED_EPOCHS)
        sampling = replace(job.sampling(self.sampling), temperature=self.temperature)
        began = time.perf_counter()
        train(
            job.model,
            self,
            records,
            job.run.stage("train"),
            training,
            tokenizer=job.tokenizer,
            reward=self.reward,
            sampling=sampling,
            sampler=classifier.sampler,
        )
        seconds = time.perf_counter() - began
        steps = max(1, round(training.epochs * len(records) / min(sampling.prompts_per_rollout, len(records))))
        return {
            "table": [{"model": "before", **before}, {"model": "after", **measure()}],
            "at_start": start,
            "seconds_per_step": seconds / steps,
            "classes": list(parts.classes),
        }

    def at_start(
        self, classifier: Classifier, records: Sequence[Record], max_new_tokens: int, seed: int
    ) -> Mapping[str, float]:
        """How often an untrained model is rewarded for its samples; said, as without any hits nothing is learnt.

        Parameters
        ----------
        classifier
            The model.
        records
            Prompts with their answers, of which some are asked.
        max_new_tokens
            Longest answer.
        seed
            Of the sampling.
        """
        draw = Draw(self.temperature)
        some = classifier.answers(records[:_STARTING_PROMPTS], self.sampling.samples, max_new_tokens, draw, seed)
        rates = {
            "exact match": _mean(equality(some.texts, some.labels)),
            "right": _mean(answer_tag_accuracy(some.texts, some.labels)),
            "formed": _mean(think_answer_format(some.texts)),
        }
        _log.info("at step 0: %s", ", ".join(f"{name} {rate:.3f}" for name, rate in rates.items()))
        if max(rates["right"] if self.thinking else rates["exact match"], 0.0) < _HARDLY_EVER:
            _log.warning(
                "the model hardly ever says a class name as it is wanted, such as %r: nothing will be learnt. Change "
                "--question, take an instruction-tuned model, or teach it a few labels first (SFT)",
                some.texts[0][:60],
            )
        return rates


@dataclass(frozen=True)
class ClassReward:
    """The reward and its parts: ``right`` and ``formed`` with thinking, ``right`` alone without.

    Parameters
    ----------
    thinking, strict
        As for :class:`CLSRL`.
    """

    thinking: bool = True
    strict: bool = True

    def columns(self, answered: Answered) -> Mapping[str, Tensor]:
        """The rewards of answers to records with an ``answer``."""
        labels = [record["answer"] for record in answered.records]
        if not self.thinking:
            right = torch.tensor(equality(answered.texts, labels, strict=self.strict), dtype=torch.float32)
            return {"reward": right, "right": right}
        right = torch.tensor(answer_tag_accuracy(answered.texts, labels), dtype=torch.float32)
        formed = torch.tensor(think_answer_format(answered.texts))
        return {"reward": right + formed, "right": right, "formed": formed}


def _mean(values: Sequence[float | None]) -> float:
    return sum(value or 0.0 for value in values) / len(values)


def _shown(tested: Mapping[str, Tested]) -> dict[str, Any]:
    """Shares with their intervals, as text for a table."""
    row: dict[str, Any] = {}
    for name, test in tested.items():
        for what, count in (("accuracy", test.right), ("exact", test.exact)):
            share = share_interval(count, len(test.labels))
            row[f"{what}, {name}"] = f"{share.mean:.3f} [{share.low:.3f}, {share.high:.3f}]"
    row["answer tokens"] = sum(test.tokens for test in tested.values()) / len(tested)
    return row
