"""Episodes on the disk: one safetensors file of our own, NPZ files, Minari data sets.

In a file the episodes lie one after the other: ``observations`` has the T + 1 rows of each, the other arrays T.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from thrifty.control.episode import Array, Episode
from thrifty.control.episodes import Episodes
from thrifty.core.atomic import replacing
from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.episode_files import read_minari

_LAYOUT = "thrifty-episodes-1"
_FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")
# What older collections call the same thing.
_OTHER_NAMES = {"terminals": "terminations", "timeouts": "truncations"}


def save_episodes(episodes: Episodes, path: Path) -> None:
    """Writes episodes as one safetensors file, atomically.

    Parameters
    ----------
    episodes
        What to write; missing actions stay missing.
    path
        Where to.

    Raises
    ------
    DiskFullError
        When there is no room; an older file of that name stays.
    """
    arrays = {
        "lengths": np.array([episode.steps for episode in episodes]),
        "labelled": episodes.labelled,
        "observations": episodes.observations(),
        "rewards": np.concatenate([episode.rewards for episode in episodes]),
        "terminations": np.concatenate([episode.terminations for episode in episodes]),
        "truncations": np.concatenate([episode.truncations for episode in episodes]),
    }
    actions = [episode.actions for episode in episodes if episode.actions is not None]
    if actions:
        arrays["actions"] = np.concatenate(actions)
    if episodes.low is not None and episodes.high is not None:
        arrays |= {"low": episodes.low, "high": episodes.high}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"layout": _LAYOUT})


def load_episodes(path: Path) -> Episodes:
    """Reads episodes.

    Parameters
    ----------
    path
        A safetensors file that :func:`save_episodes` wrote, an NPZ file as for :func:`episodes_from_arrays`, or
        a Minari data set (its directory, its HDF5 file, or its id).

    Raises
    ------
    NotFoundError
        When nothing is there.
    InputError
        When it is something else or damaged.
    """
    reader = {".npz": _read_npz, ".safetensors": _read_safetensors}.get(path.suffix)
    if reader is None:
        return episodes_from_minari(path)
    if not path.is_file():
        raise NotFoundError(f"no file {path}: give a Minari data set, an NPZ file or a safetensors file of episodes")
    return episodes_from_arrays(reader(path))


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{path} is no readable NPZ file of plain arrays: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("layout") != _LAYOUT:
                raise InputError(f"{path} holds no episodes: it was not written by Episodes.save")
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged or no safetensors file: {error}") from error


def episodes_from_arrays(arrays: Mapping[str, Array]) -> Episodes:
    """Episodes from flat arrays.

    Parameters
    ----------
    arrays
        Either ``lengths [episodes]`` with ``observations [sum(T + 1), ...]``, or ``next_observations`` beside
        ``observations [sum(T), ...]``, where an episode ends at each termination or truncation. ``rewards``
        always; ``actions`` (NaN rows, or the rows of the episodes in ``labelled`` only), ``terminations`` (or
        ``terminals``), ``truncations`` (or ``timeouts``), ``low`` and ``high`` where there are any.

    Raises
    ------
    InputError
        When an array is missing or of the wrong length.
    """
    named = {_OTHER_NAMES.get(name, name): array for name, array in arrays.items()}
    for name in ("observations", "rewards"):
        if name not in named:
            raise InputError(f"the episodes have no {name!r}: there are {', '.join(sorted(arrays))}")
    steps = len(named["rewards"])
    flags = {name: named.get(name, np.zeros(steps, dtype=bool)) for name in ("terminations", "truncations")}
    if "lengths" in named:
        lengths = np.asarray(named["lengths"], dtype=np.int64)
        observations = _cut("observations", named["observations"], lengths + 1)
    elif "next_observations" in named:
        ends = np.flatnonzero(flags["terminations"].astype(bool) | flags["truncations"].astype(bool)) + 1
        ends = ends if len(ends) and ends[-1] == steps else np.append(ends, steps)
        lengths = np.diff(ends, prepend=0)
        before = _cut("observations", named["observations"], lengths)
        after = _cut("next_observations", named["next_observations"], lengths)
        observations = [np.concatenate([b, a[-1:]]) for b, a in zip(before, after, strict=True)]
    else:
        raise InputError(
            "the episodes have neither 'next_observations' nor 'lengths' (with T + 1 observations each): the "
            "observation after the last step can't be told"
        )
    columns = {name: _cut(name, array, lengths) for name, array in {"rewards": named["rewards"], **flags}.items()}
    given = np.asarray(named.get("labelled", np.full(len(lengths), "actions" in named)), dtype=bool)
    pieces = iter(_cut("actions", named["actions"], lengths[given]) if given.any() else [])
    actions = [next(pieces) if has else None for has in given]
    rows = zip(observations, actions, *columns.values(), strict=True)
    return Episodes([Episode.of(*row) for row in rows], named.get("low"), named.get("high"))


def _cut(name: str, array: Array, lengths: Array) -> list[Array]:
    if len(array) != lengths.sum():
        raise InputError(f"{name} should have {lengths.sum()} rows in all, not {len(array)}")
    return np.split(array, np.cumsum(lengths)[:-1])


def episodes_from_minari(source: Any, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Episodes:
    """Episodes of a Minari data set (see :meth:`thrifty.control.episodes.Episodes.from_minari`)."""
    if isinstance(source, str | Path):
        given = _written_bounds(Path(source))
        source = read_minari(source)
    else:
        space = getattr(source, "action_space", None)
        given = getattr(space, "low", None), getattr(space, "high", None)
    low, high = given[0] if low is None else low, given[1] if high is None else high
    items: Iterable[Any] = source.iterate_episodes() if hasattr(source, "iterate_episodes") else source
    return Episodes([_from_minari(number, item) for number, item in enumerate(items)], low, high)


def _written_bounds(path: Path) -> tuple[ArrayLike | None, ArrayLike | None]:
    """The bounds that a Minari data set's metadata give for a box of actions, where they give any."""
    for folder in (path, path / "data", path.parent):
        try:
            space = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))["action_space"]
            space = json.loads(space) if isinstance(space, str) else space
            return space["low"], space["high"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None, None


def _from_minari(number: int, item: Any) -> Episode:
    found: dict[str, Any] = {}
    for name in _FIELDS:
        found[name] = item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)
        if found[name] is None and name in ("observations", "rewards"):
            raise InputError(f"episode {number} has no {name!r}")
        if isinstance(found[name], Mapping):
            keys = json.dumps(sorted(found[name]))
            raise InputError(f"episode {number}: {name} is a dictionary {keys}: give one array of numbers")
    return Episode.of(**found)
