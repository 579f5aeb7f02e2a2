"""Readers: the same rows from every format, and errors that name the line, the column and the cure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_sources import toy_asset
from hypothesis import given
from hypothesis import strategies as st

from thrifty.core.errors import ExistsError, InputError, NotFoundError
from thrifty.data import optional
from thrifty.data.assets import ASSETS
from thrifty.data.readers import Records, read, read_images, read_minari, require_columns, write_jsonl

ROWS = [{"prompt": "a", "score": 1}, {"prompt": "b", "score": 2}]


def as_file(folder: Path, kind: str) -> Path:
    path = folder / f"rows.{kind}"
    if kind in ("jsonl", "ndjson"):
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n")
    elif kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        path.write_text("\n".join([f"prompt{mark}score", f"a{mark}1", f"b{mark}2"]))
    elif kind == "parquet":
        arrow = pytest.importorskip("pyarrow")
        __import__("pyarrow.parquet").parquet.write_table(arrow.Table.from_pylist(ROWS), path)
    else:
        pytest.importorskip("datasets").Dataset.from_list(ROWS).save_to_disk(str(path))
    return path


@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "saved"])
def test_every_format_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    records = read(as_file(tmp_path, kind))
    assert list(records) == ROWS
    assert records.columns == ("prompt", "score")
    assert records["score"] == [1, 2]
    assert records[1] == ROWS[1]
    assert list(records[:1]) == ROWS[:1]
    assert len(records) == 2
    assert repr(records) == f"Records(2 rows of prompt, score from rows.{kind})"
    assert list(read(as_file(tmp_path, kind) if kind != "saved" else tmp_path / "rows.saved", columns=["score"])) == [
        {"score": 1},
        {"score": 2},
    ]


def test_saved_dataset_with_splits_gives_train(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    one = datasets.Dataset.from_list(ROWS)
    datasets.DatasetDict({"train": one, "test": one.select([0])}).save_to_disk(str(tmp_path / "both"))
    assert len(read(tmp_path / "both")) == 2
    datasets.DatasetDict({"dev": one.select([0])}).save_to_disk(str(tmp_path / "only"))
    assert len(read(tmp_path / "only")) == 1
    datasets.DatasetDict({"dev": one, "test": one}).save_to_disk(str(tmp_path / "none"))
    with pytest.raises(InputError, match="has the splits dev, test"):
        read(tmp_path / "none")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "dataset_info.json").write_text("{}")
    with pytest.raises(InputError, match="broken is not a readable saved dataset"):
        read(tmp_path / "broken")


def test_folder_of_files_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "2.jsonl").write_text('{"x": 2}\n')
    (tmp_path / "1.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "README.md").write_text("hi")
    assert read(tmp_path)["x"] == [1, 2]
    (tmp_path / "3.csv").write_text("x\n3\n")
    with pytest.raises(InputError, match="neither a saved dataset nor a folder of files of one kind"):
        read(tmp_path)


def test_embedded_text_set_is_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(roots: Any, folder: Path) -> None:
        (folder / "texts.jsonl").write_text('{"text": "hi", "label": "x", "split": "train"}\n')

    monkeypatch.setitem(ASSETS, "toy", toy_asset(tmp_path / "shelf", build))
    assert read("toy", columns=["text"])["text"] == ["hi"]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b'{"x": 1}\n{"x": \n', r"rows\.jsonl: line 2 is not JSON"),
        (b'{"x": 1}\n\n[1]\n', r"rows\.jsonl: line 3 is a list, expected an object"),
        (b'{"x": "\xff"}\n', r"rows\.jsonl: line 1 is not UTF-8"),
        (b"\n\n", r"rows\.jsonl is empty"),
    ],
)
def test_broken_json_line_is_named(tmp_path: Path, content: bytes, line: str) -> None:
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(InputError, match=line) as caught:
        read(tmp_path / "rows.jsonl")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", b"x,y\n1,2\n3\n", r"a\.csv: line 3 has 1 fields, the header has 2"),
        ("a.csv", b'x,y\n"1,2\n', r"a\.csv is not a readable CSV"),
        ("a.csv", b"x\n\xff\n", r"a\.csv is not a readable CSV file in UTF-8"),
        ("a.csv", b"", r"a\.csv is empty"),
        ("a.csv", b"x,y\n", r"a\.csv is empty"),
        ("a.json", b"{", r"a\.json is not JSON"),
        ("a.json", b"[1]", r"a\.json: expected a list of objects"),
        ("a.parquet", b"nonsense", r"a\.parquet is not a readable Parquet file"),
        ("a.pickle", b"", r"a\.pickle is of an unknown kind: expected \.csv"),
    ],
)
def test_unreadable_file_is_one_line(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=line) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_csv_columns_are_numbers_where_all_cells_are(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffn,r,t,gap\n1,1.5,x,\n2,2,3,7\n\n")
    assert list(read(tmp_path / "a.csv")) == [
        {"n": 1, "r": 1.5, "t": "x", "gap": None},
        {"n": 2, "r": 2.0, "t": "3", "gap": 7},
    ]


def test_missing_file_offers_its_neighbours(tmp_path: Path) -> None:
    as_file(tmp_path, "jsonl")
    with pytest.raises(NotFoundError, match=r"did you mean 'rows\.jsonl'"):
        read(tmp_path / "row.jsonl")
    with pytest.raises(NotFoundError, match=r"no file '.*nowhere.*'"):
        read(tmp_path / "nowhere" / "x.jsonl")


def test_missing_column_is_named_with_those_there() -> None:
    with pytest.raises(InputError, match=r"data has no column 'promt': it has prompt, score; did you mean 'prompt'\?"):
        require_columns(ROWS, ["promt"], "data")
    with pytest.raises(InputError, match="data: row 2 has no 'x' \\(1 of 2 rows lack it\\)"):
        require_columns([{"x": 1}, {"y": 1}], ["x"], "data")
    wide = [{f"column{i}": i for i in range(20)}]
    with pytest.raises(InputError, match="has no column 'colum7': did you mean 'column7'"):
        require_columns(wide, ["colum7"], "data")
    with pytest.raises(InputError, match="data is empty: expected rows with x"):
        require_columns([], ["x"], "data")
    require_columns(ROWS, ["score", "prompt"], "data")
    with pytest.raises(InputError, match="no column 'z'"):
        Records(ROWS)["z"]


def test_missing_library_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_file(tmp_path, "parquet")

    def refuse(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(optional.importlib, "import_module", refuse)
    with pytest.raises(
        InputError, match=r"Parquet files need the library pyarrow\.parquet: `pip install 'thrifty\[lm\]'`"
    ):
        read(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(max_size=6), JSON, max_size=4), min_size=1, max_size=5))
def test_written_rows_are_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    path = write_jsonl(tmp_path_factory.mktemp("jsonl") / "deep" / "rows.jsonl", rows)
    assert list(read(path)) == rows


def test_write_jsonl_keeps_what_exists(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"a": np.float32(0.5), "b": np.arange(2)}])
    assert read(path)[0] == {"a": 0.5, "b": [0, 1]}
    with pytest.raises(ExistsError, match="exists: choose another name"):
        write_jsonl(path, ROWS)
    with pytest.raises(InputError, match="row 2 can't be written"):
        write_jsonl(path, [{"a": 1}, {"a": {1, 2}}], overwrite=True)
    assert read(path)[0] == {"a": 0.5, "b": [0, 1]}
    write_jsonl(path, ROWS, overwrite=True)
    assert list(read(path)) == ROWS
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def draw(path: Path, mode: str = "RGB", size: tuple[int, int] = (4, 3), value: int = 200) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value if mode == "L" else (value, 0, 0)).save(path)


def test_image_folder_has_a_class_per_subfolder(tmp_path: Path) -> None:
    draw(tmp_path / "dog" / "1.png", "L", value=7)
    draw(tmp_path / "dog" / "2.png", "L")
    draw(tmp_path / "cat" / "1.png", "L", value=9)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    images = read_images(tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.y.tolist() == [0, 1, 1]
    assert images.x.shape == (3, 3, 4)
    assert images.x[:2, 0, 0].tolist() == [9, 7]
    draw(tmp_path / "dog" / "3.png", "RGB")
    assert read_images(tmp_path).x.shape == (4, 3, 4, 3)


def test_images_of_another_size_are_named_or_resized(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png")
    draw(tmp_path / "a" / "2.png", size=(5, 5))
    with pytest.raises(InputError, match=r"a/2\.png is 5x5, the first image is 3x4: give size"):
        read_images(tmp_path)
    assert read_images(tmp_path, size=(6, 7)).x.shape == (2, 6, 7, 3)


def test_image_folder_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no images"):
        read_images(tmp_path)
    with pytest.raises(NotFoundError, match="no file or folder"):
        read_images(tmp_path / "none")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_text("no image")
    with pytest.raises(InputError, match=r"a/1\.png is not a readable image"):
        read_images(tmp_path)


def test_npz_images(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 2, 2), np.uint8), y=np.array([5, 7, 5]))
    images = read_images(tmp_path / "a.npz")
    assert images.classes == ("5", "7")
    assert images.y.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "line"),
    [
        ({"images": np.zeros(2)}, r"a\.npz has no array 'x': it has images"),
        ({"x": np.zeros((2, 2, 2))}, r"a\.npz has no array 'y': it has x"),
        ({"x": np.zeros((2, 2, 2)), "y": np.zeros(3, int)}, r"x is \[2, 2, 2\] and y is \[3\]"),
        ({"x": np.zeros((0, 2, 2)), "y": np.zeros(0, int)}, r"x is \[0, 2, 2\]"),
        ({"x": np.full((1, 2, 2), np.nan), "y": np.zeros(1, int)}, "NaN"),
        ({"x": np.zeros((1, 2, 2)), "y": np.zeros(1)}, "y is float64"),
        ({"x": np.array([[[{}]]], object), "y": np.zeros(1, int)}, "without pickles"),
    ],
)
def test_npz_that_does_not_fit_is_named(tmp_path: Path, arrays: dict[str, Any], line: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=line):
        read_images(tmp_path / "a.npz")


def test_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.npz is not a readable NPZ"):
        read_images(tmp_path / "a.npz")


def episode(steps: int = 3, **changes: Any) -> dict[str, Any]:
    whole = {
        "observations": np.arange((steps + 1) * 2.0).reshape(steps + 1, 2),
        "actions": np.zeros((steps, 1)),
        "rewards": np.arange(float(steps)),
        "terminations": np.zeros(steps, bool),
        "truncations": np.eye(steps, dtype=bool)[-1] if steps else np.zeros(0, bool),
    }
    return {name: value for name, value in {**whole, **changes}.items() if value is not None}


def store(file: Path, episodes: dict[str, dict[str, Any]]) -> Path:
    h5py = pytest.importorskip("h5py")

    def fill(group: Any, content: dict[str, Any]) -> None:
        for name, value in content.items():
            if isinstance(value, dict):
                fill(group.create_group(name), value)
            else:
                group[name] = value

    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as out:
        fill(out, episodes)
    return file


def test_minari_episodes_come_in_order(tmp_path: Path) -> None:
    store(tmp_path / "data" / "main_data.hdf5", {f"episode_{i}": episode(i + 1) for i in range(11)})
    for place in (tmp_path, tmp_path / "data", tmp_path / "data" / "main_data.hdf5"):
        episodes = read_minari(place)
        assert [len(one["rewards"]) for one in episodes] == list(range(1, 12))
    assert episodes[2]["observations"].shape == (4, 2)
    assert episodes[2]["truncations"].tolist() == [False, False, True]


def test_minari_dictionary_observations_stay_dictionaries(tmp_path: Path) -> None:
    file = store(
        tmp_path / "a.hdf5", {"episode_0": episode(2, observations={"goal": np.ones((3, 2)), "x": np.ones((3, 1))})}
    )
    assert set(read_minari(file)[0]["observations"]) == {"goal", "x"}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"episode_0": episode(2, rewards=None)}, "episode_0 has no 'rewards': it has"),
        ({"episode_0": episode(2, observations=np.ones((2, 2)))}, "has 2 rewards but 2 observations, expected 3"),
        ({"episode_0": episode(2, actions=np.ones((3, 2)))}, "has 2 rewards but 3 actions, expected 2"),
        ({"episode_0": episode(2, rewards=np.array([1.0, np.nan]))}, "NaN or infinite rewards"),
        ({"episode_0": episode(0)}, "episode 0 has no steps"),
        ({"observations": {"x": np.ones(1)}}, "has no groups episode_0"),
    ],
)
def test_minari_that_does_not_fit_is_named(tmp_path: Path, content: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line):
        read_minari(store(tmp_path / "a.hdf5", content))


def test_minari_places_that_hold_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no Minari data set"):
        read_minari(tmp_path)
    with pytest.raises(NotFoundError, match="no file"):
        read_minari(tmp_path / "none")
    (tmp_path / "a.hdf5").write_bytes(b"x")
    pytest.importorskip("h5py")
    with pytest.raises(InputError, match="not a readable HDF5 file"):
        read_minari(tmp_path / "a.hdf5")


@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_minari_own_data_sets_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_format: str) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    buffers = [
        minari.data_collector.EpisodeBuffer(
            id=number,
            observations=np.ones((steps + 1, 2), np.float32),
            actions=np.zeros((steps, 1), np.float32),
            rewards=[1.0] * steps,
            terminations=[False] * (steps - 1) + [True],
            truncations=[False] * steps,
        )
        for number, steps in enumerate((3, 5))
    ]
    box = gymnasium.spaces.Box(-1.0, 1.0, (2,)), gymnasium.spaces.Box(-1.0, 1.0, (1,))
    minari.create_dataset_from_buffers(
        "toy/cart-v0",
        buffers,
        observation_space=box[0],
        action_space=box[1],
        data_format=data_format,
        description="toy",
        author="me",
        author_email="me@example.org",
        code_permalink="https://example.org",
    )
    folder = tmp_path / "minari" / "toy" / "cart-v0"
    for place in (folder, folder / "data", "toy/cart-v0"):
        episodes = read_minari(place)
        assert [len(one["rewards"]) for one in episodes] == [3, 5]
        assert episodes[0]["observations"].shape == (4, 2)
        assert episodes[0]["terminations"].tolist() == [False, False, True]
    with pytest.raises(NotFoundError, match="did you mean 'toy/cart-v0'"):
        read_minari("toy/cart-v1")


def test_minari_library_that_is_missing_is_no_riddle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(optional.importlib, "import_module", refuse)
    with pytest.raises(NotFoundError, match="no file or folder 'toy/cart-v0'"):
        read_minari("toy/cart-v0")
