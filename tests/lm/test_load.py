"""load_lm: a saved model comes back; everything else gets one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lm.conftest import make_model, make_tokenizer

from thrifty.core.errors import InputError, NotFoundError
from thrifty.lm.load import load_lm


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_model("llama").save_pretrained(tmp_path / "lm")
    make_tokenizer().save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def test_a_saved_model_comes_back(saved: Path) -> None:
    model, tokenizer = load_lm(saved)
    expected = make_model("llama")
    ids = torch.tensor([tokenizer("what is one")["input_ids"]])
    assert not model.training
    assert torch.equal(model(ids).logits, expected(ids).logits)
    assert load_lm(str(saved), dtype=torch.bfloat16)[0].dtype == torch.bfloat16


def test_a_name_goes_through_fetch(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import thrifty.data.fetch  # noqa: F401

    asked: list[str] = []

    def fetch(name: str) -> Path:
        asked.append(name)
        return saved

    monkeypatch.setattr(sys.modules["thrifty.data.fetch"], "fetch", fetch)  # the package's `fetch` is the function
    load_lm("smollm2-135m-instruct")
    assert asked == ["smollm2-135m-instruct"]


class TestWrongInput:
    def fails(self, folder: Path, message: str, **config: Any) -> None:
        folder.mkdir(exist_ok=True)
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=message) as caught:
            load_lm(folder)
        assert "\n" not in str(caught.value)

    def test_no_folder(self, tmp_path: Path) -> None:
        for name in (tmp_path / "absent", str(tmp_path / "absent")):
            with pytest.raises(NotFoundError, match="no model folder"):
                load_lm(name)

    def test_no_config(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "m", "no config.json")

    def test_a_broken_config(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "config.json").write_text("{")
        self.fails(tmp_path / "m", "not valid JSON")

    def test_something_else_than_transformers(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "m", "no model_type", size=3)

    def test_an_encoder(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "m", "is a BertModel; a causal", model_type="bert", architectures=["BertModel"])

    def test_an_encoder_decoder(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "m", "is a t5; a causal", model_type="t5")

    def test_no_weights(self, tmp_path: Path) -> None:
        self.fails(tmp_path / "m", "no .*safetensors", model_type="llama", architectures=["LlamaForCausalLM"])

    def test_broken_weights(self, saved: Path) -> None:
        (saved / "model.safetensors").write_bytes(b"nothing")
        self.fails(saved, "can't be loaded as a causal language model")
