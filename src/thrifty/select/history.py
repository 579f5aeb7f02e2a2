"""How often each prompt was answered right in each epoch of a run: what selection by history reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.data.readers import read, require_columns, write_jsonl


class AccuracyHistory:
    """Mean success of each prompt's samples in each epoch; any online run can write one as it goes.

    ``history.update(prompt_ids, success, epoch)`` after each step is all a run has to do. An epoch is a fixed number of
    steps; a prompt need not be asked in each. Ids are stripped of blanks at both ends, once, where they enter.

    Parameters
    ----------
    prompt_ids
        Prompts known beforehand, whose order the rows of the matrix then have; others are added as they come.
    """

    def __init__(self, prompt_ids: Iterable[str] = ()) -> None:
        names = dict.fromkeys(normalised(name) for name in prompt_ids)
        self._index: dict[str, int] = {name: row for row, name in enumerate(names)}
        self._prompts: dict[str, str] = {}
        self._sums = torch.zeros(0, 0, dtype=torch.float64)
        self._counts = torch.zeros(0, 0, dtype=torch.float64)

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self._index)

    @property
    def ids(self) -> list[str]:
        """The prompts' ids, in the order in which they first came."""
        return list(self._index)

    @property
    def prompts(self) -> dict[str, str]:
        """The texts of the prompts by id, where they were given."""
        return dict(self._prompts)

    @property
    def samples(self) -> int:
        """How many samples it was made of: what the run that recorded it has cost."""
        return int(self._counts.sum())

    def update(
        self,
        prompt_ids: Sequence[str],
        success: Float[Tensor, " B"] | Float[Tensor, "B G"],
        epoch: int,
        *,
        prompts: Sequence[str] | None = None,
    ) -> None:
        """Adds what was seen in a step; more of the same prompt and epoch is averaged by the number of samples.

        Parameters
        ----------
        prompt_ids
            The B prompts asked; one may come several times.
        success
            1 for right and 0 for wrong, or a share in between: one sample of each prompt, or G of them.
        epoch
            From 0.
        prompts
            Their texts, to be kept with the ids.

        Raises
        ------
        InputError
            When lengths differ, an id is empty, the epoch is negative, or a success is outside [0, 1] or NaN.
        """
        values = torch.as_tensor(success).detach().to("cpu", torch.float64)
        values = values[:, None] if values.ndim == 1 else values
        if values.ndim != 2 or len(values) != len(prompt_ids) or not values.shape[1]:
            raise InputError(f"success must be [B] or [B, G] with B = {len(prompt_ids)} ids, not {list(success.shape)}")
        if prompts is not None and len(prompts) != len(prompt_ids):
            raise InputError(f"{len(prompts)} prompts for {len(prompt_ids)} ids: give one each")
        names = [normalised(name) for name in prompt_ids]
        wrong = (~((values >= 0) & (values <= 1))).nonzero()
        if len(wrong):
            row, sample = wrong[0].tolist()
            raise InputError(
                f"success of prompt {names[row]!r} is {float(values[row, sample]):g}: give values in [0, 1], such as "
                "(reward == 1)"
            )
        self._add(names, epoch, values.sum(1), torch.full((len(names),), float(values.shape[1]), dtype=torch.float64))
        if prompts is not None:
            self._prompts.update(zip(names, prompts, strict=True))

    def _add(self, names: Sequence[str], epoch: int, sums: Float[Tensor, " B"], counts: Float[Tensor, " B"]) -> None:
        if epoch < 0:
            raise InputError(f"epoch must be at least 0, not {epoch}")
        rows = torch.tensor([self._index.setdefault(name, len(self._index)) for name in names], dtype=torch.long)
        self._make_room(epoch + 1)
        self._sums[:, epoch].index_add_(0, rows, sums)
        self._counts[:, epoch].index_add_(0, rows, counts)

    def _make_room(self, epochs: int) -> None:
        self._sums, self._counts = (_grown(table, len(self), epochs) for table in (self._sums, self._counts))

    def matrix(self) -> tuple[list[str], Float[Tensor, "N K"], Bool[Tensor, "N K"]]:
        """The ids, the accuracies (float64, NaN where not observed), and where they were observed.

        The first column is the first epoch of which anything is known.

        Raises
        ------
        InputError
            When nothing was recorded.
        """
        if not self.samples:
            raise InputError("the history is empty: nothing was recorded")
        self._make_room(1)
        counts = self._counts[: len(self._index)]
        some = (counts > 0).any(0).nonzero()[:, 0].tolist()
        known = slice(some[0], some[-1] + 1)
        counts, sums = counts[:, known], self._sums[: len(self._index), known]
        return self.ids, sums / counts, counts > 0

    def curves(self) -> dict[str, list[float]]:
        """The accuracies that were observed of each prompt that was asked, by epoch: lists of different length."""
        ids, accuracy, observed = self.matrix()
        return {name: accuracy[row][observed[row]].tolist() for row, name in enumerate(ids) if observed[row].any()}

    def state_dict(self) -> dict[str, Any]:
        """All of it, as a tree that a checkpoint can hold."""
        rows = len(self._index)
        self._make_room(1)
        texts = [self._prompts.get(name) for name in self._index]
        return {"ids": self.ids, "prompts": texts, "sums": self._sums[:rows], "counts": self._counts[:rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what :meth:`state_dict` gave."""
        self._index = {name: row for row, name in enumerate(state["ids"])}
        self._prompts = {n: text for n, text in zip(state["ids"], state["prompts"], strict=True) if text is not None}
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Writes JSON lines, whole or not at all: ``id``, ``prompt`` if known, ``accuracies`` and ``counts`` by epoch.

        Raises
        ------
        ExistsError
            If the file exists and may not be replaced.
        DiskFullError
            If there is no room.
        """
        return write_jsonl(path, self._rows(), overwrite=overwrite)

    def _rows(self) -> Iterable[dict[str, Any]]:
        self._make_room(1)
        epochs = int((self._counts > 0).any(0).nonzero().max()) + 1 if self.samples else 0
        for name, row in self._index.items():
            counts = self._counts[row, :epochs].tolist()
            mean = (self._sums[row, :epochs] / self._counts[row, :epochs]).tolist()
            accuracies = [value if count else None for value, count in zip(mean, counts, strict=True)]
            text = {"prompt": self._prompts[name]} if name in self._prompts else {}
            yield {"id": name, **text, "accuracies": accuracies, "counts": [int(count) for count in counts]}

    @classmethod
    def load(cls, path: str | Path) -> AccuracyHistory:
        """Reads what :meth:`save` wrote; ``counts`` may be left out (then each accuracy counts as one sample).

        Raises
        ------
        InputError
            For a file that is empty or broken, a missing column, or an accuracy that is no number in [0, 1] or null:
            the row is named.
        """
        records = read(path)
        require_columns(records, ["id", "accuracies"], records.source)
        history = cls()
        sums: list[list[float]] = []
        counts: list[list[float]] = []
        for number, row in enumerate(records, start=1):
            where = f"{records.source}: row {number}"
            name = normalised(row["id"], where)
            if name in history._index:
                raise InputError(f"{where} has the id {name!r} once more: merge the rows or rename one")
            history._index[name] = len(history._index)
            means, weights = _saved(row["accuracies"], row.get("counts"), where)
            sums.append([mean * weight for mean, weight in zip(means, weights, strict=True)])
            counts.append(weights)
            if row.get("prompt") is not None:
                history._prompts[name] = str(row["prompt"])
        epochs = max(map(len, counts))
        history._sums, history._counts = (
            torch.tensor([row + [0.0] * (epochs - len(row)) for row in table], dtype=torch.float64)
            for table in (sums, counts)
        )
        return history


def normalised(name: Any, where: str = "a prompt id") -> str:
    """An id as it is kept: a string without blanks at its ends.

    Raises
    ------
    InputError
        When nothing is left of it.
    """
    text = str(name).strip() if name is not None else ""
    if not text:
        raise InputError(f"{where} is empty: give each prompt an id, or its text as one")
    return text


def in_unit(value: Any, what: str) -> float:
    """A number in [0, 1]; raises :class:`~thrifty.core.errors.InputError` that begins with ``what`` for another."""
    if not isinstance(value, int | float) or not (math.isfinite(value) and 0 <= value <= 1):
        raise InputError(f"{what} is {value!r}: give a number in [0, 1], the share of samples that were right")
    return float(value)


def _saved(values: Any, counts: Any, where: str) -> tuple[list[float], list[float]]:
    """The accuracies and numbers of samples of a saved row; 0 of 0 samples for a missing one."""
    if not isinstance(values, list):
        raise InputError(f"{where}: accuracies must be a list of numbers and nulls, not {values!r}")
    counts = counts if counts is not None else [1] * len(values)
    if not isinstance(counts, list) or len(counts) != len(values):
        raise InputError(f"{where}: counts must be a list as long as accuracies ({len(values)})")
    means, weights = [], []
    for epoch, (value, count) in enumerate(zip(values, counts, strict=True)):
        means.append(0.0 if value is None else in_unit(value, f"{where}, epoch {epoch}: accuracy"))
        weights.append(0.0 if value is None else max(float(count), 1.0))
    return means, weights


def _grown(table: Tensor, rows: int, epochs: int) -> Tensor:
    """A table with room for so many rows and columns; rows double, so that adding one by one stays cheap."""
    have_rows, have_epochs = table.shape
    if rows <= have_rows and epochs <= have_epochs:
        return table
    larger = table.new_zeros(max(have_rows, 2 * rows if rows > have_rows else rows), max(have_epochs, epochs))
    larger[:have_rows, :have_epochs] = table
    return larger
