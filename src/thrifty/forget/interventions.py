"""Interventions: what a model does otherwise by hooks on its modules, which can be taken off, saved and loaded."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from thrifty.core.atomic import room_on_disk
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError
from thrifty.lm.backbone import backbone
from thrifty.lm.load import load_lm

FILE = "intervention.safetensors"
_HELD = "_thrifty_intervention"
_KINDS: dict[str, type[Intervention]] = {}


class Intervention(ABC):
    """What hooks do to a model; a frozen dataclass of tensors and plain values.

    A subclass names its ``kind``, under which it is saved.
    """

    kind: ClassVar[str]

    def __init_subclass__(cls) -> None:
        _KINDS[cls.kind] = cls

    @abstractmethod
    def hook(self, model: nn.Module) -> Sequence[RemovableHandle]:
        """Puts the hooks on a model that it belongs to.

        Raises
        ------
        InputError
            When it was made for a model of another shape.
        """

    def tree(self) -> dict[str, Any]:
        """Its fields, as a checkpoint can hold them."""
        return vars(self)

    @classmethod
    def of_tree(cls, tree: dict[str, Any]) -> Self:
        """What :meth:`tree` gave, as an intervention again."""
        return cls(**tree)


@dataclass(frozen=True, eq=False)
class _Held:
    intervention: Intervention
    handles: tuple[RemovableHandle, ...]


def attach(model: nn.Module, intervention: Intervention) -> nn.Module:
    """Puts an intervention on a model, in place; :func:`detach` takes it off again.

    Hooks are obeyed by the model itself, by ``generate``, and by :mod:`thrifty.lm`, which then leaves the model's
    layers to the model. A copy (``copy.deepcopy``) of the model has the intervention too.

    Raises
    ------
    InputError
        When the model has one already, or the intervention belongs to a model of another shape.
    """
    if attached(model) is not None:
        raise InputError("the model has an intervention already: take it off first (detach)")
    # Looked at before: random hooks would make the parts differ from the whole, and the model be read the slow way.
    backbone(model)
    vars(model)[_HELD] = _Held(intervention, tuple(intervention.hook(model)))
    return model


def attached(model: nn.Module) -> Intervention | None:
    """The intervention on a model."""
    held: _Held | None = vars(model).get(_HELD)
    return None if held is None else held.intervention


def detach(model: nn.Module) -> Intervention | None:
    """Takes the intervention off a model, in place, and returns it; the model is what it was before."""
    held: _Held | None = vars(model).pop(_HELD, None)
    if held is None:
        return None
    for handle in held.handles:
        handle.remove()
    return held.intervention


@contextlib.contextmanager
def detached(model: nn.Module) -> Iterator[nn.Module]:
    """Within it the model is without its intervention."""
    found = detach(model)
    try:
        yield model
    finally:
        if found is not None:
            attach(model, found)


@contextlib.contextmanager
def intervened(model: nn.Module, intervention: Intervention) -> Iterator[nn.Module]:
    """Within it a model without an intervention has this one; no copy is made."""
    attach(model, intervention)
    try:
        yield model
    finally:
        detach(model)


def save_unlearned(model: Any, directory: str | Path, tokenizer: Any = None) -> None:
    """Saves a language model with ``save_pretrained``, its intervention beside it in a safetensors file.

    transformers loads the directory as the model without the intervention; :func:`load_unlearned` with it.

    Parameters
    ----------
    model
        A model of transformers. Without an intervention, it is saved as ever.
    directory
        Where to.
    tokenizer
        Saved too, so that the directory is whole.

    Raises
    ------
    DiskFullError
        When there is no room.
    """
    folder, intervention = Path(directory), attached(model)
    with room_on_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Before the weights: a directory that lacks it would look like a model without an intervention.
        if intervention is not None:
            save_tree(folder / FILE, {"kind": intervention.kind, "fields": intervention.tree()})
        else:
            (folder / FILE).unlink(missing_ok=True)
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def load_unlearned(
    path: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Loads a model and its tokenizer, with the intervention that :func:`save_unlearned` wrote beside it.

    Parameters
    ----------
    path
        The directory.
    dtype, device
        As for :func:`thrifty.lm.load.load_lm`.

    Returns
    -------
    tuple
        Model (in evaluation mode, hooks attached) and tokenizer.

    Raises
    ------
    NotFoundError
        When there is no such directory.
    InputError
        When it holds no language model or no intervention, or one that belongs to another model.
    """
    model, tokenizer = load_lm(path, dtype=dtype, device=device)
    file = Path(path).expanduser() / FILE
    if not file.is_file():
        raise InputError(f"{path} holds no {FILE}: load_lm loads models without an intervention")
    tree = load_tree(file)
    try:
        intervention = _KINDS[tree["kind"]].of_tree(tree["fields"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{file} holds no intervention that is known: save it again with save_unlearned") from error
    return attach(model, intervention), tokenizer
