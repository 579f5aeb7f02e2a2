"""The user's trained classifier of pictures, and how it reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.run import Run
from thrifty.data.fetch import fetch
from thrifty.data.image_files import read_images
from thrifty.nets import chain  # noqa: F401 (a saved ChainNet is read only where its class is known)
from thrifty.nets.vision import _NETS, CONFIG, is_net, load_net, pixels
from thrifty.shrink.pictures import Pictures
from thrifty.shrink.storing import SHAPES, load_shrunk

_PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, eq=False)
class Classifier:
    """A user's classifier, and how it reads pictures.

    Parameters
    ----------
    model
        On the run's device, in evaluation mode.
    classes
        The names of its classes.
    transform
        Makes its inputs of stored pictures.
    size
        Height and width that files are resized to; ``None`` where they must be of one size.
    processor
        Of a Hugging Face model, to be saved beside it.
    """

    model: Any
    classes: tuple[str, ...]
    transform: Callable[[NDArray[Any]], Tensor] = pixels
    size: tuple[int, int] | None = None
    processor: Any = None

    def read(self, path: str) -> Pictures:
        """An image folder or NPZ file, with the numbers that the model gives the classes.

        Raises
        ------
        InputError
            For a class that the model does not have.
        """
        found = read_images(fetch(path), size=self.size)
        numbers = torch.tensor([self._number(name) for name in found.classes])
        return Pictures(found.x, numbers[torch.from_numpy(found.y)], self.transform)

    def _number(self, name: str) -> int:
        lowered = [known.lower() for known in self.classes]
        if name.lower() in lowered:
            return lowered.index(name.lower())
        if name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        some = ", ".join(self.classes[:12]) + (" ..." if len(self.classes) > 12 else "")
        raise InputError(f"the model has no class {name!r}: its {len(self.classes)} are {some}, or by number from 0")


def load_classifier(name: str, run: Run) -> Classifier:
    """The user's classifier, on the run's device.

    Parameters
    ----------
    name
        A directory or hub id: a network that thrifty saved, or a Hugging Face image classifier.
    run
        For the device.

    Raises
    ------
    NotFoundError
        When there is no such model.
    InputError
        When it is of another kind.
    """
    folder = fetch(name)
    if is_net(folder):
        net = (load_shrunk(folder, _before_the_cut(folder)) if (folder / SHAPES).is_file() else load_net(folder)).to(
            run.device
        )
        config: Any = net.config
        classes = tuple(map(str, range(config.classes)))
        if not (folder / _PROCESSOR).is_file():
            return Classifier(net, classes)
        return Classifier(net, classes, *_reading(folder, config.channels))  # a student of a Hugging Face model
    architecture = architecture_of(folder, name)
    if not architecture.endswith("ForImageClassification"):
        raise InputError(
            f"{name} is a {architecture}: this method needs an image classifier (...ForImageClassification) or a "
            "network that thrifty saved"
        )
    return _pretrained(folder, run)


def _before_the_cut(folder: Path) -> nn.Module:
    """A network of the shape that ``config.json`` says, which a cut one had first; with new weights."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind: Any = _NETS[config.pop("net")]
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}
        net: nn.Module = kind(kind.config_class(**settings))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"{folder} holds an unknown network: {error}") from error
    return net


def architecture_of(folder: Path, name: str) -> str:
    """The class that the config of a Hugging Face model names.

    Raises
    ------
    NotFoundError
        When there is none.
    """
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0])
    except (OSError, json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise NotFoundError(f"{name} holds no model: expected a config.json that names its architecture") from error


def _pretrained(folder: Path, run: Run) -> Classifier:
    from transformers import AutoModelForImageClassification

    try:
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no whole image classifier: {str(error).splitlines()[0]}") from error
    names: Sequence[str] = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
    reading = _reading(folder, getattr(model.config, "num_channels", 3))
    return Classifier(model.to(run.device).eval(), tuple(names), *reading)


def _reading(folder: Path, channels: int) -> tuple[Callable[[NDArray[Any]], Tensor], tuple[int, int] | None, Any]:
    """What a Hugging Face image processor makes of stored pictures, the size it makes them, and itself."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} holds no image processor: {str(error).splitlines()[0]}") from error

    def transform(images: NDArray[Any]) -> Tensor:
        colour = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
        found: Tensor = processor(images=list(colour), return_tensors="pt")["pixel_values"]
        # A model of grey pictures gets the mean of the colours that its processor returns.
        return found.mean(1, keepdim=True) if channels == 1 else found

    size = dict(processor.size)
    edge = size.get("shortest_edge")
    height, width = size.get("height", edge), size.get("width", edge)
    return transform, None if height is None or width is None else (int(height), int(width)), processor
