from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.represent.conftest import bars

from thrifty import cli
from thrifty.core.errors import InputError, NotFoundError
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.represent import tasks
from thrifty.represent.classifier_method import logits_of
from thrifty.represent.directpred import DirectPred
from thrifty.represent.evaluation import few, linear_probe, measured, nearest_neighbours
from thrifty.represent.pictures import Pictures, read_pictures, split_and_limit
from thrifty.represent.problems import at_problem, picture_problem
from thrifty.represent.room import ROOM
from thrifty.represent.saving import load_classifier
from thrifty.represent.sla import SLA

TINY = ["--epochs", "2", "--batch-size", "16", "--width", "4"]
VIEWS = [*TINY, "--hidden", "16", "--projection", "8", "--views", "drawing"]


def npz(path: Path, labels: bool = True) -> str:
    x, y = bars()
    np.savez(path, x=x, **({"y": np.array(list("abcd"))[y]} if labels else {}))
    return str(path)


def command(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_directpred_on_the_user_s_pictures(tmp_path: Path, capsys) -> None:
    data, out = npz(tmp_path / "p.npz"), tmp_path / "run"
    assert command("run", "directpred", "--data", data, *VIEWS, "--out", str(out), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["encoder"] for row in found["table"]] == ["untrained", "directpred"]
    assert found["table"][1]["probe_accuracy"] > 0.5
    assert found["pictures"] == {"train": 64, "labelled": 64, "test": 16}
    assert 0 < found["projections"]["spread"] < 1.5
    encoder = picture_encoder(found["encoder"], 1, 8)
    assert encoder(torch.zeros(2, 1, 8, 8)).shape == (2, 16)


def test_pictures_without_labels_are_enough_for_directpred_and_not_for_sla(tmp_path: Path, capsys) -> None:
    data = npz(tmp_path / "p.npz", labels=False)
    assert command("run", "directpred", "--data", data, *VIEWS, "--out", str(tmp_path / "a"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert "probe_accuracy" not in found["table"][1]
    assert found["pictures"]["labelled"] == 0
    assert command("run", "sla", "--data", data, *TINY, "--out", str(tmp_path / "b")) == 2
    assert "sla learns from labels, and p.npz has none" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_sla_on_the_user_s_pictures_and_back_from_the_disk(tmp_path: Path, capsys) -> None:
    data, out = npz(tmp_path / "p.npz"), tmp_path / "run"
    arguments = [*TINY, "--epochs", "6", "--transformations", "rotation2", "--shift", "0", "--learning-rate", "0.05"]
    assert command("run", "sla", "--data", data, *arguments, "--out", str(out), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    ways = [(row["classifier"], row["inference"]) for row in found["table"]]
    assert ways == [("plain classifier", "single"), *(("sla", way) for way in ("aggregate", "distilled", "single"))]
    classifier, classes = load_classifier(found["classifier"])
    assert classes == ("a", "b", "c", "d")
    x, y = bars()
    data = split_and_limit(read_pictures(data), test_share=0.2, limit=None, seed=0)
    held = data.take(data.test.nonzero()[:, 0])
    right = (logits_of(classifier, held.x).argmax(1) == held.y).float().mean()
    assert float(right) == pytest.approx(found["table"][1]["accuracy"])
    assert len(x) == len(y) == 80


@pytest.mark.parametrize("name", ["heads.safetensors", "classifier.json"])
def test_a_damaged_classifier_is_said(name, tmp_path: Path, capsys) -> None:
    data = npz(tmp_path / "p.npz")
    out = tmp_path / "run"
    assert command("run", "sla", "--data", data, *TINY, "--epochs", "1", "--out", str(out)) == 0
    capsys.readouterr()
    (out / "classifier" / name).write_bytes(b"{}")
    with pytest.raises(InputError, match="is no whole classifier"):
        load_classifier(out / "classifier")
    with pytest.raises(NotFoundError, match="holds no saved classifier"):
        load_classifier(tmp_path)


def test_a_folder_with_and_without_classes(tmp_path: Path) -> None:
    x, y = bars(12)
    for number, (picture, label) in enumerate(zip(x, y, strict=True)):
        for folder in (tmp_path / "classes" / f"c{label}", tmp_path / "flat"):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{number}.png")
    found = read_pictures(str(tmp_path / "classes"))
    assert found.classes == ("c0", "c1", "c2", "c3")
    assert found.x.shape == (12, 1, 32, 32)
    flat = read_pictures(str(tmp_path / "flat"), 8)
    assert flat.y is None
    assert flat.x.shape == (12, 1, 8, 8)
    assert sorted(p.numpy().tobytes() for p in flat.x) == sorted(p.tobytes() for p in x)


def test_pictures_of_files_are_checked(tmp_path: Path) -> None:
    def arrays(**given) -> str:
        np.savez(tmp_path / "f.npz", **given)
        return str(tmp_path / "f.npz")

    x = np.zeros((4, 8, 8), np.uint8)
    for given, said in (
        ({"y": np.arange(4)}, "f.npz has no array 'x': it has y"),
        ({"x": x, "y": np.arange(3)}, "3 labels for 4 pictures"),
        ({"x": x, "test_x": x}, "test pictures without their classes"),
        ({"x": np.full((4, 8, 8), np.nan)}, "floats must be between 0 and 1, without NaN"),
        ({"x": x.astype(int) + 300}, "integers from 0 to 255"),
        ({"x": np.zeros((4, 8), np.uint8)}, "pictures must be uint8"),
    ):
        with pytest.raises(InputError, match=said):
            read_pictures(arrays(**given))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty has no pictures"):
        read_pictures(str(tmp_path / "empty"))
    with pytest.raises(NotFoundError, match="did you mean 'digits'"):
        read_pictures("digit")
    assert read_pictures(arrays(x=x / 255.0, y=list("abab"))).classes == ("a", "b")


def test_a_split_is_kept_or_drawn_and_a_limit_is_even() -> None:
    data = Pictures(torch.zeros(40, 1, 2, 2, dtype=torch.uint8), torch.arange(40) % 4, None, tuple("abcd"))
    drawn = split_and_limit(data, test_share=0.2, limit=20, seed=0)
    assert torch.bincount(drawn.y[~drawn.test]).tolist() == [4, 4, 4, 4]
    assert torch.bincount(drawn.y[drawn.test]).tolist() == [1, 1, 1, 1]
    with pytest.raises(InputError, match="'d' has 1 picture"):
        split_and_limit(data.take(torch.tensor([0, 1, 2, 3, 4, 5, 6])), test_share=0.2, limit=None, seed=0)


def test_a_picture_that_is_no_square_is_said(tmp_path: Path, capsys) -> None:
    np.savez(tmp_path / "p.npz", x=np.zeros((8, 4, 6), np.uint8))
    assert command("run", "directpred", "--data", str(tmp_path / "p.npz"), "--out", str(tmp_path / "r")) == 2
    assert "the pictures are 4x6, no squares: give --image-size" in capsys.readouterr().err


def test_probe_and_neighbours_on_features_that_tell_all() -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    features = torch.eye(3)[y] + 0.05 * torch.randn(60, 3)
    assert linear_probe(features[:30], y[:30], features[30:], y[30:]) == 1
    assert nearest_neighbours(features[:30], y[:30], features[30:], y[30:]) == 1
    # Of two neighbours of different classes the more similar one counts.
    given = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([1, 0])
    assert nearest_neighbours(*given, torch.tensor([[1.0, 0.1]]), torch.tensor([1]), 2) == 1
    assert torch.bincount(y[few(y, 4, 0)]).tolist() == [4, 4, 4]
    with pytest.raises(InputError, match="labels per class must be at least 1"):
        few(y, 0, 0)


def test_every_arm_of_a_task_gives_its_metrics(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    settings = {
        "two-views": {"epochs": 0.2, "views": "none", "hidden": 8, "projection": 4},
        "labelled-pictures": {"epochs": 1.0, "flip": 0.0},
    }
    problem = picture_problem(
        "digits", 0, tmp_path, size=None, train=120, valid=20, test=40, labels_per_class=5, width=2, settings=settings
    )
    assert not {p.numpy().tobytes() for p in problem.train.x} & {p.numpy().tobytes() for p in problem.test.x}
    task = ROOM.tasks["digits"]
    names = {name.lstrip("-") for name in task.metrics}
    for name, arm in task.baselines.items():
        assert set(arm(problem)) == names, name
    for name, make in task.variants.items():
        assert set(task.evaluate(make(), problem)) == names, name
    assert measured(problem.encoder(), problem.train, None).keys() == {"effective_rank"}


def test_the_digits_task_suits_its_methods_to_digits(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    problem = ROOM.tasks["digits"].prepare(0, True, tmp_path)
    assert len(problem.labelled) == 200
    assert at_problem(DirectPred(), problem).views == "drawing"
    assert at_problem(SLA(), problem).flip == 0
    assert at_problem(SLA(), problem).distill


def test_tasks_give_what_the_methods_need() -> None:
    from thrifty.core import index

    for paper in ("directpred", "sla"):
        assert all(set(index.paper(paper).needs) <= task.gives for task in tasks.TASKS.values())
