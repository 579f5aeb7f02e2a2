"""Architectures that others have trained, as arrays: NAS-Bench-Graph."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thrifty.core.errors import NotFoundError, nearest
from thrifty.data.assets import ASSETS, Asset
from thrifty.data.convert_architectures import FIELDS, GRAPH_SETS
from thrifty.data.convert_architectures import nas_bench_graph as convert
from thrifty.data.fetch import fetch
from thrifty.data.sources import Wheel

_NAME = "nas-bench-graph"
# Entered here and not in `assets`, on which the stored results of all claims with fetched data depend.
ASSETS[_NAME] = Asset(
    _NAME,
    "tables",
    "NAS-Bench-Graph: 26,206 graph networks trained on 8 data sets each",
    "Apache-2.0 (package)",
    2.2,
    "thrifty.data.architectures.nas_bench_graph",
    (
        Wheel(
            package=_NAME,
            version="1.4.0",
            filename="nas_bench_graph-1.4.0-py3-none-any.whl",
            sha256="f6ea43836262f1ee8d60c35bbbd20aa2536ee1f8492025e3b0b90096f5afc6ad",
            size=5_868_117,
            keep=("nas_bench_graph/light/*.bench",),
            probe="nas_bench_graph/light/cora.bench",
        ),
    ),
    convert,
)


@dataclass(frozen=True, eq=False)
class ArchitectureTable:
    """What became of A architectures on one data set.

    Parameters
    ----------
    code
        The architectures, as the benchmark numbers them, int64, [A].
    valid, test
        Accuracy after training on the validation and the test part, float64, [A].
    latency
        Seconds of a forward pass, [A].
    parameters
        Millions of weights, [A].
    """

    code: NDArray[np.int64]
    valid: NDArray[np.float64]
    test: NDArray[np.float64]
    latency: NDArray[np.float64]
    parameters: NDArray[np.float64]


def nas_bench_graph(name: str) -> ArchitectureTable:
    """The table of one data set of NAS-Bench-Graph: 26,206 graph networks, each trained.

    Parameters
    ----------
    name
        ``cora``, ``citeseer``, ``pubmed``, ``cs``, ``physics``, ``photo``, ``computers`` or ``arxiv``. Their graphs
        are not part of the benchmark.

    Raises
    ------
    NotFoundError
        If there is no such data set, or the tables can't be fetched.

    References
    ----------
    Qin et al., NAS-Bench-Graph: Benchmarking Graph Neural Architecture Search, NeurIPS 2022, arXiv 2206.09166.
    """
    if name not in GRAPH_SETS:
        raise NotFoundError(f"NAS-Bench-Graph has no data set {name!r}: {nearest(name, GRAPH_SETS)}")
    with np.load(fetch(_NAME) / "tables.npz", allow_pickle=False) as bundle:
        return ArchitectureTable(bundle[f"{name}.code"], *(bundle[f"{name}.{field}"] for field in FIELDS))
