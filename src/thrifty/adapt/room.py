"""How the command runs a head of the room: encode once, learn the sessions, measure, save, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.base import clone

from thrifty.adapt.baselines import Joint, LinearHead, StreamingLDA, cosine_ncm
from thrifty.adapt.data import Labelled, read_labelled, split_and_limit
from thrifty.adapt.evaluation import Head, StreamResult, run_stream
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.stream import Stream, class_incremental, domain_incremental, overlapping
from thrifty.core.errors import InputError, RunError
from thrifty.core.method import Room, Task
from thrifty.core.run import Run
from thrifty.nets.encoders import EfficientNetEncoder, PixelEncoder, TextEncoder, VisionEncoder, load_encoder
from thrifty.nets.extraction import extract

HEAD_FILE = "head.safetensors"
DEFAULT_LIMIT = 4000


@dataclass(frozen=True)
class Inputs:
    """What the heads of the room work on.

    Parameters
    ----------
    model
        The frozen encoder: ``efficientnet-lite0`` (pictures), ``minilm`` (texts), ``pixels``, the folder or hub id of a
        Hugging Face vision or text model, or ``features`` for data that are features already. By default what fits the
        data.
    data
        ``fashion-mnist``, ``digits``, ``mnist``, ``letters``, ``sarcasm``, ``bbc-news``, ``spam``; a folder with a
        sub-folder of pictures for each class; an NPZ file with arrays x and y; or a table of texts (CSV, JSONL,
        Parquet). By default ``fashion-mnist``, or ``digits`` where that can't be fetched.
    text_column
        Column of the texts.
    label_column
        Column of the classes.
    domain_column
        Column of the domains, for a domain-incremental stream.
    stream
        class: disjoint classes in each session; overlapping: half of the classes are mixed over sessions; domain: a
        session for each domain, with the same classes.
    tasks
        How many sessions (not for domain). At most the number of classes.
    test_share
        Share of each class held out for testing, where the data bring no split.
    limit
        Use at most so many examples, evenly over the classes; all by default, 4000 of the default data.
    image_size
        Pixels a side for ``efficientnet-lite0``.
    batch_size
        Inputs that the encoder sees at once.
    """

    model: str | None = None
    data: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    domain_column: str | None = None
    stream: Literal["class", "overlapping", "domain"] = "class"
    tasks: int = 5
    test_share: float = 0.2
    limit: int | None = None
    image_size: int = 96
    batch_size: int = 64


def features_of(data: Labelled, inputs: Inputs, run: Run) -> tuple[Any, str]:
    """The features of all examples on the run's device, and the name of the encoder that gave them."""
    fitting = {"pictures": "efficientnet-lite0", "texts": "minilm", "features": "features"}[data.kind]
    model = inputs.model or fitting
    if (model == "features") != (data.kind == "features"):
        raise InputError(f"the model {model!r} does not fit: {data.name} holds {data.kind}; leave --model out")
    if data.kind == "features":
        found = np.asarray(data.inputs, dtype=np.float32)
        bad = ~np.isfinite(found).all(1)
        if bad.any():
            raise InputError(f"{data.name}: feature row {int(bad.argmax())} holds NaN or infinity")
    else:
        # Always float32: what a head learnt must not depend on which precision is fast on the machine.
        encoder = load_encoder(model, device=run.device, image_size=inputs.image_size)
        others = TextEncoder if data.kind == "pictures" else (PixelEncoder, EfficientNetEncoder, VisionEncoder)
        if isinstance(encoder, others):
            raise InputError(f"the model {model!r} does not fit: {data.name} holds {data.kind}; leave --model out")
        found = extract(encoder, data.inputs, inputs.batch_size)
    return (found if run.device.type == "cpu" else torch.from_numpy(found).to(run.device)), model


def make_stream(data: Labelled, features: Any, inputs: Inputs, seed: int) -> Stream:
    """The stream that the inputs ask for.

    Raises
    ------
    InputError
        When a domain-incremental stream is asked of data without domains, or there are too many tasks.
    """
    assert data.test is not None
    train, test = np.flatnonzero(~data.test), np.flatnonzero(data.test)
    parts = features[train], data.labels[train], features[test], data.labels[test]
    if inputs.stream == "class":
        return class_incremental(*parts, inputs.tasks, seed=seed)
    if inputs.stream == "overlapping":
        return overlapping(*parts, inputs.tasks, seed=seed)
    if data.domains is None:
        raise InputError(f"{data.name} says no domains: give --domain-column, or another --stream")
    return domain_incremental(*parts[:2], data.domains[train], *parts[2:], seed=seed)


