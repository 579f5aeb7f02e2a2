"""A search for an architecture: cells for the user's pictures, a table of the user's, or a benchmark's."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError, nearest
from thrifty.core.run import Run
from thrifty.data.imported import imported
from thrifty.data.readers import read
from thrifty.nets.vision import save_net
from thrifty.shrink.candidates import kept
from thrifty.shrink.cell_candidates import Candidates, parts
from thrifty.shrink.graph_tables import graph_pool
from thrifty.shrink.robot_nas import Found, RoBoT
from thrifty.shrink.zero_cost import PAPERS, metric_names

_log = logging.getLogger("thrifty")
BENCHMARK = "nas-bench-graph:"
_TABLES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}
_PYTHON = "python:"


class Inputs(Protocol):
    """The room's inputs, as far as searches go."""

    @property
    def data(self) -> str | None: ...
    @property
    def objective(self) -> str | None: ...
    @property
    def architectures(self) -> int: ...
    @property
    def candidate_epochs(self) -> int: ...
    @property
    def final_epochs(self) -> int: ...
    @property
    def train_pictures(self) -> int: ...


def run(method: RoBoT, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Searches among the cells for pictures, the rows of a table, or a benchmark's architectures.

    Parameters
    ----------
    method
        The search.
    inputs
        What to search in.
    run
        Where metrics, evaluations and the network that was found go.
    """
    data = inputs.data or "digits"
    if data.startswith(BENCHMARK):
        return _in_benchmark(method, data.removeprefix(BENCHMARK), inputs, run)
    if Path(data).suffix.lower() in _TABLES:
        return _in_table(method, data, inputs, run)
    return _in_cells(method, data, inputs, run)


def _in_cells(method: RoBoT, data: str, inputs: Inputs, run: Run) -> dict[str, Any]:
    names = metric_names(method.metric_names(PAPERS))
    if inputs.objective is not None:
        raise InputError("an objective goes with a table of metrics: cells are trained on the pictures")
    candidates = Candidates.drawn(
        parts(data, inputs.train_pictures, run.seed, run.device),
        inputs.architectures,
        inputs.candidate_epochs,
        run.seed,
    )
    values = kept(run.directory / "metrics.json", partial(candidates.metrics, names))
    evaluations = Evaluations(run.directory / "evaluations.json", candidates.names, candidates.validation)
    found = method.search(values, evaluations, seed=run.seed)
    net, test = candidates.final(found.best, inputs.final_epochs)
    _log.info("%s, trained for %d epochs: test accuracy %.3f", candidates.names[found.best], inputs.final_epochs, test)
    save_net(net, run.directory / "model")
    return _summary(found, candidates.names, names, "validation accuracy") | {
        "test_accuracy": test,
        "millions_of_weights": sum(p.numel() for p in net.parameters()) / 1e6,
        "model": str(run.directory / "model"),
    }


def _in_benchmark(method: RoBoT, name: str, inputs: Inputs, run: Run) -> dict[str, Any]:
    names = metric_names(method.metric_names(PAPERS))
    codes, pool = graph_pool(name, inputs.architectures, names, run.seed)
    found = method.search(pool.values, pool.objective, seed=run.seed)
    return _summary(found, codes, names, "validation accuracy") | {
        "test_accuracy": float(pool.test[found.best]),
        "best_test_accuracy_in_the_pool": float(pool.test.max()),
        "better_in_the_pool": round(pool.rank(found.best) * len(codes) / 100),
    }


def _in_table(method: RoBoT, data: str, inputs: Inputs, run: Run) -> dict[str, Any]:
    table = OwnTable.read(data, method.metric_names(()) or None, inputs.objective or "objective")
    evaluations = Evaluations(run.directory / "evaluations.json", table.names, table.objective, keep=table.costly)
    found = method.search(table.values, evaluations, seed=run.seed)
    return _summary(found, table.names, table.metrics, "objective")


def _summary(found: Found, names: Sequence[str], metrics: Sequence[str], what: str) -> dict[str, Any]:
    rows = [
        {"architecture": names[row], what: value, "found by": "exploration" if at < found.explored else "exploitation"}
        for at, (row, value) in enumerate(found.history)
    ]
    return {
        "table": sorted(rows, key=lambda row: -float(str(row[what]))),
        "best": names[found.best],
        "weights": dict(zip(metrics, found.weights.tolist(), strict=True)),
        "explored": found.explored,
        "queried": len(found.history),
    }


class Evaluations:
    """An objective by row that is remembered in a file, so that a search that was stopped pays for nothing twice.

    Parameters
    ----------
    path
        The file.
    names
        Of the architectures.
    evaluate
        ``evaluate(row)``.
    keep
        Whether to write the file at all.
    """

    def __init__(
        self, path: Path, names: Sequence[str], evaluate: Callable[[int], float], *, keep: bool = True
    ) -> None:
        self._path, self._names, self._evaluate, self._keep = path, names, evaluate, keep
        self._known: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def __call__(self, row: int) -> float:
        name = self._names[row]
        if name not in self._known:
            self._known[name] = float(self._evaluate(row))
            if self._keep and math.isfinite(self._known[name]):
                write_json(self._path, self._known)
        return self._known[name]


@dataclass(frozen=True, eq=False)
class OwnTable:
    """A table of the user's.

    Parameters
    ----------
    names
        Of its rows.
    metrics
        Names of the columns that are metrics.
    values
        Those columns, [N, m].
    objective
        ``objective(row)``.
    costly
        Whether the objective is a function to be called, and no column.
    """

    names: tuple[str, ...]
    metrics: tuple[str, ...]
    values: Float[np.ndarray, "architecture metric"]
    objective: Callable[[int], float]
    costly: bool

    @classmethod
    def read(cls, path: str, metrics: Sequence[str] | None, objective: str) -> OwnTable:
        """Reads a table of metrics, a row for each architecture.

        Parameters
        ----------
        path
            A CSV, TSV, JSONL, JSON or Parquet file.
        metrics
            Its columns to use; all numeric ones but the objective when ``None``.
        objective
            The column with the objectives, empty where one is not known yet; or ``python:MODULE:FUNCTION``, called
            with a row as a dictionary.

        Raises
        ------
        InputError
            When a column is missing or is no number, or there is no metric.
        """
        records = read(path)
        costly = objective.startswith(_PYTHON)
        numeric = [name for name in records.columns if all(_is_number(row.get(name)) for row in records)]
        if not costly and objective not in records.columns:
            raise InputError(
                f"{records.source} has no column {objective!r}: {nearest(objective, records.columns)}; name the column "
                "with the objectives by --objective, or a function by --objective python:MODULE:FUNCTION"
            )
        if not costly and objective not in numeric:
            raise InputError(f"the column {objective!r} of {records.source} must hold numbers, or nothing")
        for name in metrics or ():
            if name not in numeric:
                raise InputError(f"{records.source} has no numeric column {name!r}: {nearest(name, numeric)}")
        used = tuple(metrics or (name for name in numeric if name != objective))
        if not used:
            raise InputError(f"{records.source} has no numeric column beside {objective!r}: there are no metrics")
        text = next((name for name in records.columns if name not in numeric), None)
        names = tuple(str(row[text]) if text else str(at) for at, row in enumerate(records))
        if len(set(names)) < len(names):
            raise InputError(f"the column {text!r} of {records.source} names two architectures alike: make them differ")
        values = np.array([[_number(row.get(name)) for name in used] for row in records])
        if costly:
            called = imported(objective.removeprefix(_PYTHON))
            return cls(names, used, values, lambda row: float(called(records[row])), costly=True)

        def stored(row: int) -> float:
            value = _number(records[row].get(objective))
            if math.isnan(value):
                raise InputError(
                    f"row {row + 1} of {records.source} ({names[row]}) is to be evaluated next: write its "
                    f"{objective!r} into the table and run the same command again"
                )
            return value

        return cls(names, used, values, stored, costly=False)


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
