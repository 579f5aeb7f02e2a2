"""Language models that were made smaller, with their tokenizers: saved whole or not at all, loaded like any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from thrifty.core.atomic import room_on_disk
from thrifty.core.errors import InputError
from thrifty.lm.backbone import unwrapped
from thrifty.lm.load import load_lm
from thrifty.shrink.storing import SHAPES, load_shrunk, save_shrunk


def save_decoder(model: Any, directory: str | Path, tokenizer: Any = None) -> bool:
    """Saves a language model, cut or not; the directory appears only when it is whole, an older one is replaced.

    Parameters
    ----------
    model
        A causal language model.
    directory
        See :func:`thrifty.shrink.storing.save_shrunk` for what it gets.
    tokenizer
        Saved beside the model.

    Returns
    -------
    bool
        Whether ``from_pretrained`` loads it.
    """
    directory = Path(directory)
    temporary = directory.with_name(f".{directory.name}.tmp")
    with room_on_disk(directory):
        shutil.rmtree(temporary, ignore_errors=True)
        plain = save_shrunk(unwrapped(model), temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    return plain


def load_decoder(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Loads a language model and its tokenizer: one that :func:`save_decoder` wrote, or any other.

    Parameters
    ----------
    name
        A folder, a named model or a hub id.
    dtype
        Of the weights; ``None`` keeps the stored one.
    device
        Where to put the model.

    Raises
    ------
    InputError
        When the folder's parts do not fit together, or there is no tokenizer.
    """
    folder = Path(name).expanduser()
    if not (folder / SHAPES).is_file():
        return load_lm(name, dtype=dtype, device=device)
    from transformers import AutoTokenizer

    model = load_shrunk(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} has no tokenizer: save it beside the model (save_decoder)") from error
    return model.to(device, dtype), tokenizer
