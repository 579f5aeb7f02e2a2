"""How the command runs Loki: a classifier learns some of the classes, and is tested on all that the metric knows."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import clone

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.class_metric import ClassMetric, Complete
from thrifty.adapt.class_metric_files import class_metric
from thrifty.adapt.class_tree import Tree
from thrifty.adapt.data import Labelled, split_and_limit
from thrifty.adapt.inputs import Inputs, features_of, read_inputs
from thrifty.adapt.letter_tree import letter_tree
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.data.letters import letters
from thrifty.data.records import write_jsonl

if TYPE_CHECKING:
    from thrifty.adapt.loki import Loki

OBSERVED = 0.5
LETTERS, DRAWINGS = 120, 10
EUROPEAN = ("Latin", "Greek", "Cyrillic")
_LOCUS_MOST, _NEXT_MOST, _NEXT = 300, 30, 5


def european_letters(count: int | None = None, drawings: int = DRAWINGS) -> tuple[Labelled, Tree]:
    """Letters of three related scripts, as many drawings of each, with the tree that their names make.

    Parameters
    ----------
    count
        How many letters, drawn once for all; by default all that have the drawings.
    drawings
        Of each letter.

    Returns
    -------
    Labelled
        Pictures; the labels are Unicode names.
    Tree
        Its classes are these names.
    """
    drawn = letters()
    random = np.random.default_rng(0)
    scripts = [drawn.scripts.index(name) for name in EUROPEAN]
    mine = np.isin(drawn.script, scripts)
    having = np.flatnonzero(np.bincount(drawn.labels[mine], minlength=len(drawn.letters)) >= drawings)
    chosen = np.sort(random.permutation(having)[:count])
    rows = np.concatenate([random.permutation(np.flatnonzero(mine & (drawn.labels == c)))[:drawings] for c in chosen])
    names = np.array([unicodedata.name(drawn.letters[c]) for c in drawn.labels[rows]])
    tree = letter_tree(drawn.letters[c] for c in chosen)
    return Labelled(drawn.images[rows], names, None, "pictures", name="letters of three scripts"), tree


def demonstrate(method: Loki, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Trains the classifier on the observed classes and compares the Fréchet mean with the argmax on all.

    ``predictions.jsonl`` in the run's directory has a row for each test example.

    Raises
    ------
    InputError
        When the data or the encoder don't fit, or the metric is missing or knows not all classes.
    """
    if inputs.data and Path(inputs.data).suffix.lower() == ".npz" and Path(inputs.data).exists():
        with np.load(inputs.data, allow_pickle=False) as bundle:
            if "probabilities" in bundle.files:
                arrays = {name: bundle[name] for name in bundle.files}
                return _decode(method, arrays, Path(inputs.data).name, run)
    data, given = _data(method, inputs, run.seed)
    # Of all classes in the data, so that a line or the names reach those that are not observed.
    metric = class_metric(given, np.unique(data.labels), leaves=method.leaves)
    metric.positions(np.unique(data.labels))
    features, encoder = features_of(data, inputs, run)
    assert data.test is not None
    observed = _observed(data, inputs, run.seed)
    train = np.flatnonzero(~data.test & np.isin(data.labels, observed))
    test = np.flatnonzero(data.test)
    head: Loki = clone(method).set_params(metric=metric).fit(features[train], data.labels[train])
    probs = head._probabilities(features[test]).cpu()
    found = _result(head, probs, np.asarray(data.labels[test]), run)
    return found | {"data": data.name, "encoder": encoder, "observed": [str(name) for name in head.observed_]}


def _data(method: Loki, inputs: Inputs, seed: int) -> tuple[Labelled, Any]:
    default = isinstance(method.metric, str) and method.metric == "complete"
    if inputs.data is None:
        data, tree = european_letters(LETTERS)
        data = split_and_limit(data, test_share=inputs.test_share, limit=inputs.limit, seed=seed)
        return data, tree if default else method.metric
    if default:
        raise InputError(
            "with all classes equally far apart only the observed ones are ever predicted: give --metric, a file of "
            "distances or edges, or line or names"
        )
    return read_inputs(inputs, seed), method.metric


