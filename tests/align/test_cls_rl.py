"""CLS-RL against the numbers of its rewards and of its loss, its questions and splits, and on models that can see."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.align.asking import Answered
from thrifty.align.classifier import Asking, Classifier
from thrifty.align.classify import (
    Example,
    accepted,
    base_to_new,
    choice_prompt,
    choices,
    read_examples,
    readable,
    split,
)
from thrifty.align.cls_rl import CLSRL, ClassReward
from thrifty.align.credit import group_normalised
from thrifty.align.small_vlm import DIRECT, THINKING, lesson
from thrifty.core.errors import InputError
from thrifty.core.run import Run, read_metrics
from thrifty.data.readers import write_jsonl
from thrifty.lm.draw import Draw
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

LABEL = "Annual Crop Land"
SAID = {
    "<think>fields</think> <answer>annual crop land</answer>": (1, 1, 0),
    "Annual Crop Land": (1, 0, 1),
    "annual crop land": (1, 0, 0),
    "<answer>River</answer>": (0, 0, 0),
    "<think>x</think><answer>River</answer>": (0, 1, 0),
    "The answer is Annual Crop Land": (0, 0, 0),
}


def rewards(reward: ClassReward, texts: list[str], label: str) -> dict[str, list[float]]:
    count = len(texts)
    nothing = Sequences(*(torch.ones(count, 2, dtype=kind) for kind in (torch.long, torch.bool, torch.bool)))
    found = reward.columns(Answered(nothing, [""] * count, texts, [{"answer": label}] * count))
    return {name: column.tolist() for name, column in found.items()}


@pytest.mark.parametrize("label", [LABEL, f"<answer> {LABEL} </answer>"])
def test_the_worked_rewards(label: str) -> None:
    with_thinking = rewards(ClassReward(thinking=True), list(SAID), label)
    assert with_thinking["right"] == [right for right, _, _ in SAID.values()]
    assert with_thinking["formed"] == [formed for _, formed, _ in SAID.values()]
    assert with_thinking["reward"] == [right + formed for right, formed, _ in SAID.values()]
    without = rewards(ClassReward(thinking=False), list(SAID), label)
    assert without["reward"] == [equal for _, _, equal in SAID.values()]


def test_equality_is_strict_unless_it_is_told_otherwise() -> None:
    said = [LABEL, f"{LABEL}\n", f"{LABEL}.", LABEL.lower()]
    assert rewards(ClassReward(thinking=False), said, LABEL)["reward"] == [1, 0, 0, 0]
    assert rewards(ClassReward(thinking=False, strict=False), said, LABEL)["reward"] == [1, 1, 1, 1]


def test_the_worked_advantages() -> None:
    group = torch.zeros(4, dtype=torch.long)
    found = group_normalised(torch.tensor([2.0, 1, 0, 1]), group, CLSRL().credit_epsilon)
    torch.testing.assert_close(found, torch.tensor([1.224595, 0, -1.224595, 0]), atol=1e-6, rtol=0)
    pair = group_normalised(torch.tensor([1.0, 0]), torch.zeros(2, dtype=torch.long), CLSRL().credit_epsilon)
    torch.testing.assert_close(pair.abs(), torch.full((2,), 0.5 / (0.5**0.5 + 1e-4)))


def batch(seed: int = 0) -> tuple[torch.Tensor, Sequences]:
    draw = torch.Generator().manual_seed(seed)
    ids, real = torch.ones(4, 6, dtype=torch.long), torch.ones(4, 6, dtype=torch.bool)
    spoken = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]).bool()
    logps = -torch.rand(4, 6, generator=draw) * spoken
    reference = -torch.rand(4, 6, generator=draw) * spoken
    columns = {"reward": torch.tensor([2.0, 1, 0, 1]), "group": torch.zeros(4), "reference_logps": reference}
    return logps, Sequences(ids, real, spoken, columns)


def test_the_loss_is_the_paper_s_token_by_token() -> None:
    logps, data = batch()
    method = CLSRL()
    prepared = method.prepare(data)
    leaf = logps.clone().requires_grad_()
    loss = method.loss_of(leaf, None, prepared, prepared).value
    loss.backward()
    advantage = [1.224595, 0.0, -1.224595, 0.0]
    total, expected = 0.0, torch.zeros(4, 6)
    for row in range(4):
        spoken = data.response_mask[row].nonzero()[:, 0].tolist()
        for t in spoken:
            d = float(data["reference_logps"][row, t] - logps[row, t])
            total += -(advantage[row] - 0.04 * (np.exp(d) - d - 1)) / len(spoken) / 4
            # d/dlogp of -(exp(logp - sg logp) A - beta k3): the ratio's slope is 1, k3's is 1 - e^d.
            expected[row, t] = -(advantage[row] - 0.04 * (1 - np.exp(d))) / len(spoken) / 4
    assert float(loss.detach()) == pytest.approx(total, abs=1e-6)
    torch.testing.assert_close(leaf.grad, expected, atol=1e-5, rtol=0)


def test_two_parts_of_a_step_are_the_step() -> None:
    logps, data = batch()
    method = CLSRL()
    whole = method.prepare(data)
    parts = [whole.select([0, 2]), whole.select([1, 3])]
    found = [method.loss_of(logps[[0, 2]], None, parts[0], whole), method.loss_of(logps[[1, 3]], None, parts[1], whole)]
    torch.testing.assert_close(found[0].value + found[1].value, method.loss_of(logps, None, whole, whole).value)


def test_the_defaults_are_the_paper_s() -> None:
    method = CLSRL()
    assert (method.clip, method.kl_coefficient, method.aggregation, method.credit_epsilon) == (
        None, 0.04, "sequence", 1e-4,
    )  # fmt: skip
    assert method.needs() >= {"reference_logps"}
    assert (method.sampling.samples, method.sampling.temperature, method.shots) == (4, 1.0, 4)
    assert (method.training.learning_rate, method.training.epochs) == (1e-6, 50)


@pytest.mark.parametrize(
    ("count", "offered"), [(1, 1), (10, 10), (29, 29), (60, 60), (74, 74), (75, 30), (100, 40), (250, 100), (1000, 100)]
)
def test_how_many_classes_are_offered(count: int, offered: int) -> None:
    assert choices(count) == offered
    classes = [f"c{number}" for number in range(count)]
    asked = choice_prompt("What?", "c0", classes, rng=Random(0))
    listed = asked.partition("[ ")[2].removesuffix("].").split(", ")
    assert len(listed) == len(set(listed)) == offered
    assert set(listed) <= set(classes)


def test_the_words_of_a_question() -> None:
    assert choice_prompt("What is it?", "a", ["a"], rng=Random(0)) == "What is it?\nPlease choose one from list [ a]."
    text = Asking("What is it?", THINKING, words=3).text(Example("a", "one two three four"), ["a"], Random(0))
    assert text == (
        "one two three\n\nWhat is it?\nPlease choose one from list [ a]. Please output the thinking process in <think> "
        "</think> and final answer in <answer> </answer> tags."
    )
    method = CLSRL(thinking=False, test_prompt="released")
    assert method.asking(Example("a", "b")).suffix == DIRECT == "Please directly output the answer."
    assert method.asking(Example("a", "b"), test=True).suffix == "Please directly output the answer name."
    assert CLSRL().asking(Example("a", image=np.zeros((2, 2)))).question != CLSRL().asking(Example("a", "b")).question


@given(st.integers(2, 40), st.integers(0, 10**6), st.floats(0.05, 1.0), st.integers(1, 30), st.integers(1, 20))
def test_the_true_class_is_always_offered(count: int, seed: int, fraction: float, least: int, most: int) -> None:
    classes = [f"c{number}" for number in range(count)]
    rng = Random(seed)
    label = rng.choice(classes)
    asked = choice_prompt("?", label, classes, fraction=fraction, min_n=least, max_n=most, rng=rng)
    listed = asked.partition("[ ")[2].removesuffix("].").split(", ")
    assert label in listed
    wanted = count if int(fraction * count) < least else int(fraction * count)
    assert len(listed) == min(wanted, most)


def test_the_true_class_stands_anywhere() -> None:
    classes = [f"c{number}" for number in range(4)]
    places: Counter[int] = Counter()
    rng = Random(0)
    for _ in range(2000):
        listed = choice_prompt("?", "c1", classes, rng=rng).partition("[ ")[2].removesuffix("].").split(", ")
        places[listed.index("c1")] += 1
    assert all(400 < places[place] < 600 for place in range(4))


def test_what_an_evaluation_accepts() -> None:
    right = [
        "river",
        "A RIVER.",
        "<answer>the\nRiver</answer>",
        "<think>sea</think> <answer> River </answer>",
        "not a river",
    ]
    assert all(accepted(said, "River") for said in right)
    assert not accepted("<think>a river</think> <answer>Sea</answer>", "River")
    assert accepted("an annual crop", "annual_crop")
    assert accepted("annual_crop", "annual_crop")
    assert not accepted("annual-crop", "annual_crop")
    assert accepted("<answer></answer> river", "River"), "an empty tag says nothing"


def test_class_names_fit_into_a_list() -> None:
    assert readable("annual_crop__land ") == "annual crop land"
    for name in ("a, b", " ", ""):
        with pytest.raises(InputError, match="can't stand in a list of choices"):
            readable(name)
    with pytest.raises(InputError, match="the label 'x' is none of the 2 classes"):
        choice_prompt("?", "x", ["a", "b"], rng=Random(0))


def test_base_and_new_classes() -> None:
    assert base_to_new(list("abcde")) == (["a", "b", "c"], ["d", "e"])
    with pytest.raises(InputError, match="needs at least 4 classes, there are 3"):
        base_to_new(list("abc"))


def examples(each: int, classes: str = "abcde") -> list[Example]:
    return [Example(name, f"{name} {number}") for number in range(each) for name in classes]


@given(st.integers(1, 4), st.integers(1, 30), st.integers(0, 100), st.booleans())
def test_a_split_learns_a_few_of_each_and_tests_with_others(shots: int, tests: int, seed: int, new: bool) -> None:
    parts = split(examples(6), "base-to-new" if new else "few-shot", shots, tests, Random(seed))
    learnt = list("abc") if new else list("abcde")
    assert Counter(example.label for example in parts.train) == dict.fromkeys(learnt, shots)
    assert list(parts.classes) == learnt
    assert set(parts.tests) == ({"seen", "new"} if new else {"seen"})
    taught = {example.text for example in parts.train}
    for name, (asked, offered) in parts.tests.items():
        assert not taught & {example.text for example in asked}
        assert {example.label for example in asked} <= set(offered)
        assert len(asked) == min(tests, {"seen": len(learnt) * (6 - shots), "new": 12}[name])
    if new:
        assert set(parts.tests["new"][1]) == {"d", "e"}


def test_too_few_examples_are_named() -> None:
    with pytest.raises(InputError, match="class 'a' has 3 examples: 3 to learn from and at least one to test"):
        split(examples(3), "few-shot", 3, 5, Random(0))
    with pytest.raises(InputError, match="at least two classes, the data have 1"):
        split(examples(5, "a"), "few-shot", 1, 5, Random(0))


def test_lessons_have_the_form_that_is_rewarded() -> None:
    for seed in range(5):
        for kind in range(3):
            asked, answer = lesson(kind, "Coat", ["Coat", "Bag", "Dress", "Shirt"], Random(seed))
            column = {0: "right", 1: "right", 2: "formed"}[kind]
            assert rewards(ClassReward(thinking=True), [answer], "Coat")[column] == [1]
            assert ("[" in asked) == (kind > 0)


WORDS = [("the dog 1", "dog"), ("the cat 2", "cat"), ("a sum 3", "sum"), ("one plus 4", "plus")]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    data = [{"text": f"{text} {n}", "label": label} for n in range(5) for text, label in WORDS]
    write_jsonl(tmp_path / "rows.jsonl", data)
    return tmp_path / "rows.jsonl"


def run(*arguments: str) -> int:
    from thrifty.cli import main

    return main(["run", "cls-rl", *arguments])


@pytest.mark.parametrize("thinking", [True, False])
def test_the_command_classifies_texts(model_folder: Path, rows: Path, tmp_path: Path, thinking: bool) -> None:
    # The model knows 64 places, which hold the prompt without its last words.
    (tmp_path / "model").mkdir()
    for file in model_folder.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 256}))
    flag = "--thinking" if thinking else "--no-thinking"
    out = tmp_path / "out"
    code = run(
        "--model", str(tmp_path / "model"), "--data", str(rows), "--out", str(out), flag, "--shots", "2",
        "--epochs", "2", "--problems", "4", "--max-new-tokens", "3", "--device", "cpu", "--other-data", str(rows),
    )  # fmt: skip
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    before, after = summary["table"]
    assert {"accuracy, seen", "exact, seen", "accuracy, new", "exact, new", "accuracy, other data"} <= set(before)
    assert set(after) == set(before)
    assert set(summary["at_start"]) == {"exact match", "right", "formed"}
    assert summary["classes"] == ["cat", "dog"]
    assert summary["seconds_per_step"] > 0
    metrics = read_metrics(out / "train")
    assert len(metrics) == 2  # two passes over four prompts, four at a time
    assert {"reward", "equal_groups", "right", "kl"} <= set(metrics[0])
    assert ("formed" in metrics[0]) == thinking


def seeing(folder: Path) -> Path:
    from tests.lm.test_images import llava

    model, processor = llava()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture_folder(folder: Path, classes: tuple[str, ...] = ("one", "two", "cat", "dog"), each: int = 4) -> Path:
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            picture = draw.integers(0, 255, (9, 12, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    return folder


def test_the_command_classifies_pictures_and_the_result_is_loaded_as_usual(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    out = tmp_path / "out"
    code = run(
        "--model", str(seeing(tmp_path / "model")), "--data", str(picture_folder(tmp_path / "data")), "--out", str(out),
        "--no-thinking", "--shots", "2", "--epochs", "2", "--problems", "3", "--max-new-tokens", "3",
        "--lora-rank", "2", "--learning-rate", "1e-2", "--device", "cpu", "--image-size", "16",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["classes"] == ["cat", "dog"]
    trained = AutoModelForImageTextToText.from_pretrained(summary["model"])
    AutoProcessor.from_pretrained(summary["model"])
    first = AutoModelForImageTextToText.from_pretrained(tmp_path / "model")
    assert {name for name, _ in trained.named_parameters()} == {name for name, _ in first.named_parameters()}


def test_rewards_move_a_seeing_model_and_the_reference_stays(tmp_path: Path) -> None:
    from tests.lm.test_images import llava

    from thrifty.align.asking import Sampling
    from thrifty.align.base import Training
    from thrifty.align.training import train

    class Cats:
        def columns(self, answered: Answered) -> dict[str, torch.Tensor]:
            assert all(record["answer"] in {"a", "b"} for record in answered.records)
            return {"reward": torch.tensor([float("cat" in said) for said in answered.texts])}

    model, processor = llava()
    classifier = Classifier(model, processor)
    data = [Example(name, image=np.full((8, 8, 3), 40 * n, dtype=np.uint8)) for n, name in enumerate("abab")]
    records = classifier.records(data, ["a", "b"], Asking("cat", "dog"), Random(0))
    before = classifier.answers(records, 32, 3, Draw(), 0)
    with Run(tmp_path / "run", device="cpu", dtype="float32") as job:
        train(
            model, CLSRL(), records, job, Training(learning_rate=1e-2, epochs=12), tokenizer=processor.tokenizer,
            reward=Cats(), sampling=Sampling(samples=8, prompts_per_rollout=4, max_new_tokens=3),
            sampler=classifier.sampler,
        )  # fmt: skip
        metrics = read_metrics(job.directory)
    after = classifier.answers(records, 32, 3, Draw(), 0)
    cats = [sum("cat" in said for said in tested.texts) / len(tested.texts) for tested in (before, after)]
    assert cats[1] > cats[0] + 0.2
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics[-1]["kl"] > 1e-3


def test_labels_are_learnt_by_the_baseline(tmp_path: Path) -> None:
    from tests.lm.test_images import llava

    from thrifty.align.base import Training
    from thrifty.align.sft import SFT
    from thrifty.align.training import train

    model, processor = llava()
    classifier = Classifier(model, processor)
    data = [
        Example(name, image=np.full((8, 8, 3), level, dtype=np.uint8)) for name, level in (("cat", 0), ("dog", 250))
    ]
    records = classifier.records(data, ["cat", "dog"], Asking("what", "is"), Random(0))
    rows = classifier.rows(records)
    assert rows.texts(processor.tokenizer) == ["cat", "dog"]
    with Run(tmp_path / "run", device="cpu", dtype="float32") as job:
        train(model, SFT(), rows, job, Training(learning_rate=1e-2, batch_size=2, micro_batch_size=2, epochs=40))
    tested = classifier.test(records, 3)
    assert (tested.texts, tested.exact, tested.right) == (["cat", "dog"], 2, 2)
    assert float(token_logps(model, rows).sum().detach()) > -1


def test_rows_may_name_pictures(tmp_path: Path) -> None:
    picture_folder(tmp_path / "p", ("a_b",), 1)
    write_jsonl(tmp_path / "rows.jsonl", [{"image": "p/a_b/0.png", "label": "a_b"}])
    (example,) = read_examples(str(tmp_path / "rows.jsonl"))
    assert (example.label, example.text, example.image.shape) == ("a b", "", (9, 12, 3))
    (folder,) = read_examples(str(tmp_path / "p"), image_size=5)
    assert (folder.label, folder.image.shape) == ("a b", (5, 5, 3))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shots", "0"], "shots must be at least 1"),
        (["--choice-fraction", "0"], "choice_fraction must be within"),
        (["--data", "nowhere.jsonl"], "no file 'nowhere.jsonl'"),
        (["--data", "PICTURES"], "the data have pictures, which a LlamaForCausalLM can't see"),
        (["--data", "NOLABEL"], "label"),
        (["--data", "EMPTY"], "record 2 of .* has nothing in its column 'text'"),
    ],
)
def test_wrong_input_gets_one_line(
    arguments: list[str], said: str, model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    picture_folder(tmp_path / "PICTURES", each=6)
    write_jsonl(tmp_path / "NOLABEL", [{"text": "a"}])
    (tmp_path / "NOLABEL").rename(tmp_path / "nolabel.jsonl")
    write_jsonl(tmp_path / "empty.jsonl", [{"text": "a", "label": "b"}, {"text": " ", "label": "b"}])
    paths = {"PICTURES": "PICTURES", "NOLABEL": "nolabel.jsonl", "EMPTY": "empty.jsonl"}
    given_ = [str(tmp_path / paths[a]) if a in paths else a for a in arguments]
    code = run("--model", str(model_folder), "--out", str(tmp_path / "out"), "--device", "cpu", *given_)
    error = capsys.readouterr().err
    assert code == 2
    assert re.search(said, " ".join(error.split()))
