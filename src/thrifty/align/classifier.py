"""A language model that classifies, with or without eyes: how it is asked, taught by labels, and tested."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from thrifty.align.asking import Record
from thrifty.align.classify import Example, accepted, choice_prompt, read_examples
from thrifty.align.job import Inputs, Job
from thrifty.align.small_vlm import SMALL, small_vlm
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.lm.draw import Draw
from thrifty.lm.image_sampler import ImageTextSampler
from thrifty.lm.images import ImagePrompts
from thrifty.lm.load import is_vlm, load_vlm
from thrifty.lm.records import from_records
from thrifty.lm.sampler import ModelSampler, Request
from thrifty.lm.sequences import Sequences
from thrifty.reward.answers import answer_tag_accuracy

_log = logging.getLogger("thrifty")


@dataclass(frozen=True)
class Asking:
    """How a class is asked for.

    Parameters
    ----------
    question
        Put before the list of choices.
    suffix
        Put after it: how to answer.
    fraction, min_n, max_n
        How many classes are offered; see :func:`thrifty.align.classify.choices`.
    words
        Of a text, so many are shown.
    """

    question: str
    suffix: str
    fraction: float = 0.4
    min_n: int = 30
    max_n: int = 100
    words: int = 100

    def text(self, example: Example, classes: Sequence[str], rng: Random) -> str:
        """The whole prompt for an example, among these classes."""
        asked = choice_prompt(
            self.question,
            example.label,
            classes,
            fraction=self.fraction,
            min_n=self.min_n,
            max_n=self.max_n,
            rng=rng,
        )
        shown = " ".join(example.text.split()[: self.words])
        return (f"{shown}\n\n" if shown else "") + f"{asked} {self.suffix}"


@dataclass(frozen=True)
class Tested:
    """Answers to a test.

    Parameters
    ----------
    texts
        What the model said.
    labels
        What it should have said.
    tokens
        Mean length of an answer.
    """

    texts: Sequence[str]
    labels: Sequence[str]
    tokens: float

    @property
    def right(self) -> int:
        """Answers that are accepted (:func:`thrifty.align.classify.accepted`)."""
        return sum(accepted(said, label) for said, label in zip(self.texts, self.labels, strict=True))

    @property
    def exact(self) -> int:
        """Answers that are the label and nothing else, but for its case and for a thought before ``<answer>`` tags."""
        return sum(right == 1.0 for right in answer_tag_accuracy(self.texts, self.labels))


class Classifier:
    """A causal language model, or an image-text model with its processor, that is asked for classes.

    Parameters
    ----------
    model
        The model.
    reader
        Its tokenizer, or its processor.
    """

    def __init__(self, model: Any, reader: Any) -> None:
        self.model, self.reader = model, reader
        self.prompts = ImagePrompts(reader) if hasattr(reader, "tokenizer") else None
        if self.prompts is not None:
            self.prompts.attach(model)

    @property
    def tokenizer(self) -> Any:
        """The model's."""
        return self.reader if self.prompts is None else self.reader.tokenizer

    @property
    def sampler(self) -> ModelSampler:
        """Samples from the model."""
        kind = ModelSampler if self.prompts is None else ImageTextSampler
        return kind(self.model, self.tokenizer)

    def records(self, examples: Sequence[Example], classes: Sequence[str], asking: Asking, rng: Random) -> list[Record]:
        """Examples as prompts with their ``answer``.

        Raises
        ------
        InputError
            When there is a picture, and the model can't see.
        """
        made: list[Record] = []
        for number, example in enumerate(examples):
            text: Any = asking.text(example, classes, rng)
            if self.prompts is not None:
                text = self.prompts.add(text, [] if example.image is None else [example.image])
            elif example.image is not None:
                raise InputError(
                    f"the data have pictures, which a {type(self.model).__name__} can't see: give an image-text model "
                    "with --model (or small-vlm)"
                )
            made.append({"prompt": text, "answer": example.label, "id": str(number)})
        return made

    def rows(self, records: Sequence[Record]) -> Sequences:
        """Prompts with their labels as answers, for supervised fine-tuning."""
        answers = [record["answer"] for record in records]
        if self.prompts is not None:
            return self.prompts.sequences([record["prompt"] for record in records], answers)
        given = [
            {"prompt": record["prompt"], "completion": answer} for record, answer in zip(records, answers, strict=True)
        ]
        return from_records(given, self.tokenizer)

    def answers(self, records: Sequence[Record], samples: int, max_new_tokens: int, draw: Draw, seed: int) -> Tested:
        """Answers to some prompts, ``samples`` to each."""
        prompts = [record["prompt"] for record in records]
        request = Request(samples, max_new_tokens=max_new_tokens, draw=draw, seed=seed)
        found = self.sampler.sample(prompts, request)
        labels = [record["answer"] for record in records for _ in range(samples)]
        return Tested(found.texts(self.tokenizer), labels, float(found.response_lengths.float().mean()))

    def test(self, records: Sequence[Record], max_new_tokens: int) -> Tested:
        """The likeliest answer to each of some prompts."""
        return self.answers(records, 1, max_new_tokens, Draw(greedy=True), 0)


class ClassificationJob(Job):
    """A job whose model may be an image-text model; where none is named and there are pictures, the small one.

    Parameters
    ----------
    inputs, run, embedded
        As for every job.
    image_size
        Pixels a side that the user's pictures are resized to; None leaves them as they are.
    """

    def __init__(self, inputs: Inputs, run: Run, embedded: str, image_size: int | None = None) -> None:
        self.reader: Any = None
        data = embedded if inputs.data is None else inputs.data
        self.examples = read_examples(data, image_size=image_size, limit=inputs.limit)
        super().__init__(inputs, run, embedded)

    def load(self, name: str | None = None) -> tuple[Any, Any]:
        """As for every job; the tokenizer is the processor's where there is one."""
        named = name or self.inputs.model
        unnamed = named == Inputs().model and self.examples[0].image is not None
        if named == SMALL or unnamed:
            if unnamed:
                _log.info("no image-text model is named: a small one is made here, which knows pieces of clothing only")
            named = str(small_vlm(self.run.stage(SMALL)))
        if not is_vlm(named):
            return super().load(named)
        model, self.reader = load_vlm(named, dtype=self.run.dtype, device=self.run.device)
        return self.prepared(model), self.reader.tokenizer

    def save(self) -> str:
        """As for every job, with the processor."""
        folder = super().save()
        if self.reader is not None and self.run.main:
            self.reader.save_pretrained(folder)
        return folder
