from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.method import load
from thrifty.nets.nearest import SimilarityLists, most_similar, unit_rows
from thrifty.nets.simclr import SimCLR, nt_xent
from thrifty.select import simcore
from thrifty.select.open_set import letters_among_clothes
from thrifty.select.simcore import OpenSet, SimCore, peel, simcore_select

SIMILARITIES = torch.tensor([[0.9, 0.1], [0.8, 0.7], [0.85, 0.2], [0.3, 0.6], [0.2, 0.5], [0.1, 0.1]])


def listed(similarities: Tensor, length: int | None = None) -> SimilarityLists:
    """Lists of the worked example, which gives cosines and no vectors."""

    class Given(SimilarityLists):
        def grow(self, length: int) -> None:
            values, order = similarities.T.sort(dim=1, descending=True, stable=True)
            self.values, self.indices = values[:, :length], order[:, :length]

    lists = Given(torch.eye(similarities.shape[1]), torch.zeros(len(similarities), 1), 10)
    if length is not None:
        lists.grow(length)
    return lists


@pytest.mark.parametrize(
    ("threshold", "selected", "rounds", "values"),
    [(0.95, [0, 1], [1, 1], [0.8]), (0.9, [0, 1, 2, 3], [1, 1, 2, 2], [0.8, 0.725])],
)
def test_worked_example(threshold: float, selected: list[int], rounds: list[int], values: list[float]) -> None:
    found = peel(listed(SIMILARITIES), 6, threshold, 1, None)
    assert found.indices.tolist() == selected
    assert found.round.tolist() == rounds
    assert found.stopped == "dissimilar"
    torch.testing.assert_close(found.values, torch.tensor(values, dtype=torch.float64), atol=1e-6, rtol=0)


def test_two_centroids_may_pick_the_same_and_lists_grow() -> None:
    """Round 3 of the worked example: both take row 4; then what is left is row 5."""
    found = peel(listed(SIMILARITIES, length=1), 6, None, 1, None)
    assert found.indices.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.round.tolist() == [1, 1, 2, 2, 3, 4]
    torch.testing.assert_close(found.values, torch.tensor([0.8, 0.725, 0.35, 0.1]).double(), atol=1e-6, rtol=0)


def test_the_codes_reference_round_keeps_the_rounds_before_it() -> None:
    found = peel(listed(SIMILARITIES), 6, 0.95, 3, None)
    assert found.round.max() == 3
    assert peel(listed(SIMILARITIES), 6, 0.95, 20, None).stopped == "budget"
    # Before the reference only a negative mean ends it.
    assert peel(listed(SIMILARITIES - 0.3), 6, 0.95, 20, None).round.max() == 3


def test_registered_under_its_id() -> None:
    assert load("simcore") is SimCore


def features(seed: int, rows: int, columns: int = 5) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 70))
def test_lists_do_not_depend_on_chunks(seed: int, count: int, chunk: int) -> None:
    # Whole numbers, so that there are ties: then the first row counts. Products with unit axes are exact in any chunk.
    target, pool = torch.eye(5, dtype=torch.float64)[:3], features(seed + 1, 60).round()
    pool[:, 4] = 1
    whole = target @ unit_rows(pool, "pool").T
    values, order = whole.sort(dim=1, descending=True, stable=True)
    found, indices = most_similar(target, pool, count, chunk=chunk)
    assert torch.equal(found, values[:, :count])
    assert torch.equal(indices, order[:, :count])


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_chunked_and_whole_select_the_same(seed: int, chunk: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simcore, "_FIRST_LIST", 1 + seed % 7)
        settings_ = {"n_centroids": 4, "stop_threshold": 0.6}
        cut = simcore_select(features(seed, 30), features(seed + 1, 80), chunk=chunk, **settings_)  # type: ignore[arg-type]
    whole = simcore_select(features(seed, 30), features(seed + 1, 80), **settings_)  # type: ignore[arg-type]
    assert torch.equal(cut.indices, whole.indices)


def test_the_first_round_is_the_nearest_of_each_centroid() -> None:
    target, pool = features(0, 40), features(1, 200)
    found = simcore_select(target, pool, n_centroids=6)
    nearest = (found.centroids @ unit_rows(pool, "pool").T).argmax(1)
    assert set(found.indices[found.round == 1].tolist()) == set(nearest.tolist())
    assert len(found.indices.unique()) == len(found.indices)
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(6, dtype=torch.float64))


def test_lengths_of_vectors_do_not_matter() -> None:
    target, pool = features(0, 40), features(1, 200)
    plain, scaled = (simcore_select(scale * target, pool / scale, n_centroids=6) for scale in (1.0, 7.0))
    assert torch.equal(plain.indices, scaled.indices)


def test_budgets_are_exact_and_repeatable() -> None:
    target, pool = features(0, 40), features(1, 200)

    def chosen(seed: int, **more: object) -> torch.Tensor:
        draw = torch.Generator().manual_seed(seed)
        return simcore_select(target, pool, n_centroids=8, stop_threshold=None, generator=draw, **more).indices  # type: ignore[arg-type]

    assert len(chosen(0, budget=21)) == 21
    assert torch.equal(chosen(0, budget=21), chosen(0, budget=21))
    assert len(chosen(0, budget=0.1)) == 20
    assert len(chosen(0, max_size=5)) == 5
    assert sorted(chosen(0, budget=1000).tolist()) == list(range(200))
    method = SimCore(n_centroids=8, stop_threshold=None, cap=0.5)
    assert len(method.select(OpenSet(target, pool))) == 20
    assert len(method.select((target, pool), budget=7)) == 7
    assert len(SimCore(budget_share=0.02, stop_threshold=None).select((target, pool))) == 4
    torch.manual_seed(3)
    one = method.select((target, pool))
    torch.manual_seed(3)
    assert torch.equal(one, method.select((target, pool)))


