"""Tables of architectures that others have trained, made once into an NPZ file without pickles."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from thrifty.core.errors import InputError

GRAPH_SETS = ("cora", "citeseer", "pubmed", "cs", "physics", "photo", "computers", "arxiv")
"""Those of NAS-Bench-Graph with the same space; ``proteins`` has another one and is left out."""
FIELDS = {"valid": "valid_perf", "test": "perf", "latency": "latency", "parameters": "para"}

_ALLOWED = {
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),  # NumPy 2
    ("numpy", "dtype"),
}


class _Numbers(pickle.Unpickler):
    """Reads plain values and NumPy's numbers; refuses everything else a pickle could name."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise InputError(f"the table names {module}.{name}, where only numbers are expected; it was not read")


def nas_bench_graph(roots: Mapping[str, Path], folder: Path) -> None:
    """The light tables of NAS-Bench-Graph: for each data set, what became of every architecture."""
    source = roots["nas-bench-graph"] / "nas_bench_graph" / "light"
    tables: dict[str, Any] = {}
    for name in GRAPH_SETS:
        with (source / f"{name}.bench").open("rb") as stream:
            found = _read(stream)
        codes = sorted(found)
        tables[f"{name}.code"] = np.array(codes, dtype=np.int64)
        for field, original in FIELDS.items():
            tables[f"{name}.{field}"] = np.array([found[code][original] for code in codes], dtype=np.float64)
    np.savez_compressed(folder / "tables.npz", **tables)


def _read(stream: BinaryIO) -> dict[int, dict[str, float]]:
    # The package publishes pickles; it is pinned by its digest, and they are read as numbers only.
    found: dict[int, dict[str, float]] = _Numbers(stream).load()
    return found
