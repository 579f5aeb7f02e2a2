from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.core.atomic import replacing, room_on_disk, write_json
from thrifty.core.checkpoint import Checkpoints, load_tree, save_tree, snapshot
from thrifty.core.errors import DiskFullError, InputError
from thrifty.core.seeding import derive_seed, generator, rng_state, seed_everything, set_rng_state


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5),
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=4).map(torch.tensor),
    st.lists(st.integers(0, 255), max_size=4).map(lambda v: np.array(v, dtype=np.uint8)),
)  # fmt: skip
trees = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=4), st.integers(0, 9)), inner, max_size=3),
    ),
    max_leaves=8,
)


@given(trees)
def test_any_tree_comes_back_as_it_was(tree: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "tree.safetensors"
        save_tree(path, tree)
        assert same(load_tree(path), tree)


def test_an_optimizer_s_state_comes_back(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_tree(tmp_path / "s", optimizer.state_dict())
    assert same(load_tree(tmp_path / "s"), optimizer.state_dict())


def test_tied_weights_are_written_once(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    save_tree(tmp_path / "one", {"a": weight})
    save_tree(tmp_path / "two", snapshot({"a": weight, "b": weight}))
    assert (tmp_path / "two").stat().st_size < (tmp_path / "one").stat().st_size + 500
    assert torch.equal(load_tree(tmp_path / "two")["b"], weight)


def test_a_snapshot_does_not_see_later_updates() -> None:
    tree = {"t": torch.zeros(2), "a": np.zeros(2), "l": [torch.zeros(1)], "p": (1, torch.zeros(1))}
    taken = snapshot(tree)
    tree["t"].add_(1)
    tree["a"] += 1
    tree["l"][0].add_(1)
    assert taken["t"].sum() == taken["a"].sum() == taken["l"][0].sum() == 0


def test_what_can_t_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't hold a set \(at /a/0\)"):
        save_tree(tmp_path / "x", {"a": [set()]})
    assert not list(tmp_path.iterdir())


def test_keeps_the_newest_and_passes_over_a_damaged_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.latest() is None
    (tmp_path / ".step-000000001.safetensors.99.tmp").write_bytes(b"left by a killed process")
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": torch.full((10,), float(step))})
    checkpoints.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002.safetensors", "step-000000003.safetensors"]
    newest = tmp_path / "step-000000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    step, tree = checkpoints.latest() or (0, {})
    assert step == 2
    assert tree["x"][0] == 2
    assert "step-000000003.safetensors is not a whole checkpoint" in caplog.text


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"x": torch.ones(3)}, wait=True)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(2, {"x": torch.zeros(3)})
    with pytest.raises(DiskFullError, match=r"no space left to write .*step-000000002"):
        checkpoints.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000001.safetensors"]


def test_space_errors_of_other_libraries_are_recognised(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError), room_on_disk(tmp_path):
        raise RuntimeError("io error: No space left on device (os error 28)")
    with pytest.raises(RuntimeError, match="other"), room_on_disk(tmp_path):
        raise RuntimeError("other")
    with pytest.raises(PermissionError), room_on_disk(tmp_path):
        raise PermissionError("no")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})

    def half() -> None:
        with replacing(tmp_path / "a.json") as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert (tmp_path / "a.json").read_text() == '{\n  "old": 1\n}\n'
    assert len(list(tmp_path.iterdir())) == 1


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_all_generators_go_back_to_a_saved_state(tmp_path: Path) -> None:
    seed_everything(3)
    save_tree(tmp_path / "rng", rng_state())
    first = draws()
    draws()
    set_rng_state(load_tree(tmp_path / "rng"))
    assert draws() == first
    seed_everything(3)
    assert draws() == first


def test_named_parts_have_seeds_of_their_own() -> None:
    seeds = {derive_seed(0), derive_seed(1), derive_seed(0, "a"), derive_seed(0, "a", 1), derive_seed(0, "a1")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    a, b = (torch.rand(3, generator=generator(0, "x")) for _ in range(2))
    assert torch.equal(a, b)