def test_each_example_is_its_own_centroid_where_there_are_no_more() -> None:
    target, pool = features(0, 5), features(1, 30)
    for count in (None, 5, 100):
        torch.testing.assert_close(
            simcore_select(target, pool, n_centroids=count).centroids, unit_rows(target, "target")
        )


def test_digits_of_the_targets_classes_are_found_among_noise() -> None:
    """The card's small study: precision far above the base rate, and more centroids find more."""
    x, y = load_digits(return_X_y=True)
    random = np.random.default_rng(0)
    order = random.permutation(len(x))
    first, second = order[:897], order[897:]
    target = x[first[np.isin(y[first], (3, 5, 8))]]
    pool = np.concatenate([x[second], random.uniform(0, 16, (900, 64))])
    wanted = np.append(np.isin(y[second], (3, 5, 8)), np.zeros(900, bool))
    sizes = []
    for count in (5, 20, 1000):
        found = simcore_select(target, pool, n_centroids=count).indices.numpy()
        assert wanted[found].mean() > 0.85 > 4 * wanted.mean()
        sizes.append(wanted[found].sum())
    assert sizes == sorted(sizes)


def test_what_wrong_input_is_told() -> None:
    good = np.ones((3, 2))
    bad, zero = good.copy(), good.copy()
    bad[1, 0], zero[2] = np.nan, 0
    with pytest.raises(InputError, match="target feature row 1 holds NaN or infinity"):
        simcore_select(bad, good)
    with pytest.raises(InputError, match="pool feature row 2 is all zero: it has no direction"):
        simcore_select(good, zero, chunk=2)
    with pytest.raises(InputError, match="the pool has 3 features, the target 2: use one encoder"):
        simcore_select(good, np.ones((4, 3)))
    with pytest.raises(InputError, match="nothing in the pool resembles the target"):
        simcore_select(good, -good)
    with pytest.raises(InputError, match="there are 3 target and 0 pool examples"):
        simcore_select(good, np.ones((0, 2)))
    with pytest.raises(InputError, match="stop_threshold is a share above 0"):
        SimCore(stop_threshold=1.5)
    with pytest.raises(InputError, match="budget must be at least 1"):
        SimCore().select((good, good), budget=0)


def test_views_find_each_other() -> None:
    """The loss of two pictures by hand, in units of 1/T: each view has one partner and two others."""
    z = torch.tensor([[1.0, 0], [0, 1.0], [1.0, 0], [0, 1.0]])
    expected = -torch.log(torch.e ** torch.tensor(2.0) / (torch.e**2 + 2))
    torch.testing.assert_close(nt_xent(z, 0.5), expected)
    learner = SimCLR(torch.nn.Flatten(), 4, projection=3)
    assert torch.isfinite(learner.loss(torch.randn(6, 1, 2, 2)).value)


def test_the_command_on_files_of_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32) * 0.1 + [1, 0, 0, 0]
    pool = np.concatenate([target + 0.01, -target, np.roll(target, 2, axis=1)])
    np.save(tmp_path / "target.npy", target.astype(np.float32))
    np.save(tmp_path / "pool.npy", pool.astype(np.float32))
    arguments = ["run", "simcore", "--out", str(tmp_path / "run"), "--target", str(tmp_path / "target.npy")]
    assert main(arguments) == 2
    assert "give both --target and --pool" in capsys.readouterr().err
    assert main([*arguments, "--pool", str(tmp_path / "pool.npy"), "--n-centroids", "5"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    rows = [json.loads(line) for line in Path(summary["file"]).read_text().splitlines()]
    assert len(rows) == summary["selected"] == 20
    assert {row["row"] for row in rows} == set(range(20))
    assert summary["table"][0]["similarity"] > summary["table"][1]["similarity"]
    more = ["--pool", str(tmp_path / "pool.npy"), "--model", "pixels"]
    assert main([*arguments[:3], str(tmp_path / "other"), *arguments[4:], *more]) == 2
    assert "holds features already: leave --model out" in capsys.readouterr().err


def test_the_command_on_pictures_trains_an_encoder_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("kornia")
    x, y = load_digits(return_X_y=True)
    pictures = (x.reshape(-1, 8, 8) * 15).astype(np.uint8)
    np.savez(tmp_path / "target.npz", x=pictures[y == 3][:40])
    np.save(tmp_path / "pool.npy", pictures[:200])
    out = str(tmp_path / "run")
    files = ["--target", str(tmp_path / "target.npz"), "--pool", str(tmp_path / "pool.npy")]
    more = ["--image-size", "8", "--retrieval-epochs", "2", "--n-centroids", "4"]
    assert main(["run", "simcore", "--out", out, *files, *more]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["rounds"] >= 1
    assert (tmp_path / "run" / "retrieval encoder").is_dir()


def test_the_embedded_pool_says_which_pictures_are_letters() -> None:
    try:
        target, pool, related = letters_among_clothes(0, target=10, related=20, other=30)
    except InputError:
        pytest.skip("the pictures can't be fetched")
    assert len(target.inputs) == 10
    assert len(pool.inputs) == len(related) == 50
    assert int(related.sum()) == 20
