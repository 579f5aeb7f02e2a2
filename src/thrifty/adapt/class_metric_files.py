"""Metrics of classes from files of the user's, from the class names themselves, or by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.class_graph import Edges, Graph
from thrifty.adapt.class_metric import ClassMetric, Complete, Distances
from thrifty.adapt.class_spaces import Euclidean
from thrifty.adapt.class_tree import Tree
from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data.readers import read

NAMED = ("complete", "line", "names")
_PAIRS = (("parent", "child"), ("source", "target"))
_ARRAYS = ("distances", "edges", "points")


def class_metric(given: Any, classes: Labels, *, leaves: bool = False) -> ClassMetric:
    """A metric from what the user gives.

    Parameters
    ----------
    given
        A :class:`~thrifty.adapt.class_metric.ClassMetric`; a matrix of distances between ``classes``; or a name or file
        as for :func:`named_metric`.
    classes
        The observed classes, sorted: those of a metric that brings no names.
    leaves
        Only the leaves of a tree or graph are classes.

    Raises
    ------
    InputError
        When it is none of these, or does not fit.
    """
    if isinstance(given, ClassMetric):
        return given
    if isinstance(given, str | Path):
        return named_metric(given, classes, leaves=leaves)
    matrix = np.asarray(given)
    if matrix.ndim == 2 and len(matrix) != len(classes):
        raise InputError(
            f"a matrix of distances between {len(matrix)} classes came with {len(classes)} observed ones and no names: "
            "give Distances(matrix, labels)"
        )
    return Distances(matrix, classes)


def named_metric(given: str | Path, classes: Labels, *, leaves: bool = False) -> ClassMetric:
    """A metric by its name, or from a file.

    Parameters
    ----------
    given
        ``complete`` (all equally far: argmax), ``line`` (classes are numbers: distances are differences, and all whole
        numbers between the least and the largest are classes), ``names`` (distances between MiniLM's embeddings of the
        class names); an NPZ file with ``distances [N, N]``, ``points [N, D]`` or ``edges [E, 2]`` with or without
        ``weights [E]``, and ``labels``; a table (CSV, JSONL, Parquet) of edges with columns ``parent`` and ``child``
        (or ``source`` and ``target``) and maybe ``weight``; or a table of distances with the class names in the first
        column and as the other columns' names.
    classes, leaves
        As for :func:`class_metric`.
    """
    if given == "complete":
        return Complete(classes)
    if given == "line":
        return line(classes)
    if given == "names":
        return name_embeddings([str(name) for name in classes.tolist()], classes)
    path = Path(given).expanduser()
    if not path.exists():
        raise NotFoundError(f"there is no metric {str(given)!r}: give a file, or {', '.join(NAMED)}")
    if path.suffix.lower() == ".npz":
        return _from_arrays(path, classes, leaves)
    rows = read(path)
    for a, b in _PAIRS:
        if {a, b} <= set(rows.columns):
            weights = rows["weight"] if "weight" in rows.columns else None
            return from_edges(list(zip(rows[a], rows[b], strict=True)), weights, leaves=leaves)
    return _from_table(rows.columns, rows.rows, path.name)


def line(classes: Labels) -> Euclidean:
    """Whole numbers on a line, from the least class to the largest."""
    if classes.dtype.kind not in "iuf" or (classes.dtype.kind == "f" and (classes % 1).any()):
        raise InputError(f"a line needs classes that are whole numbers, not {classes[0].item()!r}: give another metric")
    numbers = np.arange(int(classes.min()), int(classes.max()) + 1)
    return Euclidean(numbers, numbers.astype(classes.dtype))


def name_embeddings(names: Sequence[str], labels: Any = None) -> Euclidean:
    """A metric that the classes' names bring: distances between their embeddings by MiniLM.

    Parameters
    ----------
    names
        A few words for each class.
    labels
        The classes; the names by default.
    """
    from thrifty.nets.encoders import load_encoder
    from thrifty.nets.extraction import extract

    return Euclidean(extract(load_encoder("minilm"), list(names)), list(names) if labels is None else labels)


def from_edges(edges: Sequence[tuple[Any, Any]], weights: Any = None, *, leaves: bool = False) -> ClassMetric:
    """A tree where the edges make one, else a graph."""
    kinds = {isinstance(node, str) for edge in edges for node in edge}
    pairs = np.array([[str(a), str(b)] for a, b in edges]) if True in kinds else np.array(edges)
    found = Edges(pairs, weights)
    which = "leaves" if leaves else "all"
    tree = found.matrix.nnz == 2 * (len(found.nodes) - 1)
    return Tree(pairs, weights, which) if tree else Graph(pairs, weights, which)


def _from_arrays(path: Path, classes: Labels, leaves: bool) -> ClassMetric:
    try:
        with np.load(path, allow_pickle=False) as bundle:
            arrays = {name: bundle[name] for name in bundle.files}
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} is no readable NPZ file without pickles ({type(error).__name__})") from error
    there = [name for name in _ARRAYS if name in arrays]
    if len(there) != 1:
        found = ", ".join(arrays) or "none"
        raise InputError(f"{path.name} must have one of the arrays {', '.join(_ARRAYS)}: it has {found}")
    labels = as_labels(arrays["labels"]) if "labels" in arrays else None
    if there == ["edges"]:
        weights = arrays.get("weights")
        if labels is None:
            return from_edges([tuple(edge) for edge in arrays["edges"].tolist()], weights, leaves=leaves)
        tree = Edges(arrays["edges"], weights)
        make = Tree if tree.matrix.nnz == 2 * (len(tree.nodes) - 1) else Graph
        return make(arrays["edges"], weights, labels.tolist())
    values = arrays[there[0]]
    if labels is None and len(values) == len(classes):
        labels = classes
    return Distances(values, labels) if there == ["distances"] else Euclidean(values, labels)


def _from_table(columns: Sequence[str], rows: Sequence[dict[str, Any]], name: str) -> Distances:
    first, *others = columns
    given = [str(row[first]) for row in rows]
    if sorted(given) != sorted(others):
        odd = next(iter(sorted(set(given) ^ set(others))), "")
        raise InputError(
            f"{name} is neither a table of edges (columns parent and child, or source and target) nor one of distances "
            f"(class names in the first column and as the other columns): {odd!r} is not both a row and a column; "
            f"{nearest(odd, others)}".rstrip("; ")
        )
    matrix = [[row[column] for column in given] for row in rows]
    if not all(isinstance(value, int | float) for line_ in matrix for value in line_):
        raise InputError(f"{name}: a distance is missing or no number")
    numbers = all(isinstance(row[first], int) for row in rows)
    return Distances(matrix, np.array([row[first] for row in rows]) if numbers else np.array(given))
