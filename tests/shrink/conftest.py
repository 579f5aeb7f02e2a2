"""Language models of a few thousand parameters, text to calibrate on, and both as files."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from thrifty.lm.small import word_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

_SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def make_decoder(name: str) -> Any:
    """A random model of a family, with weights large enough that its layers matter."""
    import transformers
    from transformers import AutoConfig, AutoModelForCausalLM

    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(_SIZES)
    if name in ("llama", "qwen2", "qwen3", "mistral", "gemma2", "olmo2", "stablelm"):
        sizes["num_key_value_heads"] = 2
    if name in ("gemma2", "qwen3"):
        sizes["head_dim"] = 8
    if name == "gpt2":
        sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 2}
        sizes["eos_token_id"] = 1
    if name == "opt":
        sizes |= {"ffn_dim": 48, "word_embed_proj_dim": 32}
        del sizes["intermediate_size"]
    if name == "bloom":
        sizes = {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 2, "eos_token_id": 1}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.08)
    return model


@pytest.fixture(scope="session")
def decoders() -> dict[str, Any]:
    """Models by family, made when first asked for; not to be changed."""

    class Made(dict[str, Any]):
        def __missing__(self, name: str) -> Any:
            self[name] = make_decoder(name)
            return self[name]

    return Made()


@pytest.fixture
def llama(decoders: dict[str, Any]) -> Any:
    return decoders["llama"]


@pytest.fixture(scope="session")
def windows() -> torch.Tensor:
    return torch.randint(3, 97, (7, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return word_tokenizer(f"w{number}" for number in range(93))


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory, decoders: dict[str, Any], tokenizer: Any) -> Any:
    """A folder with a model, and texts beside it."""
    folder = tmp_path_factory.mktemp("stored")
    decoders["llama"].save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    draw = torch.Generator().manual_seed(1)
    lines = [" ".join(f"w{int(n)}" for n in torch.randint(93, (60,), generator=draw)) for _ in range(20)]
    (folder / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    return folder
