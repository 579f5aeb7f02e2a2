"""The comparisons of the room's heads on streams: data, protocol, and what heads are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sklearn.base import clone

from thrifty.adapt.baselines import Joint, LinearHead, StreamingLDA, cosine_ncm
from thrifty.adapt.data import Labelled, read_labelled, some_letters, split_and_limit
from thrifty.adapt.evaluation import Head, run_stream
from thrifty.adapt.g_acil import GACIL
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.inputs import Inputs
from thrifty.adapt.stream import Stream
from thrifty.adapt.stream_job import make_stream
from thrifty.adapt.teen import TEEN
from thrifty.core.errors import InputError
from thrifty.core.method import Task
from thrifty.nets.encoders import load_encoder
from thrifty.nets.extraction import extract

QUICK = 600
Variant = Callable[[], StreamingHead]

_CLASS = ("final_accuracy", "average_incremental_accuracy", "-forgetting", "-seconds")
_GENERAL = ("anytime_accuracy", "average_incremental_accuracy", "final_accuracy", "-forgetting", "-seconds")
_FEW_SHOT = (
    "harmonic_mean",
    "final_accuracy",
    "average_incremental_accuracy",
    "base_accuracy",
    "new_accuracy",
    "-new_as_base",
    "-seconds",
)


@dataclass(frozen=True, eq=False)
class Problem:
    """A stream, and how often a head is measured within its sessions."""

    stream: Stream
    measure_every: int | None = None

    def run(self, head: Head) -> Mapping[str, float]:
        """What a head gets right: the summary and the curve over sessions."""
        result = run_stream(head, self.stream, measure_every=self.measure_every)
        return result.row() | result.curve()


def evaluate(method: Any, problem: Problem) -> Mapping[str, float]:
    """Runs a head of the room on a problem.

    Raises
    ------
    InputError
        When the method is no head that learns a stream.
    """
    if not isinstance(method, StreamingHead):
        raise InputError(f"{type(method).__name__} is no head on features that learns a stream")
    return problem.run(clone(method))


BASELINES: Mapping[str, Callable[[Problem], Mapping[str, float]]] = {
    "sequential head": lambda problem: problem.run(LinearHead()),
    "replay head": lambda problem: problem.run(LinearHead(replay=200)),
    "streaming LDA": lambda problem: problem.run(StreamingLDA()),
    "joint head": lambda problem: problem.run(Joint(LinearHead())),
}


def prepared(
    source: Callable[[bool], Labelled],
    model: str,
    inputs: Inputs,
    *,
    most: int | None = None,
    measure_every: int | None = None,
) -> Callable[[int, bool, Path], Problem]:
    """A function that makes a task's problem.

    Parameters
    ----------
    source
        The examples, or fewer of them when asked for few.
    model
        The encoder.
    inputs
        Which stream.
    most
        Use at most so many examples; 600 where few are asked for.
    measure_every
        See :func:`thrifty.adapt.evaluation.run_stream`.
    """

    def prepare(seed: int, quick: bool, directory: Path) -> Problem:
        directory.mkdir(parents=True, exist_ok=True)
        limit = most if most is None or not quick else QUICK
        # The same examples for all seeds, so that their features are computed once; the order is the seed's.
        chosen = split_and_limit(source(quick), test_share=0.3, limit=limit, seed=0)
        features = extract(load_encoder(model), chosen.inputs)
        return Problem(make_stream(chosen, features, inputs, seed), measure_every)

    return prepare


def _named(name: str) -> Callable[[bool], Labelled]:
    return lambda quick: read_labelled(name)  # noqa: ARG005


def _letters(quick: bool) -> Labelled:
    return some_letters(40 if quick else 200)


def _task(summary: str, prepare: Callable[..., Problem], metrics: tuple[str, ...], **more: Variant) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"features", "labels"}),
        prepare=prepare,
        evaluate=evaluate,
        baselines=BASELINES,
        metrics=metrics,
        variants={"cosine NCM": cosine_ncm} | {name.replace("_", " "): make for name, make in more.items()},
    )


def _balanced() -> GACIL:
    return GACIL(buffer_size=1000, balance_classes=True)


STREAM_TASKS: Mapping[str, Task] = {
    "fashion-mnist": _task(
        "4,000 pieces of clothing, EfficientNet-lite0 features, 5 tasks of 2 classes",
        prepared(_named("fashion-mnist"), "efficientnet-lite0", Inputs(tasks=5), most=4000),
        _CLASS,
    ),
    "fashion-mnist-blurry": _task(
        "4,000 pieces of clothing, EfficientNet-lite0 features, 5 Si-blurry tasks: half of the classes come in one "
        "task, a tenth of the others' examples in any",
        prepared(
            _named("fashion-mnist"), "efficientnet-lite0", Inputs(stream="si-blurry"), most=4000, measure_every=200
        ),
        _GENERAL,
        balanced_g_acil=_balanced,
    ),
    "letters": _task(
        "200 letters of the world's scripts, EfficientNet-lite0 features, 10 tasks of 20 letters",
        prepared(_letters, "efficientnet-lite0", Inputs(tasks=10)),
        _CLASS,
    ),
    "letters-few-shot": _task(
        "200 letters of the world's scripts, EfficientNet-lite0 features: 120 in the base session, then 8 sessions of "
        "10 letters with 5 drawings each",
        prepared(_letters, "efficientnet-lite0", Inputs(stream="few-shot")),
        _FEW_SHOT,
        gentle_teen=lambda: TEEN(base_weight=0.1),
    ),
    "bbc-news": _task(
        "1,000 BBC news texts, MiniLM features, 5 tasks of 1 class",
        prepared(_named("bbc-news"), "minilm", Inputs(tasks=5), most=1000),
        _CLASS,
    ),
    "sarcasm": _task(
        "3,000 headlines, sarcastic or not, MiniLM features, 10 sessions with any mixture of the two",
        prepared(_named("sarcasm"), "minilm", Inputs(stream="mixed", tasks=10), most=3000, measure_every=200),
        _GENERAL,
        balanced_g_acil=_balanced,
    ),
    "digits": _task(
        "Handwritten digits, pixels as features, 5 tasks of 2 classes",
        prepared(_named("digits"), "pixels", Inputs(tasks=5), most=10**6),
        _CLASS,
    ),
}
"""What ``thrifty compare adapt --task`` knows of streams."""
