"""What the shrink room costs beside its peers."""

from __future__ import annotations

import importlib.util
import logging
from typing import Any

from thrifty.bench._shrink_graph import graph_rows
from thrifty.bench._shrink_language import language_rows

_log = logging.getLogger("thrifty")


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measures finding groups and cutting them beside Torch-Pruning, and FLAP and DSnoT beside the plain way.

    Parameters
    ----------
    quick
        One pair of runs.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    graph: list[dict[str, Any]] = []
    if importlib.util.find_spec("torch_pruning") is None:
        _log.warning("Torch-Pruning is not installed, so nothing is measured beside it: pip install torch-pruning")
    else:
        graph = graph_rows(quick)
    return [*graph, *language_rows(quick)]
