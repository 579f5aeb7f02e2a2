"""Shrunk models on disk: as their own library stores them where its config can say their shape, else our way.

A Hugging Face config has one number for the width of all layers. A model that was cut alike everywhere is saved with
``save_pretrained`` and loads in plain transformers. One whose layers differ gets ``shrunk.json`` (which class, the
config that it was first built from, and the shapes and integers in which it differs from that) and
``shrunk.safetensors`` beside its ``config.json``; transformers finds no weights there and says so, and
:func:`load_shrunk` loads it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from thrifty.core.atomic import replacing, room_on_disk, write_json
from thrifty.core.errors import InputError, NotFoundError
from thrifty.shrink.surgery_attributes import shrunk

SHAPES, WEIGHTS = "shrunk.json", "shrunk.safetensors"


def loads_plainly(model: Any) -> bool:
    """Whether the config of a Hugging Face model says its shape, so that ``from_pretrained`` loads it."""
    fresh = built_from(type(model), model.config.to_dict()) if _is_pretrained(model) else None
    return fresh is not None and not any(_differences(model, fresh).values())


def built_from(kind: Any, config: dict[str, Any]) -> nn.Module | None:
    """The model without values that ``from_pretrained`` would build from a config; ``None`` where it refuses it."""
    try:
        return _built(kind, config, real=False)
    except Exception:  # whatever it raises, it is no way to load a model
        return None


def save_shrunk(model: nn.Module, directory: str | Path) -> bool:
    """Saves a model that was cut, or not.

    Parameters
    ----------
    model
        A Hugging Face model, or any other module that :func:`thrifty.shrink.surgery.cut` returned.
    directory
        Made if missing.

    Returns
    -------
    bool
        Whether plain transformers loads it; otherwise :func:`load_shrunk` does.

    Raises
    ------
    InputError
        When the module is neither.
    DiskFullError
        When there is no room.
    """
    folder = Path(directory)
    if _is_pretrained(model) and loads_plainly(model):
        with room_on_disk(folder):
            model.save_pretrained(folder)  # type: ignore[operator]
        for name in (SHAPES, WEIGHTS):
            (folder / name).unlink(missing_ok=True)
        return True
    record = shrunk(model)
    description: dict[str, Any] = {"class": type(model).__name__}
    if _is_pretrained(model):
        config: Any = model.config
        original = record.config if record is not None and record.config is not None else config.to_dict()
        fresh = _built(type(model), original, real=False)
        description |= {"config": original} | _differences(model, fresh)
        with room_on_disk(folder):
            config.save_pretrained(folder)
            if getattr(model, "generation_config", None) is not None:
                model.generation_config.save_pretrained(folder)  # type: ignore[union-attr, operator]
    elif record is not None:
        description |= {"shapes": shapes_of(model), "attributes": record.attributes}
    else:
        raise InputError(
            f"this {type(model).__name__} is no Hugging Face model and was not cut by thrifty: save it as usual"
        )
    description["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    with replacing(folder / WEIGHTS) as temporary:
        save_model(model, str(temporary))
    write_json(folder / SHAPES, description)
    return False


def load_shrunk(directory: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Loads what :func:`save_shrunk` saved, in evaluation mode.

    Parameters
    ----------
    directory
        Where it is.
    model
        For a module that is no Hugging Face model: one of the shape from before the cut; it becomes the smaller one.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    NotFoundError
        When there is no model.
    InputError
        When the model is of another shape, or its files are damaged.
    """
    folder = Path(directory)
    if not (folder / SHAPES).exists():
        if (folder / "config.json").exists():
            return _plain(folder)
        raise NotFoundError(f"{folder} holds no shrunk model: expected {SHAPES} or a config.json")
    try:
        description = json.loads((folder / SHAPES).read_text(encoding="utf-8"))
        name, shapes, attributes = description["class"], description["shapes"], description["attributes"]
        dtype = getattr(torch, description["dtype"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / SHAPES} is damaged: {error}") from error
    if "config" in description:
        model = _built(_class(name), description["config"], real=True)
    elif model is None:
        raise InputError(
            f"{folder} holds a {name}, which is no Hugging Face model: give a {name} of its first shape too"
        )
    elif type(model).__name__ != name:
        raise InputError(f"{folder} holds a {name}, not a {type(model).__name__}")
    model = model.to(dtype)
    _apply(model, shapes, attributes, folder)
    _tie(model)
    try:
        load_model(model, folder / WEIGHTS)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"{folder / WEIGHTS} does not hold this model's weights: {str(error).splitlines()[0]}"
        ) from error
    if "config" in description:
        changed: Any = model
        changed.config = type(changed.config).from_pretrained(folder)
        if (folder / "generation_config.json").exists():
            changed.generation_config = type(changed.generation_config).from_pretrained(folder)
    return model.eval()


