"""The data of the room: examples that can be asked for by number, whatever the user keeps them in.

Two kinds of example exist, :class:`Labelled` inputs of a classifier and :class:`Texts` of a causal language model.
Either is a batch and a source at once; :class:`Items`, :class:`Part` and :class:`Joined` are sources only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.lm.sequences import Sequences

Inputs: TypeAlias = Tensor | dict[str, Tensor]
_LABELS = ("labels", "label")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs of a classifier with their classes.

    Parameters
    ----------
    x
        What the model takes, first dimension N; or a dictionary of such tensors, passed by name.
    y
        Classes, int64, [N]; ``None`` where a method needs no labels.

    Raises
    ------
    InputError
        When the labels are no class numbers, or not as many as the inputs.
    """

    x: Inputs
    y: Tensor | None = None

    def __post_init__(self) -> None:
        if self.y is None:
            return
        if self.y.dtype.is_floating_point or self.y.dtype == torch.bool or self.y.ndim != 1:
            raise InputError(
                f"labels must be class numbers, integers of shape [N], not {self.y.dtype} {list(self.y.shape)}"
            )
        if len(self.y) != len(self):
            raise InputError(f"there are {len(self)} inputs but {len(self.y)} labels")

    def __len__(self) -> int:
        return len(next(iter(self.x.values())) if isinstance(self.x, dict) else self.x)

    def rows(self, indices: Tensor) -> Labelled:
        """The examples of those numbers."""
        x = {k: v[indices] for k, v in self.x.items()} if isinstance(self.x, dict) else self.x[indices]
        return Labelled(x, None if self.y is None else self.y[indices])

    def to(self, device: torch.device) -> Labelled:
        """The same on another device."""
        x = {k: v.to(device) for k, v in self.x.items()} if isinstance(self.x, dict) else self.x.to(device)
        return Labelled(x, None if self.y is None else self.y.to(device))


@dataclass(frozen=True, eq=False)
class Texts:
    """Token sequences of a causal language model; what counts is their response tokens."""

    sequences: Sequences

    def __len__(self) -> int:
        return len(self.sequences.input_ids)

    def rows(self, indices: Tensor) -> Texts:
        """The sequences of those numbers."""
        return Texts(self.sequences.select(indices).trim())

    def to(self, device: torch.device) -> Texts:
        """The same on another device."""
        return Texts(self.sequences.to(device))


Batch: TypeAlias = Labelled | Texts


@runtime_checkable
class Source(Protocol):
    """Examples that can be asked for by number."""

    def __len__(self) -> int: ...

    def rows(self, indices: Tensor) -> Batch: ...


