"""Unpacking of wheels, npm tarballs and Debian packages that can write nowhere but into the folder given."""

from __future__ import annotations

import fnmatch
import io
import lzma
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from thrifty.core.errors import InputError
from thrifty.data.optional import first_line

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60


def unpack(archive: Path, folder: Path, keep: Sequence[str] = ("*",)) -> Path:
    """Unpack the members of ``archive`` that match ``keep`` into ``folder``.

    Parameters
    ----------
    archive
        A ``.whl``/``.zip``, ``.tgz``/``.tar.gz`` or ``.deb`` file.
    folder
        Where to unpack; created when missing.
    keep
        Shell patterns over member names with forward slashes (``*`` also crosses slashes).

    Returns
    -------
    Path
        ``folder``.

    Raises
    ------
    InputError
        For another kind of file, a damaged one, or a member that would leave ``folder``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.name.endswith((".whl", ".zip")):
            _unzip(archive, folder, keep)
        elif archive.name.endswith((".tgz", ".tar.gz")):
            with tarfile.open(archive, "r:gz") as tar:
                _untar(tar, folder, keep)
        elif archive.name.endswith(".deb"):
            with tarfile.open(fileobj=io.BytesIO(_deb_payload(archive))) as tar:
                _untar(tar, folder, keep)
        else:
            raise InputError(f"{archive.name}: not a wheel, zip, tgz or deb file")
    except (zipfile.BadZipFile, tarfile.TarError, lzma.LZMAError, EOFError) as error:
        raise InputError(
            f"{archive.name}: damaged or unsafe archive ({first_line(error)}); delete it and fetch again"
        ) from error
    return folder


def _wanted(name: str, keep: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in keep)


def _unzip(archive: Path, folder: Path, keep: Sequence[str]) -> None:
    with zipfile.ZipFile(archive) as bundle:
        for member in bundle.infolist():
            name = PurePosixPath(member.filename)
            # ZipFile.extract would silently rename such members; a package that has them is not what was pinned.
            linked = stat.S_ISLNK(member.external_attr >> 16)
            if name.is_absolute() or ".." in name.parts or "\\" in member.filename or ":" in name.parts[0] or linked:
                raise InputError(f"{archive.name}: member {member.filename!r} would leave the folder; file refused")
            if member.is_dir() or not _wanted(member.filename, keep):
                continue
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with bundle.open(member) as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _untar(tar: tarfile.TarFile, folder: Path, keep: Sequence[str]) -> None:
    for member in tar:
        name = member.name.removeprefix("./")
        if _wanted(name, keep):
            tar.extract(member, folder, filter="data")


def _deb_payload(archive: Path) -> bytes:
    """The ``data.tar.*`` member of a Debian package, which is an ``ar`` archive of three files."""
    blob = archive.read_bytes()
    if not blob.startswith(_AR_MAGIC):
        raise InputError(f"{archive.name}: not a Debian package; delete it and fetch again")
    at = len(_AR_MAGIC)
    while at + _AR_HEADER <= len(blob):
        name = blob[at : at + 16].decode("ascii", "replace").strip().rstrip("/")
        size = int(blob[at + 48 : at + 58])
        at += _AR_HEADER
        if name.startswith("data.tar"):
            return blob[at : at + size]
        at += size + size % 2  # members are padded to even offsets
    raise InputError(f"{archive.name}: no data.tar inside; delete it and fetch again")
