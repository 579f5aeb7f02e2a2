"""Episodes in Minari's format: one group per episode in an HDF5 file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data.optional import first_line, need

_PER_STEP = ("actions", "rewards", "terminations", "truncations")


def read_minari(path: str | Path) -> list[dict[str, Any]]:
    """Read the episodes of a Minari data set.

    Parameters
    ----------
    path
        The data set's folder (the one that has ``data``), its ``data`` folder, the HDF5 file in that, or, with the
        minari library, the id of a data set that it has on this machine.

    Returns
    -------
    list of dict
        Per episode of T steps: ``observations`` [T+1, ...], ``actions`` [T, ...], ``rewards`` [T] float,
        ``terminations`` and ``truncations`` [T] bool. Observations and actions of dictionary spaces are dictionaries
        of such arrays.

    Raises
    ------
    NotFoundError
        If there is no such data set.
    InputError
        If it is not in this format, has no episodes, or an episode's lengths don't fit.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        file = next((at for at in (place / "main_data.hdf5", place / "data" / "main_data.hdf5") if at.is_file()), None)
        episodes = (
            _from_hdf5(file)
            if file
            else _from_library(place if (place / "metadata.json").is_file() else place / "data")
        )
    elif place.is_file():
        episodes = _from_hdf5(place)
    else:
        episodes = _from_local_id(str(path))
    if not episodes:
        raise InputError(f"{path} has no episodes")
    for number, episode in enumerate(episodes):
        _check(episode, f"{place.name}: episode {number}")
    return episodes


def _from_hdf5(file: Path) -> list[dict[str, Any]]:
    h5py = need("h5py", "rl", "Minari's HDF5 files")
    try:
        with h5py.File(file, "r") as store:
            names = [name for name in store if name.startswith("episode_")]
            if not names:
                raise InputError(
                    f"{file.name} has no groups episode_0, episode_1, …: it has {', '.join(store) or 'nothing'}"
                )
            names.sort(key=lambda name: int(name.removeprefix("episode_")))
            return [_episode(store[name], f"{file.name}: {name}") for name in names]
    except OSError as error:
        raise InputError(f"{file.name} is not a readable HDF5 file: {first_line(error)}") from error


def _episode(group: Any, where: str) -> dict[str, Any]:
    for name in ("observations", *_PER_STEP):
        if name not in group:
            raise InputError(f"{where} has no {name!r}: it has {', '.join(group)}")
    return {name: _arrays(group[name]) for name in ("observations", *_PER_STEP)}


def _arrays(node: Any) -> Any:
    """A data set as an array, a group as a dictionary of them."""
    if hasattr(node, "keys"):
        return {name: _arrays(node[name]) for name in node}
    return node[()]


def _from_library(folder: Path) -> list[dict[str, Any]]:
    """Data sets in Minari's other storage formats, which only the library reads."""
    if not (folder / "metadata.json").is_file():
        raise InputError(f"{folder.name} is no Minari data set: no main_data.hdf5 and no metadata.json in it")
    minari = need("minari", "rl", "Minari data sets in other formats than HDF5")
    try:
        return _from_dataset(minari.MinariDataset(folder))
    except (OSError, ValueError, KeyError, AssertionError, json.JSONDecodeError) as error:
        raise InputError(f"{folder} is not a readable Minari data set: {first_line(error)}") from error


def _from_local_id(name: str) -> list[dict[str, Any]]:
    try:
        minari = need("minari", "rl", "Minari data sets by id")
        known = list(minari.list_local_datasets())
    except InputError as error:
        raise NotFoundError(f"no file or folder {name!r}") from error
    if name not in known:
        raise NotFoundError(f"no file, folder or local Minari data set {name!r}: {nearest(name, known)}".rstrip(": "))
    return _from_dataset(minari.load_dataset(name))


def _from_dataset(dataset: Any) -> list[dict[str, Any]]:
    return [
        {name: getattr(episode, name) for name in ("observations", *_PER_STEP)}
        for episode in dataset.iterate_episodes()
    ]


def _check(episode: dict[str, Any], where: str) -> None:
    steps = len(episode["rewards"])
    if steps == 0:
        raise InputError(f"{where} has no steps")
    for name in ("observations", *_PER_STEP):
        expected = steps + (name == "observations")
        for part in _leaves(episode[name]):
            if len(part) != expected:
                raise InputError(f"{where} has {steps} rewards but {len(part)} {name}, expected {expected}")
    if not np.isfinite(episode["rewards"]).all():
        raise InputError(f"{where} has NaN or infinite rewards")


def _leaves(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return [leaf for part in node.values() for leaf in _leaves(part)]
    return [node]
