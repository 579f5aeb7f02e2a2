"""A classifier of the room on disk: its encoder, its heads, and what it was trained with; nothing in it is code."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from thrifty.core.atomic import replacing, write_json
from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.method import load
from thrifty.nets.picture_encoders import picture_encoder, save_encoder
from thrifty.represent.classifier_method import ClassifierMethod, PictureClassifier

CONFIG, HEADS, ENCODER = "classifier.json", "heads.safetensors", "encoder"


def save_classifier(
    classifier: PictureClassifier, method: ClassifierMethod, features: int, classes: Sequence[str], directory: Path
) -> None:
    """Writes a classifier that a registered method trained.

    Parameters
    ----------
    classifier
        What it trained.
    method
        Its settings.
    features
        How many the encoder gives.
    classes
        Names of the classes, in order.
    directory
        Made if missing; the encoder goes to ``encoder`` in it.
    """
    save_encoder(classifier.encoder, directory / ENCODER)
    heads = {
        name: weight.detach().cpu().contiguous()
        for name, weight in classifier.state_dict().items()
        if not name.startswith("encoder.")
    }
    with replacing(directory / HEADS) as temporary:
        save_file(heads, temporary)
    settings = dataclasses.asdict(method)
    paper: str = method.paper_id  # type: ignore[attr-defined]
    config = {"paper": paper, "settings": settings, "features": features, "classes": list(classes)}
    write_json(directory / CONFIG, config)  # last: a directory that has it is whole


def load_classifier(directory: str | Path) -> tuple[PictureClassifier, tuple[str, ...]]:
    """Reads what :func:`save_classifier` wrote.

    Returns
    -------
    tuple
        The classifier in evaluation mode, and the names of its classes.

    Raises
    ------
    NotFoundError
        When the directory holds no classifier.
    InputError
        When its files do not fit together.
    """
    folder = Path(directory)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise NotFoundError(f"{folder} holds no saved classifier: expected {CONFIG} and {HEADS}") from error
    try:
        method = load(config["paper"])(**config["settings"])
        classes = tuple(config["classes"])
        # A name without a dot or slash would be looked up as that of an asset.
        encoder = picture_encoder(str((folder / ENCODER).absolute()), 1, 1)
        classifier: PictureClassifier = method.classifier(encoder, config["features"], len(classes))
        wrong = classifier.load_state_dict(load_file(folder / HEADS), strict=False)
    except (OSError, SafetensorError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} is no whole classifier: {str(error).splitlines()[0]}") from error
    missing = [name for name in wrong.missing_keys if not name.startswith("encoder.")]
    if missing or wrong.unexpected_keys:
        raise InputError(f"{folder} is no whole classifier: {HEADS} does not fit {CONFIG}")
    return classifier.eval(), classes
