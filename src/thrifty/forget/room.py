"""How the command runs a method of the room: read, measure, forget, measure again, save."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.core.threads import one_thread
from thrifty.data.image_files import LabelledImages
from thrifty.data.images import images
from thrifty.forget import skills
from thrifty.forget.author_problem import SMALL, author_sets, taught
from thrifty.forget.authors import author_questions
from thrifty.forget.base import Forgetter, forget_with
from thrifty.forget.baselines import Retrain
from thrifty.forget.data import Joined, Part, Source
from thrifty.forget.ensemble_problem import CONFIG, Sizes, alike_digits
from thrifty.forget.evaluate import evaluate
from thrifty.forget.picture_problems import fresh
from thrifty.forget.relearning import Relearning
from thrifty.forget.subjects import (
    Examples,
    LanguageModel,
    Net,
    Subject,
    class_number,
    load_subject,
    pictures,
    save_whole,
)
from thrifty.forget.tasks import TASKS
from thrifty.lm.load import load_lm
from thrifty.nets.vision import ResNetConfig, pixels

_log = logging.getLogger("thrifty")


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        The trained model: a directory or hub id of a Hugging Face image classifier or causal language model, or a
        directory that thrifty saved. By default a small network is trained on 8x8 digits; for methods of language
        models, a small decoder on fictitious authors, eight of whom are to be forgotten, or SmolLM2 and its arithmetic.
    data
        Its training data: an image folder with a sub-folder for each class, an NPZ file with ``x`` and ``y``, or
        JSONL with ``prompt`` and ``completion`` for a language model.
    forget_class
        The class to forget, by name or number (3 by default on digits).
    forget
        What to forget instead of a class: examples of the same form as ``data``.
    test
        Examples that the model was not trained on, of the same form; with them the membership attack is measured.
    max_length
        Longest prompt and completion together, in tokens; longer ones are cut at the end.
    evaluate
        Measure on at most so many examples of each set.
    relearn
        Measure how many steps on the forget set bring the original's accuracy there back, at most so many; not when 0.
    """

    model: str | None = None
    data: str | None = None
    forget_class: str | None = None
    forget: str | None = None
    test: str | None = None
    max_length: int = 1024
    evaluate: int = 2000
    relearn: int = 0

    def __post_init__(self) -> None:
        for name in ("max_length", "evaluate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.relearn < 0:
            raise InputError(f"relearn must be at least 0, not {self.relearn}")


@dataclass(frozen=True, eq=False)
class Given:
    """A user's model with the sets of a method."""

    subject: Subject
    sets: Mapping[str, Source]
    judged: Mapping[str, Source]


def run(method: Forgetter, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Makes a model forget, and measures it before and after.

    The model is saved to ``model`` in the run's directory and loads as the given one did. ``changed.json`` says how
    many weights of each parameter were changed.
    """
    given = _given(method, inputs, run)
    model = given.subject.model
    before = evaluate(model, given.judged)
    started = time.perf_counter()
    changed = forget_with(method, model, given.sets, run)
    seconds = time.perf_counter() - started
    after = evaluate(changed, given.judged)
    save_whole(given.subject, changed, run.directory / "model")
    counts = changed_weights(model, changed)
    write_json(run.directory / "changed.json", counts)
    if inputs.relearn:
        again = Relearning(most_steps=inputs.relearn).measure(changed, given.sets["forget_set"], model)
        after["relearn_steps"] = again.steps
    total = sum(count["weights"] for count in counts.values())
    return {
        "table": [{"model": "before"} | before, {"model": "after"} | after | {"seconds": seconds}],
        "model": str(run.directory / "model"),
        "examples": {name: len(source) for name, source in given.sets.items() if name != "refusal_set"},
        "changed": sum(count["changed"] for count in counts.values()) / total,
    }


def changed_weights(before: nn.Module, after: nn.Module) -> dict[str, dict[str, int]]:
    """How many weights of each parameter differ between two models of one kind, and how many there are."""
    other = dict(after.named_parameters())
    return {
        name: {"changed": int((parameter != other[name]).sum()), "weights": parameter.numel()}
        for name, parameter in before.named_parameters()
    }


def _given(method: Forgetter, inputs: Inputs, run: Run) -> Given:
    if inputs.model is None:
        if inputs.data is not None or inputs.forget is not None or inputs.test is not None:
            raise InputError("data without a model: give --model, the one that was trained on them")
        return _EMBEDDED[getattr(method, "embedded", "digits")](inputs, run)
    if inputs.data is None:
        raise InputError("a model without its training data: give --data")
    subject = load_subject(inputs.model, run, inputs.max_length)
    test = None if inputs.test is None else subject.read(inputs.test)
    return _split(subject, subject.read(inputs.data), test, inputs)


def _digits(inputs: Inputs, run: Run) -> Given:
    data = images("digits")
    forgotten = inputs.forget_class or "3"
    class_number(forgotten, data.classes)  # a wrong one is said before anything is trained
    config = ResNetConfig(len(data.classes))
    train, test = (
        pictures(LabelledImages(x, y, data.classes), data.classes, pixels)
        for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    )
    recipe = Retrain(partial(fresh, config, run.seed), epochs=4, seed=run.seed)
    with one_thread():
        net = recipe.train(train.source, run.device)
    subject = Net(net, data.classes)
    save_whole(subject, net, run.directory / "original")
    return _split(subject, train, test, Inputs(forget_class=forgotten, evaluate=inputs.evaluate))


def _no_class(inputs: Inputs) -> None:
    if inputs.forget_class is not None:
        raise InputError("--forget-class is for classifiers: language models forget records")


def _authors(inputs: Inputs, run: Run) -> Given:
    _no_class(inputs)
    questions = author_questions(SMALL.forget, SMALL.retain, run.seed)
    model, tokenizer, _ = taught(questions, SMALL, run.seed, run.directory / "original")
    sets = author_sets(questions, tokenizer, run.seed)
    judged = {name: _first(sets[f"{name}_set"], inputs.evaluate) for name in ("forget", "retain")}
    return Given(LanguageModel(model.to(run.device), tokenizer, inputs.max_length), sets, judged)


def _skill(inputs: Inputs, run: Run) -> Given:
    _no_class(inputs)
    model, tokenizer = load_lm(skills.MODEL, dtype=run.dtype, device=run.device)
    found = skills.skill_texts(tokenizer, run.seed, probes=80, valid=1, asked=1, judged=24)
    names = {"skill": "forget", "text": "retain", "copy": "copy"}
    judged = {names[name]: _first(source, inputs.evaluate) for name, source in found.judged.items()}
    return Given(LanguageModel(model, tokenizer, inputs.max_length), found.sets, judged)


def _alike_digits(inputs: Inputs, run: Run) -> Given:
    if inputs.forget_class is not None:
        return _digits(inputs, run)
    sizes = Sizes()
    data = alike_digits(run.seed, sizes)
    gone, kept, test = (data.rows(part) for part in torch.arange(len(data)).split(sizes.parts))
    full = data.rows(torch.arange(sizes.training))
    recipe = Retrain(partial(fresh, CONFIG, run.seed), epochs=sizes.epochs, seed=run.seed)
    with one_thread():
        net = recipe.train(full, run.device)
    subject = Net(net, tuple(map(str, range(CONFIG.classes))))
    save_whole(subject, net, run.directory / "original")
    sets = {"forget_set": gone, "retain_set": kept, "full_set": full}
    return Given(subject, sets, {"forget": gone, "retain": kept, "test": test})


_EMBEDDED: Mapping[str, Callable[[Inputs, Run], Given]] = {
    "digits": _digits,
    "alike-digits": _alike_digits,
    "authors": _authors,
    "skill": _skill,
}


def _split(subject: Subject, data: Examples, test: Examples | None, inputs: Inputs) -> Given:
    if (inputs.forget is None) == (inputs.forget_class is None):
        raise InputError("say what to forget: either --forget-class or --forget")
    if inputs.forget_class is not None:
        sets, extra = _by_class(subject, data, test, inputs.forget_class)
    else:
        sets, extra = _by_example(data, subject.read(str(inputs.forget))), {}
    judged = {"forget": sets["forget_set"], "retain": sets["retain_set"]}
    if test is not None:
        judged |= {"test": test.source, **extra}
    return Given(subject, sets, {name: _first(source, inputs.evaluate) for name, source in judged.items()})


def _by_class(
    subject: Subject, data: Examples, test: Examples | None, name: str
) -> tuple[dict[str, Source], dict[str, Source]]:
    if data.y is None:
        raise InputError("--forget-class is for classifiers: give --forget, the records to forget")
    forgotten = class_number(name, subject.classes)
    gone = data.y == forgotten
    if not gone.any():
        there = ", ".join(subject.classes[number] for number in sorted(set(data.y.tolist()))[:12])
        raise InputError(f"the data hold no example of class {name}: they hold {there}")
    extra: dict[str, Source] = {}
    if test is not None and test.y is not None:
        parts = {"test_forget": test.y == forgotten, "test_retain": test.y != forgotten}
        extra = {key: Part(test.source, mask.nonzero()[:, 0]) for key, mask in parts.items() if mask.any()}
    return _sets(data.source, gone), extra


def _by_example(data: Examples, forget: Examples) -> dict[str, Source]:
    wanted, known = set(forget.keys), set(data.keys)
    gone = torch.tensor([key in wanted for key in data.keys])
    strange = [index for index, key in enumerate(forget.keys) if key not in known]
    if not strange:
        return _sets(data.source, gone, data.refusals)
    _log.warning(
        "%d of the %d examples to forget are not in the training data (the first is example %d): they are added to it",
        len(strange),
        len(forget.keys),
        strange[0],
    )
    numbers = torch.tensor(strange)
    added = Joined(data.source, Part(forget.source, numbers))
    refusals = None
    if data.refusals is not None and forget.refusals is not None:
        refusals = Joined(data.refusals, Part(forget.refusals, numbers))
    return _sets(added, torch.cat([gone, torch.ones(len(strange), dtype=torch.bool)]), refusals)


def _sets(full: Source, gone: Tensor, refusals: Source | None = None) -> dict[str, Source]:
    if gone.all():
        raise InputError("everything is to be forgotten: leave something to keep")
    sets = {
        "forget_set": Part(full, gone.nonzero()[:, 0]),
        "retain_set": Part(full, (~gone).nonzero()[:, 0]),
        "full_set": full,
    }
    return sets if refusals is None else {**sets, "refusal_set": Part(refusals, gone.nonzero()[:, 0])}


def _first(source: Source, most: int) -> Source:
    # Evenly spread, since data are often sorted by class.
    if len(source) <= most:
        return source
    return Part(source, torch.linspace(0, len(source) - 1, most).long())


ROOM = Room(inputs=Inputs, run=run, tasks=TASKS)