def _is_pretrained(model: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _class(name: str) -> Any:
    import transformers

    found = getattr(transformers, name, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise InputError(f"transformers has no model {name!r}")
    return found


def _plain(folder: Path) -> nn.Module:
    try:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
        model: nn.Module = _class(name).from_pretrained(folder, use_safetensors=True, local_files_only=True)
    except (OSError, json.JSONDecodeError, KeyError, IndexError, TypeError, RuntimeError) as error:
        raise InputError(f"{folder} holds no whole model: {str(error).splitlines()[0]}") from error
    return model.eval()


@contextlib.contextmanager
def _without_values(real: bool) -> Iterator[None]:
    from transformers.initialization import no_init_weights

    with no_init_weights(), contextlib.nullcontext() if real else torch.device("meta"):
        yield


def _built(kind: Any, config: dict[str, Any], *, real: bool) -> nn.Module:
    """A model of a class and a config, with no values of use; on the meta device unless ``real``."""
    with _without_values(real):
        made: nn.Module = kind(kind.config_class.from_dict(config))
    _tie(made)
    return made


def _tie(model: nn.Module) -> None:
    if hasattr(model, "tie_weights"):
        model.tie_weights()  # type: ignore[operator]


def shapes_of(model: nn.Module) -> dict[str, list[int]]:
    """The shapes of all parameters and buffers that are stored, by name."""
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def _integers(model: nn.Module) -> dict[str, dict[str, int]]:
    return {
        name: {key: value for key, value in vars(module).items() if type(value) is int}
        for name, module in model.named_modules()
    }


def _differences(model: nn.Module, fresh: nn.Module) -> dict[str, dict[str, Any]]:
    """Shapes and integers in which a model differs from another of its class."""
    ours, theirs = shapes_of(model), shapes_of(fresh)
    old = _integers(fresh)
    attributes = {
        name: changed
        for name, values in _integers(model).items()
        if (changed := {key: value for key, value in values.items() if old.get(name, {}).get(key) != value})
    }
    return {"shapes": {name: s for name, s in ours.items() if theirs.get(name) != s}, "attributes": attributes}


def _apply(model: nn.Module, shapes: dict[str, list[int]], attributes: dict[str, dict[str, int]], folder: Path) -> None:
    modules = dict(model.named_modules())
    shared: dict[int, nn.Parameter] = {}
    alive: list[tuple[Any, torch.Tensor]] = []  # an id stands for its tensor only while there is one
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        module = modules.get(path)
        if module is None or (leaf not in module._parameters and leaf not in module._buffers):
            raise InputError(f"the model has no {name}, which {folder} holds: give the model as it was before the cut")
        old = module._parameters.get(leaf, module._buffers.get(leaf))
        if old is not None and list(old.shape) == shape:
            continue
        like = old if old is not None else next(model.parameters())
        empty = torch.empty(shape, dtype=like.dtype, device=like.device)
        alive.append((old, empty))
        if leaf in module._buffers:
            module._buffers[leaf] = empty
        else:
            # Tied parameters are listed under each name, and stay one.
            module._parameters[leaf] = shared.setdefault(id(old) if old is not None else id(empty), nn.Parameter(empty))
    for name, values in attributes.items():
        if name not in modules:
            raise InputError(f"the model has no module {name!r}, which {folder} holds")
        for attribute, value in values.items():
            modules[name].__dict__[attribute] = value
