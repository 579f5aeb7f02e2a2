"""Where measured claims are kept: one JSON file a paper, in the repository and in the package."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from thrifty.claims.fingerprint import fingerprint
from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError, RunError


def directory() -> Path:
    """The stored results: ``results/`` of the checkout, or the copy inside an installed package."""
    package = Path(str(files("thrifty")))
    checkout = package.parent.parent / "results"
    return checkout if (package.parent.parent / "pyproject.toml").exists() else package / "results"


def read(paper_id: str) -> dict[str, Any] | None:
    """The stored result of a paper's claim, or ``None`` where it was never measured.

    ``status`` is added: the verdict, or ``stale`` when the code that was measured has changed since.
    """
    path = directory() / f"{paper_id}.json"
    if not path.exists():
        return None
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is damaged: delete it and run `thrifty reproduce {paper_id}`") from error
    if not isinstance(result, dict):
        raise RunError(f"{path} is damaged: delete it and run `thrifty reproduce {paper_id}`")
    try:
        current = fingerprint(f"thrifty.claims.{paper_id.replace('-', '_')}")
    except ModuleNotFoundError:
        current = ""
    return result | {"status": result["verdict"] if result["code"] == current else "stale"}


def row(paper_id: str) -> dict[str, Any] | None:
    """What a list shows of a stored claim: ``verdict, metric, arms, date``; the verdict of a stale one is ``stale``."""
    result = read(paper_id)
    if result is None:
        return None
    metric = result["metric"]
    arms = {arm: values["metrics"].get(metric, {}).get("mean") for arm, values in result["arms"].items()}
    return {"verdict": result["status"], "metric": metric, "arms": arms, "date": result["date"]}


def write(result: dict[str, Any]) -> Path:
    """Stores a result, atomically.

    Raises
    ------
    InputError
        For a quick result, which decides nothing and must not be stored.
    """
    if result["quick"]:
        raise InputError("a quick result is no measurement: it is not stored")
    path = directory() / f"{result['paper']}.json"
    write_json(path, result)
    return path