def run(method: Any, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Lets a head learn the stream beside the heads that one would train instead, and saves it.

    The head is saved to ``head.safetensors`` in the run's directory and read back to check that it predicts the same.

    Raises
    ------
    InputError
        When the data or the encoder don't fit.
    """
    if not isinstance(method, StreamingHead):
        raise InputError(f"{type(method).__name__} is no head on features that learns a stream")
    limit = inputs.limit if inputs.limit is not None or inputs.data else DEFAULT_LIMIT
    columns = {"text_column": inputs.text_column, "label_column": inputs.label_column}
    data = read_labelled(inputs.data or "", **columns, domain_column=inputs.domain_column)
    data = split_and_limit(data, test_share=inputs.test_share, limit=limit, seed=run.seed)
    features, model = features_of(data, inputs, run)
    stream = make_stream(data, features, inputs, run.seed)
    head: StreamingHead = clone(method)
    heads: dict[str, Head] = {
        method.paper_id: head,
        "sequential head": LinearHead(seed=run.seed),
        "joint head": Joint(LinearHead(seed=run.seed)),
    }
    results = {name: run_stream(each, stream, label=name) for name, each in heads.items()}
    head.save(run.directory / HEAD_FILE)
    _read_back(head, run.directory / HEAD_FILE, stream)
    for step, accuracy in enumerate(results[method.paper_id].accuracy_after):
        run.log(step, accuracy=float(accuracy))
    return {
        "table": [{"head": name} | result.row() for name, result in results.items()],
        "sessions": {name: result.accuracy_after.tolist() for name, result in results.items()},
        "data": data.name,
        "encoder": model,
        "classes": [str(name) for name in head.classes_],
        "head": str(run.directory / HEAD_FILE),
    }


def _read_back(head: StreamingHead, path: Path, stream: Stream) -> None:
    some = stream.test_x[:256]
    before, after = head.predict(some), type(head).load(path).predict(some)
    if not np.array_equal(np.asarray(_host(before)), np.asarray(_host(after))):
        raise RunError(f"{path} does not predict what was saved: the disk may be failing, run again")


def _host(labels: Any) -> Any:
    return labels.cpu() if isinstance(labels, torch.Tensor) else labels


def _prepared(data: str, model: str, tasks: int, most: int) -> Callable[[int, bool, Path], Stream]:
    def prepare(seed: int, quick: bool, directory: Path) -> Stream:
        directory.mkdir(parents=True, exist_ok=True)
        source = read_labelled(data)
        # One draw of examples for all seeds, so that their features are computed once; the order is the seed's.
        chosen = split_and_limit(source, test_share=0.3, limit=600 if quick else most, seed=0)
        assert chosen.test is not None
        features = extract(load_encoder(model), chosen.inputs)
        train, test = ~chosen.test, chosen.test
        return class_incremental(
            features[train], chosen.labels[train], features[test], chosen.labels[test], tasks, seed=seed
        )

    return prepare


def _measured(head: Head, stream: Stream) -> Mapping[str, float]:
    return run_stream(head, stream).row()


def _evaluate(method: Any, stream: Stream) -> Mapping[str, float]:
    if not isinstance(method, StreamingHead):
        raise InputError(f"{type(method).__name__} is no head on features that learns a stream")
    return _measured(clone(method), stream)


BASELINES: Mapping[str, Callable[[Stream], Mapping[str, float]]] = {
    "sequential head": lambda stream: _measured(LinearHead(), stream),
    "replay head": lambda stream: _measured(LinearHead(replay=200), stream),
    "streaming LDA": lambda stream: _measured(StreamingLDA(), stream),
    "joint head": lambda stream: _measured(Joint(LinearHead()), stream),
}


def _task(summary: str, data: str, model: str, tasks: int, most: int) -> Task:
    return Task(
        summary=summary,
        gives=frozenset({"features", "labels"}),
        prepare=_prepared(data, model, tasks, most),
        evaluate=_evaluate,
        baselines=BASELINES,
        metrics=("final_accuracy", "average_incremental_accuracy", "-forgetting", "-seconds"),
        variants={"cosine NCM": cosine_ncm},
    )


ROOM = Room(
    inputs=Inputs,
    run=run,
    tasks={
        "fashion-mnist": _task(
            "4,000 pieces of clothing, EfficientNet-lite0 features, 5 tasks of 2 classes",
            "fashion-mnist",
            "efficientnet-lite0",
            5,
            4000,
        ),
        "digits": _task("Handwritten digits, pixels as features, 5 tasks of 2 classes", "digits", "pixels", 5, 10**6),
    },
)

__all__ = ["ROOM", "Inputs", "StreamResult", "features_of", "make_stream", "run"]
