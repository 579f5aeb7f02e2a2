from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thrifty.adapt import inputs as room_inputs
from thrifty.adapt import stream_tasks
from thrifty.adapt.data import Labelled
from thrifty.adapt.g_acil import GACIL
from thrifty.adapt.nmc import NMC
from thrifty.adapt.room import ROOM, Inputs
from thrifty.adapt.teen import TEEN
from thrifty.cli import main
from thrifty.core.errors import InputError, RunError
from thrifty.core.run import Run
from thrifty.nets.encoders import TextEncoder

pytestmark = pytest.mark.usefixtures("cache")


def features(path: Path, classes: int = 4, domains: bool = True) -> str:
    random = np.random.default_rng(0)
    y = np.repeat([f"class {i}" for i in range(classes)], 20)
    x = np.eye(classes)[np.repeat(np.arange(classes), 20)] + 0.1 * random.normal(size=(len(y), classes))
    np.savez(path, x=x, y=y, **({"domain": np.arange(len(y)) % 3} if domains else {}))
    return str(path)


def run(inputs: Inputs, directory: Path, method: Any = None) -> dict[str, Any]:
    with Run(directory, seed=0, device="cpu") as job:
        return ROOM.run(method or NMC(), inputs, job)


def test_features_file_gives_table_sessions_and_a_head_that_loads(tmp_path: Path) -> None:
    data = features(tmp_path / "f.npz")
    found = run(Inputs(data=data, tasks=2), tmp_path / "run")
    assert [row["head"] for row in found["table"]] == ["nmc", "sequential head", "joint head"]
    assert found["table"][0]["final_accuracy"] > 0.9
    assert found["table"][0]["final_accuracy"] > found["table"][1]["final_accuracy"]
    assert len(found["sessions"]["nmc"]) == 2
    assert found["classes"] == ["class 0", "class 1", "class 2", "class 3"]
    head = NMC.load(found["head"])
    assert head.predict(np.eye(4)).tolist() == found["classes"]
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("stream", "sessions"),
    [("domain", 3), ("overlapping", 2), ("si-blurry", 2), ("mixed", 2), ("recorded", 3), ("few-shot", 3)],
)
def test_other_streams(stream: Any, sessions: int, tmp_path: Path) -> None:
    data = features(tmp_path / "f.npz")
    found = run(Inputs(data=data, tasks=2, stream=stream), tmp_path / "run", NMC(metric="cosine"))
    assert len(found["sessions"]["nmc"]) == sessions
    assert found["stream"] == stream
    assert NMC.load(found["head"]).metric == "cosine"


def test_pictures_through_pixels(tmp_path: Path) -> None:
    for name, bright in (("left", slice(0, 2)), ("right", slice(2, 4))):
        (tmp_path / "p" / name).mkdir(parents=True)
        for number in range(6):
            picture = np.full((4, 4), 10 * number, np.uint8)
            picture[:, bright] = 200
            Image.fromarray(picture).save(tmp_path / "p" / name / f"{number}.png")
    found = run(Inputs(data=str(tmp_path / "p"), model="pixels", tasks=2, test_share=0.3), tmp_path / "run")
    assert found["encoder"] == "pixels"
    assert found["table"][0]["final_accuracy"] == 1


def test_texts_take_minilm_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def length_encoder(name: str, **_: Any) -> Any:
        asked.append(name)
        return lambda texts: np.array([[len(text), 1.0] for text in texts])

    monkeypatch.setattr(room_inputs, "load_encoder", length_encoder)
    rows = "".join(f"{'word ' * (1 if i % 2 else 30)},{'short' if i % 2 else 'long'}\n" for i in range(20))
    (tmp_path / "t.csv").write_text("text,label\n" + rows)
    found = run(Inputs(data=str(tmp_path / "t.csv"), tasks=2), tmp_path / "run")
    assert asked == ["minilm"]
    assert found["table"][0]["final_accuracy"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "pixels"}, "the model 'pixels' does not fit: f.npz holds features"),
        ({"tasks": 9}, "4 classes can't be split into 9 tasks"),
        ({"stream": "domain"}, "f.npz says no domains"),
        ({"stream": "recorded"}, "f.npz says no domains"),
        ({"stream": "few-shot", "shots": 99}, "fewer than the 99 shots"),
        ({"stream": "few-shot", "base_classes": 4}, "4 classes don't make a base session of 4"),
    ],
)
def test_wrong_inputs_are_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    data = features(tmp_path / "f.npz", domains=False)
    with pytest.raises(InputError, match=said):
        run(Inputs(data=data, **change), tmp_path / "run")


def test_an_encoder_of_pictures_reads_no_texts_nor_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t.csv").write_text("text,label\n" + "".join(f"word {i},{'ab'[i % 2]}\n" for i in range(20)))
    with pytest.raises(InputError, match=r"the model 'pixels' does not fit: t\.csv holds texts"):
        run(Inputs(data=str(tmp_path / "t.csv"), model="pixels", tasks=2), tmp_path / "one")
    monkeypatch.setattr(room_inputs, "load_encoder", lambda *_, **__: object.__new__(TextEncoder))
    with pytest.raises(InputError, match="the model 'mine' does not fit: digits holds pictures"):
        run(Inputs(data="digits", model="mine"), tmp_path / "two")


