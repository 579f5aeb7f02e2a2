from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.forget.conftest import llama_of, stripes, tokenizer_of
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    BertConfig,
    BertModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.run import Run
from thrifty.forget.room import ROOM, Inputs, changed_weights, run
from thrifty.forget.ssd import SSD
from thrifty.nets.vision import load_net


def go(tmp_path, method, **inputs):
    with Run(tmp_path / "out", config={}) as job:
        return run(method, Inputs(**inputs), job)


def test_without_arguments_the_three_of_the_digits_is_forgotten(tmp_path):
    found = go(tmp_path, SSD(auto=True))
    before, after = found["table"]
    assert before["test_accuracy"] > 0.9
    assert after["test_forget_accuracy"] < 0.2
    assert after["test_retain_accuracy"] > 0.85
    assert {"mia", "seconds", "retain_accuracy"} <= set(after)
    assert 0 < found["changed"] < 0.5
    x = torch.randn(4, 1, 8, 8)
    first, second = (load_net(tmp_path / "out" / name)(x) for name in ("original", "model"))
    assert not torch.equal(first, second)


def test_a_network_of_thrifty_forgets_a_class(tmp_path, net):
    found = go(
        tmp_path,
        SSD(selection=3.0, batch_size=16),
        model=str(net / "net"),
        data=str(net / "train.npz"),
        forget_class="1",
        test=str(net / "test.npz"),
    )
    before, after = found["table"]
    assert before["forget_accuracy"] > 0.95
    assert after["forget_accuracy"] < before["forget_accuracy"]
    assert found["examples"] == {"forget_set": 30, "retain_set": 90, "full_set": 120}
    counts = json.loads((tmp_path / "out" / "changed.json").read_text())
    assert set(counts) == {name for name, _ in load_net(net / "net").named_parameters()}
    assert sum(count["changed"] for count in counts.values()) > 0
    assert counts == changed_weights(load_net(net / "net"), load_net(tmp_path / "out" / "model"))


def test_examples_to_forget_are_found_in_the_data(tmp_path, net, caplog):
    x, y = stripes()
    np.savez(tmp_path / "forget.npz", x=x[5:15], y=y[5:15])
    inputs = {"model": str(net / "net"), "data": str(net / "train.npz"), "forget": str(tmp_path / "forget.npz")}
    found = go(tmp_path, SSD(batch_size=8), **inputs)
    assert found["examples"] == {"forget_set": 10, "retain_set": 110, "full_set": 120}
    assert "mia" not in found["table"][0]
    assert "not in the training data" not in caplog.text


def test_examples_that_are_not_in_the_data_are_added_with_a_warning(tmp_path, net, caplog):
    x, y = stripes(20, seed=5)
    known, _ = stripes()
    x[0], y[0] = known[0], 0
    np.savez(tmp_path / "forget.npz", x=x, y=y)
    inputs = {"model": str(net / "net"), "data": str(net / "train.npz"), "forget": str(tmp_path / "forget.npz")}
    found = go(tmp_path, SSD(batch_size=8), **inputs)
    assert found["examples"] == {"forget_set": 20, "retain_set": 119, "full_set": 139}
    assert "19 of the 20 examples to forget are not in the training data (the first is example 1)" in caplog.text


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    names = ["cat", "dog", "owl"]
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    ViTForImageClassification(config).save_pretrained(folder / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder / "model")
    generator = np.random.default_rng(0)
    for name in ("owl", "cat", "dog"):
        (folder / "data" / name).mkdir(parents=True)
        for index in range(6):
            pixel = generator.integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixel).save(folder / "data" / name / f"{index}.png")
    return folder


def test_a_hugging_face_image_classifier_forgets_and_loads_again(tmp_path, vit):
    method = SSD(selection=1.2, batch_size=3)
    found = go(tmp_path, method, model=str(vit / "model"), data=str(vit / "data"), forget_class="dog")
    assert found["examples"] == {"forget_set": 6, "retain_set": 12, "full_set": 18}
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "out" / "model")
    assert again.config.id2label[1] == "dog"
    assert (tmp_path / "out" / "model" / "preprocessor_config.json").exists()
    original = AutoModelForImageClassification.from_pretrained(vit / "model")
    assert sum(count["changed"] for count in changed_weights(original, again).values()) > 0


def test_classes_keep_the_numbers_that_the_model_gives_them(tmp_path, vit):
    # Folders are read in alphabetical order, and one of the model's classes is not there.
    (tmp_path / "data").mkdir()
    for name in ("dog", "owl"):
        (tmp_path / "data" / name).symlink_to(vit / "data" / name)
    found = go(tmp_path, SSD(batch_size=3), model=str(vit / "model"), data=str(tmp_path / "data"), forget_class="2")
    assert found["examples"]["forget_set"] == 6
    with Run(tmp_path / "other", config={}) as job, pytest.raises(InputError, match="no example of class cat"):
        run(SSD(), Inputs(model=str(vit / "model"), data=str(tmp_path / "data"), forget_class="cat"), job)


