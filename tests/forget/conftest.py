"""A small network with its pictures, and language models of a few words, made here and downloaded from nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from thrifty.forget.baselines import Retrain
from thrifty.nets.vision import ResNet, ResNetConfig, pixels, save_net


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests before it."""
    torch.manual_seed(0)


def stripes(count: int = 120, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 8x8 pictures in which the class is a bright row."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % classes
    x = generator.integers(0, 90, (count, 8, 8))
    x[np.arange(count), y * 2] += 150
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network (``net``) that knows stripes, what it was trained on, and what it was not."""
    folder = tmp_path_factory.mktemp("net")
    torch.manual_seed(0)
    x, y = stripes()
    recipe = Retrain(lambda: ResNet(ResNetConfig(4, width=8, blocks=(1, 1))), epochs=12, batch_size=16)
    save_net(recipe.train((pixels(x), torch.from_numpy(y)), torch.device("cpu")), folder / "net")
    np.savez(folder / "train.npz", x=x, y=y)
    test_x, test_y = stripes(60, seed=1)
    np.savez(folder / "test.npz", x=test_x, y=test_y)
    return folder


def tokenizer_of(names: Sequence[str]) -> Any:
    """Whole words and single marks; the first two names are ``[PAD]`` and ``[EOS]``."""
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[PAD]"))
    core.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="[PAD]", eos_token="[EOS]")


def llama_of(vocabulary: int) -> LlamaForCausalLM:
    """A decoder for such a tokenizer; always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
    )
    return LlamaForCausalLM(config).eval()
