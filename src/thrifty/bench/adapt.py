"""What the adapt room costs beside its peers."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

_PARTS = (
    ("_adapt_streams", "stream_rows"),
    ("_adapt_episodes", "episode_rows"),
    ("_adapt_ssl", "ssl_rows"),
    ("_adapt_loki", "loki_rows"),
)


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measures heads on streams, episodes and self-supervised steps beside the released code.

    Parameters
    ----------
    quick
        One pair of runs.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    rows: list[dict[str, Any]] = []
    for module, measure in _PARTS:
        name = f"thrifty.bench.{module}"
        if importlib.util.find_spec(name) is not None:
            rows += getattr(importlib.import_module(name), measure)(quick)
    return rows
