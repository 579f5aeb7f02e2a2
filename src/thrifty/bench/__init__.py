"""Speed and memory beside peers, as ratios of paired runs in one process group."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from thrifty.core.errors import NotFoundError, nearest


def names() -> list[str]:
    """What can be measured."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def load_bench(name: str) -> Callable[..., list[dict[str, Any]]]:
    """The measurement of that name: ``measure(quick=False) -> rows``.

    Raises
    ------
    NotFoundError
        When there is none of that name; the known ones are given.
    """
    if name not in names():
        raise NotFoundError(f"no bench {name!r}: {nearest(name, names())}")
    measure: Callable[..., list[dict[str, Any]]] = importlib.import_module(f"thrifty.bench.{name}").run
    return measure
