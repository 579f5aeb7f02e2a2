"""What a vision-language model makes of the names of classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.data.fetch import fetch

TEMPLATE = "a photo of a {}."
_NO_FOLDER = ("pixels", "features")


def name_embeddings(
    model: str, names: Sequence[str], device: torch.device | str = "cpu", template: str = TEMPLATE
) -> Float[Tensor, "C D"] | None:
    """The embedding of each name in the space of the model's picture features; ``None`` where it embeds no texts.

    Parameters
    ----------
    model
        The folder or hub id of a Hugging Face model such as CLIP.
    names
        Of the classes; an underscore counts as a space.
    device
        Where it computes.
    template
        Has ``{}`` where the name goes.

    Raises
    ------
    NotFoundError
        When there is no such model.
    """
    if model in _NO_FOLDER:
        return None
    folder = fetch(model)
    settings = folder / "config.json"
    if not settings.exists() or "text_config" not in json.loads(settings.read_text(encoding="utf-8")):
        return None
    from transformers import AutoModel, AutoTokenizer

    network: Any = AutoModel.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    if not hasattr(network, "get_text_features"):
        return None
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = [template.format(str(name).replace("_", " ")) for name in names]
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
    with torch.inference_mode():
        found: Any = network.get_text_features(**tokens)
    embeddings: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embeddings.clone()