@dataclass(frozen=True, eq=False)
class Items:
    """A map-style data set of ``(x, y)`` items, collated only when asked for."""

    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def rows(self, indices: Tensor) -> Batch:
        """The items of those numbers, collated."""
        from torch.utils.data import default_collate

        return as_batch(default_collate([self.items[int(index)] for index in indices]))


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of a source, without a copy of it.

    Parameters
    ----------
    whole
        The source.
    indices
        Which of its rows, [N].
    """

    whole: Source
    indices: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def rows(self, indices: Tensor) -> Batch:
        """The examples of those numbers, counted within the part."""
        return self.whole.rows(self.indices[indices])


@dataclass(frozen=True, eq=False)
class Joined:
    """Two sources one behind the other."""

    first: Source
    second: Source

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def rows(self, indices: Tensor) -> Batch:
        """The examples of those numbers; those of the second source are counted on."""
        behind = indices >= len(self.first)
        parts = [
            source.rows(numbers)
            for source, numbers in (
                (self.first, indices[~behind]),
                (self.second, indices[behind] - len(self.first)),
            )
            if len(numbers)
        ]
        order = torch.cat([torch.nonzero(~behind)[:, 0], torch.nonzero(behind)[:, 0]])
        return concatenate(parts).rows(torch.argsort(order))


def concatenate(batches: Sequence[Batch]) -> Batch:
    """Batches of one kind one behind the other.

    Raises
    ------
    InputError
        When they are of different kinds.
    """
    if len(batches) == 1:
        return batches[0]
    if all(isinstance(batch, Texts) for batch in batches):
        return Texts(Sequences.cat([cast(Texts, batch).sequences for batch in batches]))
    try:
        parts = [cast(Labelled, batch) for batch in batches]
        xs, ys = [part.x for part in parts], [part.y for part in parts if part.y is not None]
        x: Inputs
        if isinstance(xs[0], dict):
            x = {key: torch.cat([cast(dict[str, Tensor], part)[key] for part in xs]) for key in xs[0]}
        else:
            x = torch.cat([cast(Tensor, part) for part in xs])
        return Labelled(x, torch.cat(ys) if len(ys) == len(parts) else None)
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise InputError(f"the batches do not fit together: {str(error).splitlines()[0]}") from error


def as_batch(given: Any) -> Batch:
    """One batch from what a data loader yields.

    Parameters
    ----------
    given
        ``(x, y)``; ``x`` alone; a dictionary of the model's inputs by name, with ``labels`` or without; token
        sequences.

    Raises
    ------
    InputError
        When it is none of these.
    """
    if isinstance(given, Labelled | Texts):
        return given
    if isinstance(given, Sequences):
        return Texts(given)
    if isinstance(given, Mapping):
        x = {str(key): as_tensor(value) for key, value in given.items() if key not in _LABELS}
        if not x:
            raise InputError("a batch holds labels but no inputs")
        labels = [as_tensor(given[key]) for key in _LABELS if key in given]
        return Labelled(x, labels[0] if labels else None)
    if isinstance(given, tuple | list) and len(given) == 2:
        return Labelled(as_tensor(given[0]), None if given[1] is None else as_tensor(given[1]))
    if isinstance(given, Tensor | np.ndarray):
        return Labelled(as_tensor(given))
    raise InputError(f"a batch must be (x, y), inputs alone or a dictionary of tensors, not {_described(given)}")


def as_tensor(array: Any) -> Tensor:
    """A tensor; float64 becomes float32, which models are in."""
    if isinstance(array, Tensor):
        tensor = array
    else:
        try:
            tensor = torch.as_tensor(np.asarray(array))
        except (TypeError, ValueError) as error:
            raise InputError(f"inputs and labels must be arrays of numbers, not {_described(array)}") from error
    return tensor.to(torch.float32) if tensor.dtype == torch.float64 else tensor


def _described(thing: Any) -> str:
    return f"a {type(thing).__name__}" + (f" of length {len(thing)}" if hasattr(thing, "__len__") else "")


def as_source(data: Any, name: str = "data") -> Source:
    """Any data that the room takes, as a source.

    Parameters
    ----------
    data
        A source; a pair of arrays ``(x [N, ...], y [N])``; inputs alone; a map-style data set of ``(x, y)``; token
        sequences; or an iterable of batches, which is gathered in memory.
    name
        What messages call it, for example ``"forget set"``.

    Raises
    ------
    InputError
        When it is none of these, or empty.
    """
    source = _random_access(data)
    if source is None:
        parts = [as_batch(given) for given in _iterated(data, name)]
        source = concatenate(parts) if parts else None
    if source is None or not len(source):
        raise InputError(f"the {name} is empty: give at least one example")
    return source


def _random_access(data: Any) -> Source | None:
    if isinstance(data, Sequences):
        return Texts(data)
    if isinstance(data, Source):
        return data
    pair = isinstance(data, tuple) and len(data) == 2 and all(isinstance(part, Tensor | np.ndarray) for part in data)
    if pair or isinstance(data, Tensor | np.ndarray):
        return as_batch(data)
    # A list is taken for a list of batches; what else has a length and items is a data set.
    is_set = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return Items(data) if is_set and not isinstance(data, list | tuple | Mapping | str | bytes) else None


def _iterated(data: Any, name: str) -> Iterable[Any]:
    if isinstance(data, str | bytes | Mapping) or not isinstance(data, Iterable):
        raise InputError(
            f"the {name} must be arrays (x, y), a data set, token sequences or an iterable of batches, "
            f"not {_described(data)}"
        )
    return data


def stream(data: Any, batch_size: int, *, shuffle: int | None = None, name: str = "data") -> Iterator[Batch]:
    """The batches of one pass over any data.

    Parameters
    ----------
    data
        As for :func:`as_source`; an iterable of batches is passed on as it comes, never held as a whole.
    batch_size
        Examples in a batch, the last one excepted.
    shuffle
        Seed of the order; ``None`` for the order given. Ready-made batches keep theirs.
    name
        What messages call it.

    Raises
    ------
    InputError
        When the data are of no known kind, or empty.
    """
    source = _random_access(data)
    if source is None:
        empty = True
        for given in _iterated(data, name):
            empty = False
            yield as_batch(given)
        if empty:
            raise InputError(f"the {name} is empty: give at least one example")
        return
    if not len(source):
        raise InputError(f"the {name} is empty: give at least one example")
    order = torch.arange(len(source))
    if shuffle is not None:
        order = torch.randperm(len(source), generator=generator(shuffle, "forget", "order"))
    for indices in order.split(batch_size):
        yield source.rows(indices)


def size(data: Any) -> int | None:
    """How many examples there are, or ``None`` for an iterable that does not say."""
    source = _random_access(data)
    return None if source is None else len(source)


def labels(source: Source, batch_size: int = 1024) -> Tensor:
    """The classes of all examples, [N].

    Raises
    ------
    InputError
        When the source has no labels.
    """
    if isinstance(source, Labelled):
        found = [source.y]
    else:
        found = [getattr(batch, "y", None) for batch in stream(source, batch_size)]
    if any(y is None for y in found):
        raise InputError("these data have no labels: give pairs (x, y)")
    return torch.cat([y for y in found if y is not None])