def test_not_finite_features_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "f.npz", x=np.full((4, 2), np.nan), y=[0, 0, 1, 1])
    with pytest.raises(InputError, match=r"f\.npz: feature row 0 holds NaN"):
        run(Inputs(data=str(tmp_path / "f.npz"), tasks=2), tmp_path / "run")


def test_other_methods_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int is no head"):
        run(Inputs(), tmp_path / "run", 3)
    with pytest.raises(InputError, match="int is no head"):
        ROOM.tasks["digits"].evaluate(3, None)


def test_a_head_that_does_not_read_back_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = features(tmp_path / "f.npz")
    monkeypatch.setattr(NMC, "load", classmethod(lambda cls, path: NMC().fit(np.eye(4), ["x", "y", "z", "w"])))
    with pytest.raises(RunError, match="does not predict what was saved"):
        run(Inputs(data=data, tasks=2), tmp_path / "run")


def test_digits_task_compares_methods_and_baselines(tmp_path: Path) -> None:
    task = ROOM.tasks["digits"]
    problem = task.prepare(0, True, tmp_path)
    rows = {"nmc": task.evaluate(NMC(), problem), "cosine": task.evaluate(task.variants["cosine NCM"](), problem)}
    rows |= {name: baseline(problem) for name, baseline in task.baselines.items()}
    for row in rows.values():
        assert {name.lstrip("-") for name in task.metrics} | {f"accuracy@{t}" for t in range(1, 6)} == row.keys()
    final = {name: row["final_accuracy"] for name, row in rows.items()}
    assert final["sequential head"] < 0.4 < final["nmc"] < final["joint head"] + 0.1


def test_each_head_runs_on_the_stream_that_it_is_made_for(tmp_path: Path) -> None:
    data = features(tmp_path / "f.npz")
    few = run(Inputs(data=data, shots=2), tmp_path / "few", TEEN())
    assert few["stream"] == "few-shot"
    assert len(few["sessions"]["teen"]) == 3  # of 4 classes 2 are base classes, then one after the other
    assert {"harmonic_mean", "new_as_base"} <= few["table"][0].keys()
    general = run(Inputs(data=data, tasks=2), tmp_path / "general", GACIL(buffer_size=50))
    assert general["stream"] == "si-blurry"
    assert general["table"][0]["final_accuracy"] > 0.9
    assert GACIL.load(general["head"]).buffer_size == 50


@pytest.mark.parametrize("name", ["g-acil", "teen"])
def test_the_command_runs_it_on_the_users_features(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = features(tmp_path / "f.npz")
    out = str(tmp_path / "run")
    sizes = ["--buffer-size", "40"] if name == "g-acil" else ["--base-weight", "0.2", "--shots", "3"]
    assert main(["run", name, "--data", data, "--tasks", "2", "--out", out, "--device", "cpu", *sizes]) == 0
    assert name in capsys.readouterr().out
    assert (tmp_path / "run" / "head.safetensors").exists()
    assert main(["run", name, "--data", data, "--stream", "few-shot", "--shots", "99", "--out", f"{out}2"]) == 2
    assert "fewer than the 99 shots" in capsys.readouterr().err


def test_a_quick_comparison_draws_the_curve_over_sessions(tmp_path: Path) -> None:
    from thrifty.claims.compare import compare
    from thrifty.report.along import curves

    result = compare("adapt", "digits", tmp_path / "compare", quick=True)
    assert {"nmc", "g-acil", "teen"} <= result["arms"].keys()
    assert len(curves(result)["accuracy"]["g-acil"]) == 5


def test_tasks_that_pretend_to_be_few_shot_or_blurry_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    monkeypatch.setattr(stream_tasks, "load_encoder", lambda _: lambda x: np.asarray(x).reshape(len(x), -1)[:, :20])
    labels = np.repeat(np.arange(40), 16)
    pictures = random.integers(0, 255, (len(labels), 28, 28), dtype=np.uint8)
    monkeypatch.setattr(stream_tasks, "some_letters", lambda _: Labelled(pictures, labels, None, "pictures"))
    monkeypatch.setattr(stream_tasks, "read_labelled", lambda _: Labelled(pictures, labels, None, "pictures"))
    few = ROOM.tasks["letters-few-shot"].prepare(0, True, tmp_path)
    assert len(few.stream.sessions) == 9
    assert few.stream.base_classes is not None
    assert few.measure_every is None
    blurry = ROOM.tasks["fashion-mnist-blurry"].prepare(0, True, tmp_path)
    assert blurry.measure_every == 200
    assert {name.lstrip("-") for name in ROOM.tasks["letters-few-shot"].metrics} <= few.run(TEEN()).keys()
    assert {name.lstrip("-") for name in ROOM.tasks["sarcasm"].metrics} <= blurry.run(NMC()).keys()