WORDS = ["[PAD]", "[EOS]", "User", "Assistant", ":", *"abcdefghijklmnop"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    llama_of(len(WORDS)).save_pretrained(folder / "model")
    tokenizer_of(WORDS).save_pretrained(folder / "model")
    letters = "abcdefghijklmnop"
    rows = [{"prompt": " ".join(letters[i : i + 3]), "completion": " ".join(letters[i + 3 : i + 6])} for i in range(10)]
    for name, part in (("data", rows), ("forget", rows[2:5]), ("test", rows[:4])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return folder


@pytest.mark.parametrize("label_free", [False, True])
def test_a_language_model_forgets_records_and_loads_again(tmp_path, llama, label_free):
    found = go(
        tmp_path,
        SSD(selection=1.2, batch_size=3, label_free=label_free),
        model=str(llama / "model"),
        data=str(llama / "data.jsonl"),
        forget=str(llama / "forget.jsonl"),
        test=str(llama / "test.jsonl"),
    )
    assert found["examples"] == {"forget_set": 3, "retain_set": 7, "full_set": 10}
    assert {"forget_nll", "retain_nll", "test_nll", "mia"} <= set(found["table"][1])
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model")
    original = AutoModelForCausalLM.from_pretrained(llama / "model")
    assert sum(count["changed"] for count in changed_weights(original, again).values()) > 0
    assert (tmp_path / "out" / "model" / "tokenizer.json").exists()


def test_records_too_long_for_any_response_are_left_out(tmp_path, llama):
    rows = [json.loads(line) for line in (llama / "data.jsonl").read_text().splitlines()]
    rows[0]["prompt"] = " ".join("a" * 40)
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = {"data": str(tmp_path / "long.jsonl"), "forget": str(llama / "forget.jsonl"), "max_length": 20}
    found = go(tmp_path, SSD(batch_size=3), model=str(llama / "model"), **inputs)
    assert found["examples"] == {"forget_set": 3, "retain_set": 6, "full_set": 9}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"data": "train.npz"}, "give --model"),
        ({"model": "net"}, "give --data"),
        ({"model": "net", "data": "train.npz"}, "either --forget-class or --forget"),
        ({"model": "net", "data": "train.npz", "forget": "test.npz", "forget_class": "1"}, "either --forget-class"),
        ({"model": "net", "data": "train.npz", "forget_class": "7"}, "no class '7': its 4 classes are 0, 1, 2, 3"),
        ({"model": "net", "data": "train.npz", "forget": "train.npz"}, "everything is to be forgotten"),
        ({"model": "net", "data": "strange.npz", "forget_class": "1"}, "no class '9'"),
        ({"model": "net", "data": "floats.npz", "forget_class": "1"}, "must be uint8"),
        ({"model": "bert", "data": "train.npz", "forget_class": "1"}, "is a BertModel, which can't forget here"),
    ],
)
def test_wrong_inputs_are_refused_in_one_line(tmp_path, net, inputs, said):
    x, y = stripes()
    np.savez(net / "strange.npz", x=x, y=np.where(y == 3, 9, y))
    np.savez(net / "floats.npz", x=x / 255, y=y)
    if "bert" in inputs.values():
        config = BertConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
        )
        BertModel(config).save_pretrained(net / "bert")
    paths = {name: value if name == "forget_class" else str(net / value) for name, value in inputs.items()}
    with pytest.raises(InputError, match=said) as error:
        go(tmp_path, SSD(), **paths)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out" / "model").exists()


def test_a_wrong_class_of_the_digits_is_said_before_a_network_is_trained(tmp_path):
    with pytest.raises(InputError, match="no class '12'"):
        go(tmp_path, SSD(), forget_class="12")
    assert not (tmp_path / "out" / "original").exists()


@pytest.mark.parametrize("name", ["max_length", "evaluate"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
        Inputs(**{name: 0})


def test_a_language_model_has_no_classes_to_forget(tmp_path, llama):
    with pytest.raises(InputError, match="give --forget, the records"):
        go(tmp_path, SSD(), model=str(llama / "model"), data=str(llama / "data.jsonl"), forget_class="1")


def test_a_folder_without_a_model_is_named(tmp_path, net):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(NotFoundError, match="holds no model"):
        go(tmp_path, SSD(), model=str(tmp_path / "nothing"), data=str(net / "train.npz"), forget_class="1")


def test_an_image_classifier_without_its_processor_is_named(tmp_path, vit):
    ViTForImageClassification.from_pretrained(vit / "model").save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="is no whole image classifier"):
        go(tmp_path, SSD(), model=str(tmp_path / "bare"), data=str(vit / "data"), forget_class="dog")


def test_an_older_result_is_replaced_whole(tmp_path, net):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "out" / "config.json").write_text(json.dumps({"seed": 0}))
    (tmp_path / "out" / "model" / "stale.txt").write_text("half written")
    go(tmp_path, SSD(batch_size=8), model=str(net / "net"), data=str(net / "train.npz"), forget_class="0")
    assert {file.name for file in (tmp_path / "out" / "model").iterdir()} == {"config.json", "model.safetensors"}


def test_changed_weights_are_counted():
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        second.weight[0, :2] *= 0.5
    assert changed_weights(first, second) == {
        "weight": {"changed": 2, "weights": 6},
        "bias": {"changed": 0, "weights": 2},
    }


def test_the_room_has_its_tasks():
    assert {"digits-class", "fashion-mnist-class", "fashion-mnist-subclass", "fashion-mnist-random"} <= set(ROOM.tasks)
