"""A fresh cache for every test, no hub, and a toy asset on a shelf."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from thrifty.data import hub

# fake_sources is also imported by the processes that tests start.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "cache"
    monkeypatch.setenv("THRIFTY_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    hub.forget_silence()
    yield folder
    hub.forget_silence()


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "shelf"
