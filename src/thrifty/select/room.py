"""How the command runs a method that selects by history: read it, score, select, save."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.method import Room
from thrifty.core.run import Run
from thrifty.data.records import write_jsonl
from thrifty.select.history import AccuracyHistory
from thrifty.select.limr import LimResult
from thrifty.select.logs import read_history
from thrifty.select.pool import elicitation_pool, record_history

_log = logging.getLogger("thrifty")


class HistorySelector(Protocol):
    """A method that scores the prompts of a history and chooses by score."""

    def score(self, pool: AccuracyHistory) -> LimResult: ...

    def choose(self, result: LimResult) -> Int[Tensor, " M"]: ...


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    data
        How often each prompt was answered right during a run: a saved history (JSONL with ``id`` and ``accuracies``),
        or a log with a row for each sample (``prompt`` or ``id``, ``epoch`` or ``step``, ``reward`` or ``success``). By
        default the history of a small run that is made on the spot.
    steps_per_epoch
        How many steps of a log make an epoch, where it has no ``epoch``.
    target
        For selection from an open set: the small unlabelled set to select for. A folder of pictures, an NPY or NPZ file
        of pictures or features, ``letters``, ``fashion-mnist``, ``digits`` or ``mnist``; an embedded one by default.
    pool
        The large unlabelled set to select from, in the same forms.
    model
        The encoder of both: ``efficientnet-lite0``, the folder or hub id of a Hugging Face vision model. By default a
        small network that is trained on the target alone, without labels.
    retrieval_epochs
        Passes over the target in that training (the paper makes 1,000).
    image_size
        Pixels a side of what that network sees.
    views
        Its random views: ``natural`` (crops, mirroring, colours) or ``drawing`` (nothing mirrored).
    """

    data: str | None = None
    steps_per_epoch: int = 8
    target: str | None = None
    pool: str | None = None
    model: str | None = None
    retrieval_epochs: float = 100.0
    image_size: int = 28
    views: Literal["natural", "drawing"] = "drawing"

    def __post_init__(self) -> None:
        if self.steps_per_epoch < 1:
            raise InputError(f"steps_per_epoch must be at least 1, not {self.steps_per_epoch}")


def run(method: HistorySelector, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Selects by the method's own way, or prompts by their history.

    ``selected.jsonl`` in the run's directory has the id, the score and (if known) the text of each selected prompt, the
    best first; ``scores.jsonl`` has all prompts, in the history's order. Without data of one's own, the embedded
    history is kept beside them, in ``history.jsonl``.

    Raises
    ------
    InputError
        When the history can't be read or scored, or no prompt is selected: the best score is named.
    """
    if hasattr(method, "demonstrate"):
        found: dict[str, Any] = method.demonstrate(inputs, run)
        return found
    if inputs.data is None:
        history = record_history(elicitation_pool(run.seed), run.seed)
        history.save(run.directory / "history.jsonl", overwrite=True)
    else:
        history = read_history(inputs.data, steps_per_epoch=inputs.steps_per_epoch)
    result = method.score(history)
    chosen = method.choose(result)
    if not len(chosen):
        best = float(result.scores[result.kept].max())
        raise InputError(f"no prompt scores above the threshold; the best has {best:.3f}: give --threshold or --budget")
    ids, accuracy, _ = history.matrix()
    rows = [_row(name, score, history) for name, score in zip(ids, result.scores.tolist(), strict=True)]
    write_jsonl(run.directory / "selected.jsonl", [rows[index] for index in chosen.tolist()], overwrite=True)
    write_jsonl(run.directory / "scores.jsonl", rows, overwrite=True)
    note = (
        f"the history took a whole run on the full pool ({history.samples:,} samples): selection saves nothing on that "
        "run, only on those after it, and its scores are those of the model that ran"
    )
    _log.warning("%s", note)
    epochs = len(result.average)
    return {
        "table": _table(accuracy[:, :epochs], result, chosen),
        "selected": len(chosen),
        "prompts": len(history),
        "dropped": result.dropped,
        "filled": result.filled,
        "samples": history.samples,
        "average": result.average.tolist(),
        "note": note,
        "file": str(run.directory / "selected.jsonl"),
    }


def _row(name: str, score: float, history: AccuracyHistory) -> dict[str, Any]:
    # A dropped prompt's score is NaN, which is no JSON.
    row: dict[str, Any] = {"id": name, "score": score if score == score else None}
    text = history.prompts.get(name)
    return row if text is None else {**row, "prompt": text}


def _table(accuracy: Float[Tensor, "N K"], result: LimResult, chosen: Int[Tensor, " M"]) -> list[dict[str, Any]]:
    selected = torch.zeros_like(result.kept)
    selected[chosen] = True
    parts = {
        "selected": selected,
        "left out": result.kept & ~selected,
        "dropped: an epoch is missing": ~result.kept,
        "all": torch.ones_like(selected),
    }
    return [{"prompts": name, **_described(accuracy, result.scores, mask)} for name, mask in parts.items()]


def _described(accuracy: Tensor, scores: Tensor, mask: Tensor) -> dict[str, Any]:
    values = scores[mask & ~scores.isnan()]
    quantiles: Sequence[float | None] = [None] * 3
    if len(values):
        quantiles = values.quantile(torch.tensor([0.0, 0.5, 1.0], dtype=values.dtype)).tolist()
    some = bool(mask.any())
    return {
        "number": int(mask.sum()),
        "share": float(mask.float().mean()),
        "first accuracy": float(accuracy[mask, 0].nanmean()) if some else None,
        "final accuracy": float(accuracy[mask, -1].nanmean()) if some else None,
        **dict(zip(("lowest score", "median score", "highest score"), quantiles, strict=True)),
    }


ROOM = Room(inputs=Inputs, run=run, tasks={})
