from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thrifty.adapt import data
from thrifty.adapt.data import Labelled, read_labelled, split_and_limit
from thrifty.core.errors import InputError, NotFoundError
from thrifty.data.images import ImageSet
from thrifty.data.text import TextSet

IMAGES = ImageSet(
    np.zeros((4, 2, 2), np.uint8), np.array([0, 1, 0, 1]), np.ones((2, 2, 2), np.uint8), np.array([1, 0]), ("no", "yes")
)


def folder(path: Path, names: str, count: int = 2) -> None:
    for name in names:
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (4, 4)).save(path / name / f"{number}.png")


def test_named_sets_keep_their_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "images", lambda _: IMAGES)
    found = read_labelled("mnist")
    assert found.labels.tolist() == ["no", "yes", "no", "yes", "yes", "no"]
    assert found.test is not None
    assert found.test.tolist() == [False] * 4 + [True] * 2
    monkeypatch.setattr(
        data, "texts", lambda _: TextSet(("a", "b"), np.array([0, 1]), ("c",), np.array([1]), ("x", "y"))
    )
    found = read_labelled("spam")
    assert (found.kind, found.inputs, found.labels.tolist()) == ("texts", ["a", "b", "c"], ["x", "y", "y"])


def test_default_falls_back_to_digits_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(name: str) -> ImageSet:
        if name == "fashion-mnist":
            raise NotFoundError("no network")
        return IMAGES

    monkeypatch.setattr(data, "images", offline)
    assert read_labelled("").name == "digits"
    assert "fashion-mnist is not at hand (no network)" in caplog.text


def test_folder_of_classes_and_of_splits(tmp_path: Path) -> None:
    folder(tmp_path / "flat", "ab")
    found = read_labelled(str(tmp_path / "flat"))
    assert (found.kind, found.test) == ("pictures", None)
    assert found.labels.tolist() == ["a", "a", "b", "b"]
    folder(tmp_path / "split" / "train", "ab")
    folder(tmp_path / "split" / "test", "ab", 1)
    found = read_labelled(str(tmp_path / "split"))
    assert found.test is not None
    assert found.test.tolist() == [False] * 4 + [True] * 2
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(InputError, match="empty has no pictures"):
        read_labelled(str(tmp_path / "empty"))


def test_arrays_of_features_pictures_and_domains(tmp_path: Path) -> None:
    x, y = np.zeros((4, 3)), np.array(["a", "b", "a", "b"])
    np.savez(tmp_path / "f.npz", x=x, y=y, domain=[0, 0, 1, 1])
    found = read_labelled(str(tmp_path / "f.npz"))
    assert found.kind == "features"
    assert found.domains is not None
    assert found.domains.tolist() == [0, 0, 1, 1]
    np.savez(tmp_path / "p.npz", x=np.zeros((4, 2, 2)), y=y, test_x=np.zeros((1, 2, 2)), test_y=["a"])
    found = read_labelled(str(tmp_path / "p.npz"))
    assert (found.kind, len(found.labels)) == ("pictures", 5)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((2, 2))}, "has no array 'y': it has x"),
        ({"x": np.zeros((2, 2)), "y": [0, 1], "test_x": np.zeros((1, 2))}, "one of test_x and test_y"),
        ({"x": np.zeros((2, 2)), "y": [0, 1], "test_x": np.zeros((1, 3)), "test_y": [0]}, r"test_x is \[1, 3\]"),
        ({"x": np.zeros((2, 2)), "y": [0]}, "there are 1 labels"),
        ({"x": np.zeros((0, 2)), "y": []}, r"x is \[0, 2\]"),
        ({"x": np.zeros((2, 2)), "y": [0, 1], "domain": [0]}, "1 domains for 2 examples"),
        ({"x": np.zeros((2, 2)), "y": np.array([{}, {}], dtype=object)}, "no readable NPZ file without pickles"),
    ],
)
def test_wrong_arrays_are_refused(arrays: dict[str, Any], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", allow_pickle=True, **arrays)
    with pytest.raises(InputError, match=said):
        read_labelled(str(tmp_path / "f.npz"))


def test_tables_of_texts(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("words,kind,day\nhello,1,mon\nbye,2,tue\n")
    found = read_labelled(str(tmp_path / "t.csv"), text_column="words", label_column="kind", domain_column="day")
    assert (found.kind, found.inputs, found.labels.tolist()) == ("texts", ["hello", "bye"], [1, 2])
    assert found.domains is not None
    assert found.domains.tolist() == ["mon", "tue"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": t, "label": c}) for t, c in ("ab", "cd")))
    assert read_labelled(str(tmp_path / "t.jsonl")).labels.tolist() == ["b", "d"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("words,label\nhello,1\n", "has no column 'text'"),
        ("text,label\n", "t.csv"),
        ("text,label\nhello,\n", "row 1 has no value in 'label'"),
        ("text,label\nhello,1\n ,2\n", "row 2 has no 'text'"),
    ],
)
def test_wrong_tables_are_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputError, match=said):
        read_labelled(str(tmp_path / "t.csv"))


def test_unknown_data_is_named() -> None:
    with pytest.raises(NotFoundError, match="no data 'fashion-mnits': did you mean 'fashion-mnist'"):
        read_labelled("fashion-mnits")


def some(counts: list[int], test: Any = None) -> Labelled:
    labels = np.repeat(np.arange(len(counts)), counts)
    return Labelled(np.arange(len(labels))[:, None], labels, test, "features", labels % 2)


def test_split_takes_its_share_of_every_class() -> None:
    found = split_and_limit(some([10, 20, 2]), test_share=0.2, limit=None, seed=0)
    assert found.test is not None
    assert np.bincount(found.labels, found.test).tolist() == [2, 4, 1]
    again = split_and_limit(some([10, 20, 2]), test_share=0.2, limit=None, seed=0)
    assert np.array_equal(found.test, again.test)


def test_limit_is_even_over_classes_and_keeps_inputs_with_labels() -> None:
    found = split_and_limit(some([100, 100]), test_share=0.5, limit=20, seed=1)
    assert found.test is not None
    assert np.bincount(found.labels).tolist() == [10, 10]
    assert np.bincount(found.labels, found.test).tolist() == [5, 5]
    assert np.array_equal(found.inputs[:, 0] // 100, found.labels)


def test_a_given_split_is_kept() -> None:
    test = np.array([True, False, False, True, False, False])
    found = split_and_limit(some([3, 3], test), test_share=0.9, limit=None, seed=0)
    assert found.test is not None
    assert found.test.tolist() == test.tolist()


@pytest.mark.parametrize(
    ("share", "limit", "counts", "said"),
    [
        (0.0, None, [2], "test share must be between 0 and 1"),
        (0.5, 0, [2], "limit must be at least 1"),
        (0.5, None, [2, 1], "class 1 has 1 example"),
    ],
)
def test_wrong_splits_are_refused(share: float, limit: int | None, counts: list[int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_and_limit(some(counts), test_share=share, limit=limit, seed=0)