def _observed(data: Labelled, inputs: Inputs, seed: int) -> Labels:
    """The classes with training examples: those of the data where a test class has none, else drawn."""
    assert data.test is not None
    there, tested = np.unique(data.labels[~data.test]), np.unique(data.labels[data.test])
    if len(np.setdiff1d(tested, there)):
        return there
    count = round(OBSERVED * len(there)) if inputs.base_classes is None else inputs.base_classes
    if not 2 <= count <= len(there):
        raise InputError(f"{count} of {len(there)} classes can't be observed: give --base-classes 2 to {len(there)}")
    random = np.random.default_rng(derive_seed(seed, "observed classes"))
    return np.sort(random.permutation(there)[:count])


def _decode(method: Loki, arrays: dict[str, NDArray[Any]], name: str, run: Run) -> dict[str, Any]:
    """Probabilities of the user's own classifier, without training."""
    if "classes" not in arrays:
        raise InputError(f"{name} has probabilities but no array 'classes', one for each column")
    told: Loki = clone(method)
    told.decode(arrays["probabilities"][:1], arrays["classes"])  # says what is wrong with the classes
    told._know(arrays["classes"])
    probs = told._checked(torch.from_numpy(np.asarray(arrays["probabilities"], dtype=np.float64)))
    true = as_labels(arrays["y"]) if "y" in arrays else None
    found = _result(told, probs, true, run)
    return found | {"data": name, "observed": [str(label) for label in told.observed_]}


def _result(head: Loki, probs: torch.Tensor, true: Labels | None, run: Run) -> dict[str, Any]:
    from thrifty.adapt.loki import relative_improvement, squared_distances

    predictions = {"argmax": head.observed_[probs.argmax(1).numpy()], "loki": as_labels(head._labels(probs, None))}
    columns: dict[str, list[Any]] = {name: labels.tolist() for name, labels in predictions.items()}
    table: list[dict[str, Any]] = []
    for name, labels in predictions.items():
        row: dict[str, Any] = {"prediction": name}
        if true is not None:
            squares = squared_distances(head.metric_, labels, true)
            columns[f"{name} squared distance"] = squares.tolist()
            new = ~np.isin(true, head.observed_)
            row |= {
                "mean squared distance": float(squares.mean()),
                "accuracy": float((labels == true).mean()),
                "accuracy on classes never seen": float((labels == true)[new].mean()) if new.any() else None,
            }
        table.append(row | {"classes predicted": len(np.unique(labels))})
    found: dict[str, Any] = {"table": table}
    if true is not None:
        columns["label"] = true.tolist()
        means = [row["mean squared distance"] for row in table]
        found["relative improvement"] = relative_improvement(*means)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    write_jsonl(run.directory / "predictions.jsonl", rows, overwrite=True)
    return (
        found
        | _reach(head.metric_, head.metric_.positions(head.observed_))
        | {
            "classes": len(head.classes_),
            "file": str(run.directory / "predictions.jsonl"),
        }
    )


def _reach(metric: ClassMetric, observed: torch.Tensor) -> dict[str, Any]:
    """How many classes can be predicted at all, and which to label next, where that takes seconds at most."""
    found: dict[str, Any] = {}
    closed = isinstance(metric, Complete) or (isinstance(metric, Tree) and metric.all_nodes)
    if closed or len(metric) <= _LOCUS_MOST:
        found["classes that can be predicted"] = int(metric.locus(observed).sum())
    if isinstance(metric, Tree | Complete) or len(metric) <= _NEXT_MOST:
        following: list[str] = []
        while len(following) < _NEXT and len(observed) < len(metric):
            y = metric.next_class(observed)
            observed = torch.cat([observed, torch.tensor([y])])
            following.append(str(metric.labels[y]))
        found["label next"] = following
    return found
