"""The cache of assets on disk: finished folders with a manifest, built aside and renamed into place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from thrifty.core.atomic import fsync, room_on_disk
from thrifty.core.errors import DiskFullError, InputError
from thrifty.data.sources import digest

MANIFEST = "manifest.json"


def cache_root() -> Path:
    """The folder of all assets: ``$THRIFTY_CACHE``, or the user's cache folder of the operating system."""
    chosen = os.environ.get("THRIFTY_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_cache_dir("thrifty"))


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished asset, or None where there is none that can be read."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) and isinstance(manifest.get("files"), dict) else None


def damage(folder: Path, recipe: int, *, full: bool = False) -> str | None:
    """What is wrong with a cached asset, or None if it can be used.

    Parameters
    ----------
    folder
        Its folder.
    recipe
        Version of the conversion it must come from.
    full
        Also compare every file's SHA-256; without it only presence and sizes.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return "it has no manifest"
    if manifest.get("recipe") != recipe:
        return "it was made by another version of its conversion"
    for name, entry in manifest["files"].items():
        path = folder / name
        try:
            if path.stat().st_size != entry["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['size']}"
        except OSError:
            return f"{name} is missing"
        if full and digest(path) != entry["sha256"]:
            return f"{name} does not have its SHA-256"
    return None


def publish(folder: Path, recipe: int, build: Callable[[Path, Path], dict[str, Any]], *, needs: int = 0) -> Path:
    """Build an asset aside, write its manifest, and rename it into place; call it with the asset's lock held.

    Parameters
    ----------
    folder
        The final folder; an existing one is replaced only when the new one is complete.
    recipe
        Version of the conversion, kept in the manifest.
    build
        Gets an empty folder for the asset and another for scratch; returns what else the manifest should say.
    needs
        Bytes of free disk to ask for before starting.

    Raises
    ------
    DiskFullError
        If there is not enough room; nothing that existed is changed.
    InputError
        If the cache can't be written.
    """
    with _plain_disk_errors(folder, needs):
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in folder.parent.glob(f".{folder.name}.*.part"):  # of killed processes: the lock is ours
            shutil.rmtree(left, ignore_errors=True)
        if shutil.disk_usage(folder.parent).free < needs:
            raise OSError(errno.ENOSPC, "too little free space")
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            made, work = aside / "made", aside / "work"
            made.mkdir()
            work.mkdir()
            notes = build(made, work)
            shutil.rmtree(work)
            _finish(made, {"asset": folder.name, "recipe": recipe, **notes})
            if folder.exists():
                folder.rename(aside / "old")
            made.rename(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _finish(folder: Path, notes: dict[str, Any]) -> None:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o644)
            fsync(path)
            files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": digest(path)}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({**notes, "files": files}, indent=1) + "\n", encoding="utf-8")
    fsync(manifest)
    fsync(folder)


@contextlib.contextmanager
def _plain_disk_errors(folder: Path, needs: int) -> Iterator[None]:
    try:
        with room_on_disk(folder):
            yield
    except DiskFullError as error:
        raise DiskFullError(
            f"no room for {folder.name}: making it takes about {max(needs, 10**6) / 1e6:.0f} MB in {folder.parent}; "
            f"free some, or set THRIFTY_CACHE to a folder on another disk"
        ) from error
    except PermissionError as error:
        raise not_writable(folder, error) from error


def not_writable(folder: Path, error: OSError) -> InputError:
    """The error for a cache that may be read but not written."""
    return InputError(
        f"can't write {folder.name} into the cache {folder.parent} ({error.strerror}): "
        f"set THRIFTY_CACHE to a folder you can write"
    )
