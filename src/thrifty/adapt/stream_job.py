"""How the command runs a head on a stream: learn the sessions, measure, save, read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone

from thrifty.adapt.baselines import Joint, LinearHead
from thrifty.adapt.data import Labelled
from thrifty.adapt.evaluation import Head, run_stream
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.inputs import Inputs, features_of, read_inputs
from thrifty.adapt.protocols import few_shot_incremental, mixed, recorded
from thrifty.adapt.stream import Stream, StreamKind, class_incremental, domain_incremental, overlapping
from thrifty.core.errors import InputError, RunError
from thrifty.core.run import Run

HEAD_FILE = "head.safetensors"
BASE_SHARE, LATER_SESSIONS, SHOTS = 0.6, 8, 5


def make_stream(data: Labelled, features: Any, inputs: Inputs, seed: int, *, usual: StreamKind = "class") -> Stream:
    """The stream that the inputs ask for.

    Parameters
    ----------
    data
        Examples, marked as for training or testing.
    features
        Their features ``[N, D]``.
    inputs
        What the user asks for.
    seed
        Of the draws.
    usual
        The stream when the user asks for none.

    Raises
    ------
    InputError
        When a domain-incremental or recorded stream is asked of data without domains, or there are too few classes or
        examples for the protocol.
    """
    assert data.test is not None
    train, test = np.flatnonzero(~data.test), np.flatnonzero(data.test)
    parts = features[train], data.labels[train], features[test], data.labels[test]
    kind = inputs.stream or usual
    if kind == "class":
        return class_incremental(*parts, inputs.tasks, seed=seed)
    if kind in ("overlapping", "si-blurry"):
        return overlapping(*parts, inputs.tasks, stochastic=kind == "si-blurry", seed=seed)
    if kind == "mixed":
        return mixed(*parts, inputs.tasks, seed=seed)
    if kind == "few-shot":
        return _few_shot(parts, inputs, seed)
    if data.domains is None:
        raise InputError(f"{data.name} says no domains: give --domain-column, or another --stream")
    if kind == "recorded":
        return recorded(*parts[:2], data.domains[train], *parts[2:])
    return domain_incremental(*parts[:2], data.domains[train], *parts[2:], seed=seed)


def _few_shot(parts: tuple[Any, Any, Any, Any], inputs: Inputs, seed: int) -> Stream:
    classes = len(np.unique(parts[1]))
    base = inputs.base_classes if inputs.base_classes is not None else round(BASE_SHARE * classes)
    ways = inputs.ways if inputs.ways is not None else max((classes - base) // LATER_SESSIONS, 1)
    shots = inputs.shots if inputs.shots is not None else SHOTS
    return few_shot_incremental(*parts, base, way=ways, shots=shots, seed=seed)


def run_head(method: StreamingHead, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Lets a head learn the stream beside the heads that one would train instead, and saves it.

    The head is saved to ``head.safetensors`` in the run's directory and read back to check that it predicts the same.

    Raises
    ------
    InputError
        When the data or the encoder don't fit.
    """
    data = read_inputs(inputs, run.seed)
    features, model = features_of(data, inputs, run)
    stream = make_stream(data, features, inputs, run.seed, usual=method.usual_stream)
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
        "stream": inputs.stream or method.usual_stream,
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
