"""Reward models of a few thousand parameters and a tokenizer, made here and downloaded from nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from byte_tokenizer import make_tokenizer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer("Ċ Ċ", ". ĊĊ")


@pytest.fixture
def build() -> Callable[..., Any]:
    def make(name: str, **more: Any) -> Any:
        import transformers

        sizes: dict[str, Any] = {
            "vocab_size": 300,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 96,
            "pad_token_id": 0,
            "initializer_range": 0.5,
        }
        torch.manual_seed(0)
        return getattr(transformers, name)(transformers.LlamaConfig(**{**sizes, **more}))

    return make
