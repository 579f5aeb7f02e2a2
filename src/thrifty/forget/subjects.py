"""The user's trained model: what it reads, and how it is saved as what it was.

Three kinds are known: networks of this library, Hugging Face image classifiers, and Hugging Face causal language
models.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.core.atomic import room_on_disk
from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.run import Run
from thrifty.data.fetch import fetch
from thrifty.data.image_files import LabelledImages, read_images
from thrifty.data.readers import read
from thrifty.forget.data import Batch, Labelled, Source, Texts
from thrifty.forget.interventions import save_unlearned
from thrifty.forget.refusals import refused
from thrifty.lm.load import load_lm
from thrifty.lm.records import from_records
from thrifty.nets.vision import is_net, load_net, pixels, save_net

_TEXT = ("prompt", "completion", "messages")


@dataclass(frozen=True, eq=False)
class Examples:
    """What was read from one file or folder.

    Parameters
    ----------
    source
        The examples, as the model takes them.
    keys
        What identifies each example's content, [N].
    y
        Their classes, as the model numbers them; ``None`` for texts.
    refusals
        Of texts, the same prompts with a refusal as the answer, row for row.
    """

    source: Source
    keys: tuple[bytes, ...]
    y: Tensor | None = None
    refusals: Source | None = None


class Subject(Protocol):
    """A user's model with what belongs to it."""

    @property
    def model(self) -> Any: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    def read(self, path: str) -> Examples:
        """Reads a file or folder of examples for the model."""
        ...

    def save(self, model: nn.Module, directory: Path) -> None:
        """Writes a model of the same kind, to load as the given one was loaded."""
        ...


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures as a source; turned into the model's inputs only when asked for."""

    images: NDArray[Any]
    y: Tensor
    transform: Callable[[NDArray[Any]], Tensor]

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, indices: Tensor) -> Batch:
        """The pictures of those numbers, as the model takes them."""
        return Labelled(self.transform(self.images[indices.numpy()]), self.y[indices])


@dataclass(frozen=True, eq=False)
class Net:
    """A network of this library."""

    model: nn.Module
    classes: tuple[str, ...]

    def read(self, path: str) -> Examples:
        """Reads an image folder or an NPZ file."""
        return pictures(read_images(fetch(path)), self.classes, pixels)

    def save(self, model: nn.Module, directory: Path) -> None:
        """As :func:`thrifty.nets.vision.save_net` does."""
        save_net(model, directory)


