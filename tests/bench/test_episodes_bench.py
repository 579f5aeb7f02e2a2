from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from thrifty.adapt.generalised_em import paddle
from thrifty.adapt.transductive_clustering import TransductiveClustering
from thrifty.adapt.unem import UNEM
from thrifty.bench import _adapt_episodes
from thrifty.bench._adapt_episodes import episode_rows, episodes
from thrifty.bench._adapt_plain_episodes import plain_paddle, plain_slk, plain_unem, released


def test_the_plain_ways_label_as_ours_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_adapt_episodes, "DIMENSION", 40)
    tasks = episodes(2, 6)
    clustering = TransductiveClustering(normalization="unit", clamp_support=False, bandwidth_scale=0.4**0.5)
    for method, plain in (
        (clustering, plain_slk),
        (paddle(normalization="unit", tolerance=None), plain_paddle),
        (UNEM(normalization="unit"), plain_unem),
    ):
        found = method.solve(tasks).labels
        for at in range(6):
            labels = plain(tasks.support[at], tasks.support_labels[at], tasks.query[at])
            assert (np.asarray(labels) == found[at].numpy()).mean() > 0.97


def test_rows_of_a_quick_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THRIFTY_PEERS", raising=False)
    monkeypatch.setattr(_adapt_episodes, "DIMENSION", 30)
    monkeypatch.setattr(_adapt_episodes, "QUERIES", 15)
    rows = episode_rows(quick=True)
    assert len(rows) == 12
    assert all(row["ours"] > 0 and row["peer"] > 0 and "written plainly" in row["name"] for row in rows)


def test_released_code_is_taken_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_PEERS", str(tmp_path))
    assert released("SLK") is None
    monkeypatch.delenv("THRIFTY_PEERS")
    assert released("PADDLE") is None
