"""A small vision transformer of the transformers library, trained on Latin letters: a pretrained model for
prompts where none can be had."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.adapt.settings.letters import Drawn, letter_parts
from thrifty.core.progress import track
from thrifty.core.seeding import derive_seed
from thrifty.data.cache import cache_root
from thrifty.nets.vision import pixels

_RECIPE = 1  # counts up when training changes, so that older networks in the cache are not taken
_BATCH, _RATE, _SHIFT = 128, 2e-3, 2


@dataclass(frozen=True)
class ViTTraining:
    """How the transformer is trained.

    Parameters
    ----------
    epochs
        Passes over the drawings.
    width, layers, heads, patch
        Of the transformer, for pictures of 28 pixels.
    letters
        Latin letters, at most so many; 16 drawings of each.
    """

    epochs: int = 12
    width: int = 48
    layers: int = 5
    heads: int = 4
    patch: int = 7
    letters: int = 600


class LetterViT(nn.Module):
    """The first token of a ViT, for pictures in [-1, 1].

    Parameters
    ----------
    vit
        A ``ViTModel`` of transformers.
    """

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, x: Float[Tensor, "B 1 28 28"]) -> Float[Tensor, "B D"]:
        """The features."""
        first: Tensor = self.vit(pixel_values=x).last_hidden_state[:, 0]
        return first


def letter_vit(seed: int = 0, training: ViTTraining | None = None, base: Drawn | None = None) -> LetterViT:
    """The transformer of that seed: read from the cache where the same training was done before.

    Parameters
    ----------
    seed
        Of its weights and the order of training.
    training
        How it is trained; the defaults when not given.
    base
        The drawings; the Latin ones of :func:`thrifty.adapt.settings.letters.letter_parts` when not given.
    """
    from transformers import ViTModel

    how = ViTTraining() if training is None else training
    drawn = letter_parts().novel if base is None else base
    digest = hashlib.blake2b(json.dumps([_RECIPE, asdict(how), seed]).encode(), digest_size=16)
    digest.update(drawn.images.tobytes() + drawn.labels.tobytes())
    folder = cache_root() / "encoders" / f"letters-vit-{digest.hexdigest()}"
    if not (folder / "model.safetensors").exists():
        _train(drawn, how, seed, folder)
    return LetterViT(ViTModel.from_pretrained(folder, add_pooling_layer=False)).eval()


def _train(base: Drawn, how: ViTTraining, seed: int, folder: Path) -> None:
    """Cross-entropy on drawings shifted at random, with a linear layer that is thrown away."""
    from transformers import ViTConfig, ViTModel

    random = np.random.default_rng(derive_seed(seed, "letter vit"))
    chosen = random.permutation(np.unique(base.labels))[: how.letters]
    rows = np.flatnonzero(np.isin(base.labels, chosen))
    classes, codes = np.unique(base.labels[rows], return_inverse=True)
    x, y = pixels(base.images[rows]), torch.from_numpy(codes)
    config = ViTConfig(
        image_size=28,
        patch_size=how.patch,
        num_channels=1,
        hidden_size=how.width,
        num_hidden_layers=how.layers,
        num_attention_heads=how.heads,
        intermediate_size=2 * how.width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "letter vit weights"))
        encoder = LetterViT(ViTModel(config, add_pooling_layer=False))
        head = nn.Linear(how.width, len(classes))
    net = nn.Sequential(encoder, head).train()
    batch = min(_BATCH, len(y))
    steps = how.epochs * (len(y) // batch)
    optimizer = torch.optim.AdamW(net.parameters(), _RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(steps, 2))
    for step in track(range(steps), "letter vit"):
        if step % (len(y) // batch) == 0:
            order = torch.from_numpy(random.permutation(len(y)))
        taken, order = order[:batch], order[batch:]
        shift = tuple(int(by) for by in random.integers(-_SHIFT, _SHIFT + 1, 2))
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(torch.roll(x[taken], shift, (2, 3))), y[taken]).backward()
        optimizer.step()
        schedule.step()
    folder.parent.mkdir(parents=True, exist_ok=True)
    encoder.vit.save_pretrained(folder)
