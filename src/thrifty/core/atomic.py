"""Files that are whole or absent: written beside, flushed to the disk, renamed into place."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thrifty.core.errors import DiskFullError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextlib.contextmanager
def room_on_disk(path: Path) -> Iterator[None]:
    """Turns the operating system's "no space left" while writing ``path`` into one clear line.

    Raises
    ------
    DiskFullError
        When the disk, the quota or the file size limit is exhausted inside the block.
    """
    try:
        yield
    except OSError as error:
        # Libraries in Rust and C hand the reason over as text only.
        if error.errno in _NO_ROOM or "No space left" in str(error):
            raise _disk_full(path) from error
        raise
    except Exception as error:
        if "No space left" in str(error) or "os error 28" in str(error):
            raise _disk_full(path) from error
        raise


def _disk_full(path: Path) -> DiskFullError:
    return DiskFullError(
        f"no space left to write {path}: what was there is untouched; free some room and run the same command again"
    )


def fsync(path: Path) -> None:
    """Asks the operating system to bring a file's or directory's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path`` that takes its place when the block ends well.

    A reader sees the old file or the new one, never a part; after a crash at any moment the old one is
    still there.

    Parameters
    ----------
    path
        The file to write or replace; its directory is made if missing.

    Raises
    ------
    DiskFullError
        When there is no room; ``path`` keeps what it held.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with room_on_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically (see :func:`replacing`)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically, keys in the order given, floats so that they read back bit for bit."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")
