"""How the command trains BECLR's encoder: on the user's pictures without their labels, or on embedded letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from thrifty.adapt.accumulator import Labels
from thrifty.adapt.beclr_training import Pretraining
from thrifty.adapt.data import Labelled, read_labelled, split_and_limit
from thrifty.adapt.few_shot_job import Pool
from thrifty.adapt.inputs import Inputs, with_defaults
from thrifty.core.run import Run
from thrifty.nets.picture_encoders import picture_encoder, save_encoder
from thrifty.nets.pictures import resized
from thrifty.nets.representations import encoded

if TYPE_CHECKING:
    from thrifty.adapt.beclr import BECLR

ENCODER, FOLDER_SIZE, LETTERS, LETTER_SIZE = "encoder", 32, 200, 14
SMALL: dict[str, Any] = {
    "epochs": 12,
    "training_batch": 128,
    "learning_rate": 0.5,
    "teacher_momentum": 0.9,
    "mask_ratio": 0.0,
    "mask_spread": 0.0,
    "width": 128,
    "neighbours": 3,
    "prototypes": 40,
    "memory_start": 0.25,
    "views": "drawing",
}
"""What suits a few thousand small drawings, where the paper's settings are for many times as many steps."""


def pretrained_pool(method: BECLR, inputs: Inputs, run: Run) -> Pool | None:
    """Features for episodes by an encoder that is trained here, and kept in ``encoder`` in the run's directory.

    Returns
    -------
    Pool or None
        Nothing where the user names a model, or the data are no pictures: then there is nothing to train.
    """
    if inputs.model is not None:
        return None
    if inputs.data is None:
        base, novel, labels = _letters(run.seed)
        encoder = _trained(with_defaults(method, SMALL), base, run, width=8)
        return _pool(encoder, novel, labels, encoded(encoder, base).mean(0), "letters")
    columns = {"text_column": inputs.text_column, "label_column": inputs.label_column}
    data = read_labelled(inputs.data, **columns, domain_column=inputs.domain_column)
    if data.kind != "pictures":
        return None
    if inputs.limit is not None:
        data = split_and_limit(data, test_share=inputs.test_share, limit=inputs.limit, seed=run.seed)
    x = as_squares(data)
    encoder = _trained(method, x, run)
    return _pool(encoder, x, data.labels, None, data.name)


def as_squares(data: Labelled) -> UInt8[Tensor, "N C S S"]:
    """The pictures as one tensor: arrays at their own size where they are squares, others at 32 pixels a side."""
    shape = data.inputs.shape[1:3] if isinstance(data.inputs, np.ndarray) else (0, 1)
    size = int(shape[0]) if shape[0] == shape[1] else FOLDER_SIZE
    parts = [
        (resized(data.inputs[start : start + 256], size) * 255).round().byte()
        for start in range(0, len(data.inputs), 256)
    ]
    x = torch.cat(parts)
    return x[:, :1].contiguous() if bool((x == x[:, :1]).all()) else x


def _trained(method: Pretraining, x: UInt8[Tensor, "N C S S"], run: Run, width: int = 16) -> nn.Module:
    encoder = picture_encoder("resnet", x.shape[1], x.shape[2], width)
    learner = method.train(x, run.stage("pretraining"), encoder)
    save_encoder(learner.encoder, run.directory / ENCODER)
    return learner.encoder


def _pool(encoder: nn.Module, x: Tensor, labels: Labels, centre: Tensor | None, name: str) -> Pool:
    features = encoded(encoder, x)
    place = "a residual network trained here without labels"
    return Pool((features, labels), None, features.mean(0) if centre is None else centre, name, place)


def _letters(seed: int) -> tuple[Tensor, Tensor, Labels]:
    """Drawings of Greek and Cyrillic letters to train on, of Latin ones to test on."""
    from thrifty.adapt.settings.letters import letter_parts

    parts = letter_parts()
    chosen = np.random.default_rng(seed).permutation(np.unique(parts.validation.labels))[:LETTERS]
    base = parts.validation.images[np.isin(parts.validation.labels, chosen)]
    drawn = (base, parts.novel.images)
    x, novel = ((resized(part, LETTER_SIZE)[:, :1] * 255).round().byte() for part in drawn)
    return x, novel, parts.novel.labels
