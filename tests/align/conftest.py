"""A folder with a language model of a few thousand weights and its tokenizer, made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = "<pad> <end> <unk> <user> <assistant> what is 1 2 3 4 5 6 7 8 9 plus the sum dog cat".split()  # noqa: SIM905
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
    )  # fmt: skip
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(model_folder: Path) -> tuple[Any, Any]:
    from thrifty.lm.load import load_lm

    return load_lm(model_folder)


LOG = [
    {"prompt": f"what is {a} plus {b}", "completion": f"the sum is {c}", "reward": 1.0 if a + b == c else -1.0}
    for a, b, c in [(1, 2, 3), (1, 2, 4), (2, 2, 4), (2, 2, 5), (3, 4, 7), (3, 4, 8), (5, 1, 6), (5, 1, 1)]
]


@pytest.fixture
def log_file(tmp_path: Path) -> Path:
    from thrifty.data.readers import write_jsonl

    write_jsonl(tmp_path / "log.jsonl", LOG)
    return tmp_path / "log.jsonl"
