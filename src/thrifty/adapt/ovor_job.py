"""How the command runs OVOR: prompts on the user's vision transformer, or the linear layer alone on features."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from thrifty.adapt.data import Labelled
from thrifty.adapt.evaluation import run_stream
from thrifty.adapt.inputs import Inputs, features_of, read_inputs, with_defaults
from thrifty.adapt.prompted import tokens_of
from thrifty.adapt.stream import Stream, class_incremental
from thrifty.adapt.stream_job import make_stream
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.picture_encoders import HubEncoder, picture_encoder
from thrifty.nets.pictures import resized

if TYPE_CHECKING:
    from thrifty.adapt.ovor import OVOR

LEARNER_FILE = "learner.safetensors"
LETTERS, TESTED = 40, 4  # of 16 drawings of each
FROZEN = ("efficientnet-lite0", "minilm", "pixels", "features")
SMALL: dict[str, Any] = {"tau_in": None, "tau_out": None, "task_batch": 32, "learning_rate": 3e-3, "neighbours": 10}
"""What suits the embedded letters and their small transformer."""


def demonstrate(method: OVOR, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Learns the stream with and without virtual outliers, and keeps what was learnt in ``learner.safetensors``.

    With a Hugging Face vision transformer as the model it gets prompts. Any other model gives frozen features, and the
    linear layer is all that learns. Without model and data, Greek and Cyrillic letters are learnt with a small
    transformer trained on Latin ones.

    Raises
    ------
    InputError
        When the data or the model don't fit, or a class comes in two sessions.
    """
    if inputs.stream not in (None, "class", "recorded", "few-shot"):
        raise InputError(f"OVOR learns each class in one session: a {inputs.stream} stream brings classes again")
    stream, encoder, name, data = _problem(inputs, run)
    if inputs.data is None and inputs.model is None:
        method = with_defaults(method, SMALL)
    plain = replace(method, epochs=method.epochs + method.outlier_epochs, outlier_epochs=0)
    results = {}
    for label, settings in (("ovor", method), ("without outliers", plain)):
        stage = run.stage(label.replace(" ", "-"))
        learner = settings.learner(stage, encoder)
        results[label] = run_stream(learner, stream, label=label)
        if label == "ovor":
            learner.save(run.directory / LEARNER_FILE)
    for session, accuracy in enumerate(results["ovor"].accuracy_after):
        run.log(session, accuracy=float(accuracy))
    return {
        "table": [{"learner": label} | result.row() for label, result in results.items()],
        "sessions": {label: result.accuracy_after.tolist() for label, result in results.items()},
        "data": data,
        "encoder": name,
        "prompts": encoder is not None,
        "learner": str(run.directory / LEARNER_FILE),
    }


def _problem(inputs: Inputs, run: Run) -> tuple[Stream, nn.Module | None, str, str]:
    """The stream, the transformer that gets prompts, its name, and the data's."""
    if inputs.data is None and inputs.model is None:
        return _letters(inputs.tasks, run)
    data = read_inputs(inputs, run.seed)
    if data.kind == "pictures" and inputs.model is not None and inputs.model not in FROZEN:
        encoder = picture_encoder(inputs.model, 3, inputs.image_size)
        tokens_of(encoder)
        pictures = _pictures(data, encoder.size[0] if isinstance(encoder, HubEncoder) else inputs.image_size)
        return make_stream(data, pictures, inputs, run.seed), encoder, inputs.model, data.name
    features, name = features_of(data, inputs, run)
    return make_stream(data, features, inputs, run.seed), None, name, data.name


def _pictures(data: Labelled, size: int) -> Any:
    """All pictures as uint8 ``[N, size, size, 3]``, read a few at a time."""
    parts = [resized(data.inputs[start : start + 256], size) for start in range(0, len(data.inputs), 256)]
    return np.concatenate([(part * 255).round().byte().permute(0, 2, 3, 1).numpy() for part in parts])


def _letters(tasks: int, run: Run) -> tuple[Stream, nn.Module, str, str]:
    from thrifty.adapt.settings.letters import DRAWINGS, letter_parts
    from thrifty.adapt.settings.letters_vit import letter_vit

    parts = letter_parts()
    draw = np.random.default_rng(run.seed)
    chosen = draw.permutation(np.unique(parts.validation.labels))[:LETTERS]
    kept = np.isin(parts.validation.labels, chosen)
    x, y = parts.validation.images[kept], parts.validation.labels[kept]
    test = np.tile(np.arange(DRAWINGS) < TESTED, len(chosen))
    stream = class_incremental(x[~test], y[~test], x[test], y[test], tasks, seed=run.seed)
    return stream, letter_vit(0, base=parts.novel), "a small ViT trained on Latin letters", "letters"
