from __future__ import annotations

import csv
import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from thrifty.adapt import few_shot_job, few_shot_tasks
from thrifty.adapt.class_names import name_embeddings
from thrifty.adapt.design import Design
from thrifty.adapt.few_shot_tasks import FEW_SHOT_TASKS, FewShotProblem
from thrifty.adapt.inputs import Inputs
from thrifty.adapt.nmc import NMC
from thrifty.adapt.room import ROOM
from thrifty.adapt.settings import letters as setting
from thrifty.adapt.settings.letters import Training, few_shot_letters, letter_encoder, letter_parts
from thrifty.adapt.transductive_clustering import TransductiveClustering
from thrifty.adapt.unem import UNEM
from thrifty.adapt.unlabelled import read_queries
from thrifty.adapt.unrolled import UnrolledEM
from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.data.letters import LetterSet
from thrifty.nets.vision import load_net

pytestmark = pytest.mark.usefixtures("cache")


def clusters(classes: int, each: int, *, first: int = 0, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
    means = np.random.default_rng(9).normal(size=(40, 8))[first : first + classes]
    labels = np.repeat(np.arange(classes), each)
    features = means[labels] + 0.5 * np.random.default_rng(seed).normal(size=(len(labels), 8))
    return features.astype(np.float32), np.array([f"class {first + name:02d}" for name in labels])


@pytest.fixture
def features(tmp_path: Path) -> str:
    x, y = clusters(12, 12)
    np.savez(tmp_path / "features.npz", x=x, y=y)
    return str(tmp_path / "features.npz")


def run(inputs: Inputs, directory: Path, method: Any) -> dict[str, Any]:
    with Run(directory, seed=0, device="cpu") as job:
        return ROOM.run(method, inputs, job)


def test_the_command_draws_episodes_of_the_users_features(features: str, tmp_path: Path, capsys: Any) -> None:
    arguments = ["--data", features, "--episodes", "30", "--queries", "20", "--out", str(tmp_path / "run"), "--json"]
    assert main(["run", "transductive-clustering", *arguments, "--prototype", "mean"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in found["table"]] == ["transductive-clustering", "prototypes"]
    assert found["table"][0]["accuracy"] > 0.85
    assert (found["ways"], found["shots"], found["queries"], found["episodes"]) == (5, 1, 20, 30)


def test_unem_learns_on_other_classes_and_keeps_what_it_learnt(features: str, tmp_path: Path) -> None:
    inputs = Inputs(data=features, episodes=20, ways=6, queries=10)
    found = run(inputs, tmp_path / "run", UNEM(layers=3, steps=6))
    assert [row["method"] for row in found["table"]] == ["unem", "prototypes", "paddle"]
    assert found["present"] == 5
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3]
    net = load_net(tmp_path / "run" / "learnt")
    assert isinstance(net, UnrolledEM)
    assert net.values() == found["layers"]
    assert (tmp_path / "run" / "learning" / "metrics.jsonl").exists()


def test_the_dirichlet_form_takes_cosines_to_support_means(features: str, tmp_path: Path) -> None:
    inputs = Inputs(data=features, episodes=6, ways=4, queries=8, present=2)
    found = run(inputs, tmp_path / "run", UNEM(form="dirichlet", layers=2, steps=2, mm_steps=20))
    assert found["table"][0]["accuracy"] > 0.5


def test_a_task_of_the_users_own(features: str, tmp_path: Path) -> None:
    (x, y), (q, truth) = clusters(3, 2, first=20), clusters(3, 6, first=20, seed=1)
    np.savez(tmp_path / "support.npz", x=x, y=y)
    np.savez(tmp_path / "query.npz", x=q, y=truth)
    inputs = Inputs(support=str(tmp_path / "support.npz"), query=str(tmp_path / "query.npz"))
    found = run(inputs, tmp_path / "run", TransductiveClustering())
    with Path(found["predictions"]).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    right = np.mean([row["label"] == name for row, name in zip(rows, truth, strict=True)])
    assert right > 0.9
    assert found["table"][0]["accuracy"] == pytest.approx(right)
    assert not found["learnt"]
    inputs = Inputs(support=inputs.support, query=inputs.query, data=features)
    learnt = run(inputs, tmp_path / "learnt", UNEM(layers=2, steps=2))
    assert learnt["learnt"]
    assert len(learnt["layers"]) == 2


def test_pictures_of_the_users_own(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (tmp_path / "support" / name).mkdir(parents=True)
        (tmp_path / "query").mkdir(exist_ok=True)
        for number in range(3):
            picture = Image.fromarray((level + random.integers(-20, 20, (8, 8))).astype(np.uint8))
            picture.save(
                tmp_path / "support" / name / f"{number}.png"
                if number < 1
                else tmp_path / "query" / f"{name}{number}.png"
            )
    inputs = Inputs(model="pixels", support=str(tmp_path / "support"), query=str(tmp_path / "query"))
    method = TransductiveClustering(prototype="mean", normalization="none")
    found = run(inputs, tmp_path / "run", method)
    text = Path(found["predictions"]).read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[:2] for line in text[1:]] == [
        ["dark1.png", "dark"],
        ["dark2.png", "dark"],
        ["light1.png", "light"],
        ["light2.png", "light"],
    ]
    assert "accuracy" not in found["table"][0]


def test_a_vision_language_model_scores_by_the_names_of_the_classes(
    features: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def embeddings(model: str, names: list[str], device: Any) -> torch.Tensor:
        asked.extend([model, *names])
        return torch.eye(8)[: len(names)] if len(names) <= 8 else torch.randn(len(names), 8)

    monkeypatch.setattr(few_shot_job, "name_embeddings", embeddings)
    inputs = Inputs(data=features, episodes=3, ways=3, queries=6, present=2)
    run(inputs, tmp_path / "run", UNEM(form="dirichlet", layers=2, steps=2, mm_steps=20))
    assert asked[0] == "features"
    assert {name for name in asked if name.startswith("class")} >= {"class 00", "class 11"}
    count = len(asked)
    run(inputs, tmp_path / "gaussian", UNEM(layers=2, steps=2))
    assert len(asked) == count


def test_names_are_embedded_by_a_model_that_reads_them(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    assert name_embeddings("pixels", ["a"]) is None
    folder = tmp_path / "clip"
    text = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 56,
    }
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes = {"image_size": 16, "patch_size": 8}
    ends = {"bos_token_id": 53, "eos_token_id": 55, "pad_token_id": 55}
    config = CLIPConfig(text_config=text | ends, vision_config=vision | sizes, projection_dim=6)
    CLIPModel(config).save_pretrained(folder)
    letters = [*ascii_lowercase, *(f"{letter}</w>" for letter in f"{ascii_lowercase}."), "<|startoftext|>"]
    vocabulary = {token: number for number, token in enumerate([*letters, "<pad>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    found = name_embeddings(str(folder), ["crab", "red_crab", "crab"])
    assert found is not None
    assert found.shape == (3, 6)
    assert torch.allclose(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


def test_queries_of_texts(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("text,label\nhello there,a\ngood bye,b\n", encoding="utf-8")
    inputs, labels, names = read_queries(str(tmp_path / "q.csv"), "texts")
    assert inputs == ["hello there", "good bye"]
    assert labels is not None
    assert labels.tolist() == ["a", "b"]
    assert names == ["0", "1"]
    (tmp_path / "bare.csv").write_text("text\nhello there\n", encoding="utf-8")
    assert read_queries(str(tmp_path / "bare.csv"), "texts")[1] is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"support": "s.npz"}, "needs both --support and --query"),
        ({"support": "s.npz", "query": "nowhere.npz"}, "there are no queries"),
        ({"support": "s.npz", "query": "pictures.npz"}, "the support holds features, but pictures.npz holds pictures"),
        ({"support": "s.npz", "query": "bare.npz"}, "no array 'x'"),
        ({"support": "s.npz", "query": "strange.npz"}, "class 'z' of the queries has no support"),
        ({"data": "s.npz", "shots": 4}, "has 0 classes with more than 4 examples"),
        ({"data": "s.npz", "ways": 9}, "9-way episodes need as many classes"),
        ({"data": "s.npz", "queries": 900}, "give fewer --shots or --queries"),
    ],
)
def test_wrong_input_is_named(
    given: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = clusters(3, 4)
    np.savez("s.npz", x=x, y=y)
    np.savez("pictures.npz", x=np.zeros((2, 8, 8), dtype=np.uint8))
    np.savez("bare.npz", z=x)
    np.savez("strange.npz", x=x[:1], y=["z"])
    with pytest.raises(InputError, match=said):
        run(Inputs(**given), tmp_path / "run", TransductiveClustering())


def test_the_command_names_wrong_input_in_one_line(tmp_path: Path, capsys: Any) -> None:
    out = str(tmp_path / "run")
    assert main(["run", "unem", "--support", "x.npz", "--out", out]) == 2
    assert "needs both --support and --query" in capsys.readouterr().err
    assert main(["run", "transductive-clustering", "--laplacian", "-1", "--out", out]) == 2
    assert "0 or more" in capsys.readouterr().err


def small_letters() -> LetterSet:
    random = np.random.default_rng(0)
    scripts = ("Arabic", "Greek", "Cyrillic", "Latin")
    shape = random.integers(0, 2, (40, 28, 28)) * 200
    labels = np.repeat(np.arange(40), 17)
    images = np.clip(shape[labels] + random.integers(-40, 40, (680, 28, 28)), 0, 255).astype(np.uint8)
    script = np.array([0] * 16 + [1] * 4 + [2] * 4 + [3] * 16)[labels]
    return LetterSet(images, labels, script, np.zeros(680, dtype=np.int64), tuple(map(str, range(40))), scripts, ("f",))


def test_letters_of_base_validation_and_novel_scripts_are_apart() -> None:
    parts = letter_parts(small_letters())
    assert len(np.unique(parts.base.labels)) == 16
    assert sorted(set(parts.validation.labels.tolist())) == list(range(16, 24))
    assert sorted(set(parts.novel.labels.tolist())) == list(range(24, 40))
    assert (np.bincount(parts.novel.labels)[24:] == 16).all()


def test_the_encoder_is_trained_once_and_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, how = small_letters(), Training(epochs=1, width=4, drawings=200)
    first = letter_encoder(1, how, letter_parts(drawn))
    monkeypatch.setattr(setting, "_train", lambda *_: pytest.fail("trained again"))
    again = few_shot_letters(1, how, drawn)
    assert letter_encoder(1, how, letter_parts(drawn)).identity == first.identity
    assert again.base[0].shape == (272, 16)
    assert torch.equal(again.centre, again.base[0].mean(0))
    episodes = again.episodes(Design(ways=4, queries=12), 3, seed=0)
    assert episodes.centre is not None
    other = again.episodes(Design(ways=4, queries=12), 3, seed=0, validation=True)
    assert episodes.names is not None
    assert other.names is not None
    assert not set(episodes.names.ravel().tolist()) & set(other.names.ravel().tolist())


def test_every_kind_of_method_takes_part_in_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, how = small_letters(), Training(epochs=1, width=4, drawings=200)
    monkeypatch.setattr(few_shot_tasks, "few_shot_letters", lambda seed, _: few_shot_letters(seed, how, drawn))
    problem: FewShotProblem = few_shot_tasks.prepared(Design(ways=4, queries=12), 4)(0, True, tmp_path / "p")
    task = FEW_SHOT_TASKS["episodes-balanced"]
    for method in (TransductiveClustering(), UNEM(layers=2, steps=2), NMC()):
        found = task.evaluate(method, problem)
        assert set(found) == {"accuracy", "interval", "milliseconds"}
        assert 0.2 < found["accuracy"] <= 1
    plain = task.baselines["prototypes"](problem)["accuracy"]
    assert 0.2 < plain <= 1
    with pytest.raises(InputError, match="neither a few-shot method nor a head"):
        task.evaluate(object(), problem)


def test_the_embedded_default_is_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn, how = small_letters(), Training(epochs=1, width=4, drawings=200)
    monkeypatch.setattr(few_shot_job, "few_shot_letters", lambda seed: few_shot_letters(seed, how, drawn))
    found = run(Inputs(episodes=5, queries=15), tmp_path / "run", TransductiveClustering(laplacian=0.3))
    assert found["data"] == "letters"
    assert len(found["table"]) == 2
