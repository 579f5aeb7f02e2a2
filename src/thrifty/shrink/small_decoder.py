"""A small decoder that has learnt something: bytes of English prose, at hand on every machine."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional

from thrifty.core.atomic import room_on_disk
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread

_LENGTH, _BATCH, _RATE = 64, 16, 3e-3


class Bytes:
    """A tokenizer whose tokens are the bytes of a text."""

    eos_token_id: int | None = None

    def __call__(self, text: str, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(input_ids=list(text.encode()))


def prose() -> list[str]:
    """The descriptions of scikit-learn's data sets, in parts of about a thousand characters."""
    folder = resources.files("sklearn.datasets") / "descr"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".rst")), key=lambda file: file.name)
    found: list[str] = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        found += [text[at : at + 1000] for at in range(0, len(text), 1000)]
    return found


def small_decoder(directory: Path, seed: int, steps: int, width: int = 64) -> Any:
    """A Llama of two layers, trained on most of the prose; kept in ``directory``.

    Parameters
    ----------
    directory
        Where it is kept, and read from the next time.
    seed
        Of its weights and the order of training.
    steps
        Training steps.
    width
        Of its hidden states.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    if (directory / "config.json").exists():
        return LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    stream = torch.tensor(Bytes()("".join(train_prose())).input_ids)
    draw = generator(seed, "small decoder")
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=steps)
    with one_thread():
        for _ in range(steps):
            starts = torch.randint(len(stream) - _LENGTH, (_BATCH, 1), generator=draw)
            ids = stream[starts + torch.arange(_LENGTH)]
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    with room_on_disk(directory):
        model.save_pretrained(directory)
    return model.eval()


def train_prose() -> list[str]:
    """What it is trained and calibrated on."""
    return [text for at, text in enumerate(prose()) if at % 5 != 4]


def test_prose() -> list[str]:
    """What it has not seen."""
    return [text for at, text in enumerate(prose()) if at % 5 == 4]