@dataclass(frozen=True, eq=False)
class ImageClassifier:
    """A Hugging Face image classifier with its image processor."""

    model: Any
    processor: Any
    classes: tuple[str, ...]

    def read(self, path: str) -> Examples:
        """Reads an image folder, resized to what the processor makes of it, or an NPZ file."""
        return pictures(read_images(fetch(path), size=self._size()), self.classes, self._inputs)

    def _size(self) -> tuple[int, int] | None:
        size = dict(self.processor.size)
        edge = size.get("shortest_edge")
        return (edge, edge) if edge else (size["height"], size["width"]) if "height" in size else None

    def _inputs(self, images: NDArray[Any]) -> Tensor:
        colour = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
        inputs: Tensor = self.processor(images=list(colour), return_tensors="pt")["pixel_values"]
        # A model of grey pictures gets the mean of the colours its processor returns.
        return inputs.mean(1, keepdim=True) if getattr(self.model.config, "num_channels", 3) == 1 else inputs

    def save(self, model: Any, directory: Path) -> None:
        """With ``save_pretrained``, the processor beside the model."""
        model.save_pretrained(directory)
        self.processor.save_pretrained(directory)


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A Hugging Face causal language model with its tokenizer."""

    model: Any
    tokenizer: Any
    max_length: int
    classes: tuple[str, ...] = ()

    def read(self, path: str) -> Examples:
        """Reads records with ``prompt`` and ``completion``, or ``messages``."""
        rows = [{name: row[name] for name in _TEXT if name in row} | {"record": i} for i, row in enumerate(read(path))]
        found = from_records(rows, self.tokenizer, max_length=self.max_length, columns=("record",))
        # Records too long to hold any of their response are left out, hence the numbers.
        used = [rows[int(number)] for number in found["record"]]
        keys = tuple(json.dumps({name: row.get(name) for name in _TEXT}).encode() for row in used)
        return Examples(Texts(found.without_columns("record")), keys, refusals=Refusals(used, self))

    def sequences(self, records: Sequence[Mapping[str, Any]]) -> Texts:
        """Records as the model reads them."""
        return Texts(from_records(records, self.tokenizer, max_length=self.max_length))

    def save(self, model: Any, directory: Path) -> None:
        """With ``save_pretrained``, the tokenizer beside the model, and an intervention where there is one."""
        save_unlearned(model, directory, self.tokenizer)


@dataclass(frozen=True, eq=False)
class Refusals:
    """Records with a refusal as the answer; made only when asked for.

    Parameters
    ----------
    records
        With the answers that the refusals take the place of.
    subject
        Whose tokenizer reads them.
    """

    records: Sequence[Mapping[str, Any]]
    subject: LanguageModel

    def __len__(self) -> int:
        return len(self.records)

    def rows(self, indices: Tensor) -> Batch:
        """The records of those numbers."""
        every = refused(self.records)
        return self.subject.sequences([every[int(number)] for number in indices])


def pictures(found: LabelledImages, classes: Sequence[str], transform: Callable[[NDArray[Any]], Tensor]) -> Examples:
    """Read pictures with the numbers that the model gives their classes.

    Raises
    ------
    InputError
        For a class that the model does not have.
    """
    numbers = [class_number(name, classes) for name in found.classes]
    y = torch.tensor(numbers)[torch.from_numpy(found.y)]
    keys = tuple(
        hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest() + str(int(label)).encode()
        for image, label in zip(found.x, y, strict=True)
    )
    return Examples(Pictures(found.x, y, transform), keys, y)


def class_number(name: str, classes: Sequence[str]) -> int:
    """The number of a class, given by its name or by its number.

    Raises
    ------
    InputError
        When the model has no such class.
    """
    lowered = [known.lower() for known in classes]
    if name.lower() in lowered:
        return lowered.index(name.lower())
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    some = ", ".join(classes[:12]) + (" ..." if len(classes) > 12 else "")
    raise InputError(f"the model has no class {name!r}: its {len(classes)} classes are {some}, or by number from 0")


def load_subject(name: str, run: Run, max_length: int = 1024) -> Subject:
    """The user's model, on the run's device.

    Parameters
    ----------
    name
        A directory or a hub id.
    run
        For the device and precision.
    max_length
        Of texts, in tokens.

    Raises
    ------
    NotFoundError
        When there is no such model.
    InputError
        When it is of another kind; which one is said.
    """
    folder = fetch(name)
    if is_net(folder):
        net = load_net(folder).to(run.device)
        count = int(getattr(net, "config").classes)  # noqa: B009 (the field is not part of nn.Module)
        return Net(net, tuple(map(str, range(count))))
    architecture = _architecture(folder, name)
    if architecture.endswith(("ForCausalLM", "LMHeadModel")):
        model, tokenizer = load_lm(str(folder), dtype=run.dtype, device=run.device)
        return LanguageModel(model, tokenizer, max_length)
    if architecture.endswith("ForImageClassification"):
        return _image_classifier(folder, run)
    raise InputError(
        f"{name} is a {architecture}, which can't forget here: give an image classifier (...ForImageClassification), a "
        "causal language model (...ForCausalLM) or a network that thrifty saved"
    )


def _architecture(folder: Path, name: str) -> str:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["architectures"][0])
    except (OSError, json.JSONDecodeError, KeyError, IndexError, TypeError) as error:
        raise NotFoundError(f"{name} holds no model: expected a config.json that names its architecture") from error


def _image_classifier(folder: Path, run: Run) -> ImageClassifier:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        processor = AutoImageProcessor.from_pretrained(folder)
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=run.dtype)
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no whole image classifier: {str(error).splitlines()[0]}") from error
    names = model.config.id2label
    return ImageClassifier(
        model.to(run.device).eval(), processor, tuple(str(names[number]) for number in sorted(names))
    )


def save_whole(subject: Subject, model: nn.Module, directory: Path) -> None:
    """Saves a model so that the directory appears only when it is whole; an older one is replaced."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    with room_on_disk(directory):
        shutil.rmtree(temporary, ignore_errors=True)
        subject.save(model, temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
