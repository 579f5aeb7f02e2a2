"""Bring a causal language model and its tokenizer into memory, from a folder or by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from thrifty.core.errors import InputError, NotFoundError


def load_lm(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    Weights are read from safetensors only, and no code that comes with a model is run.

    Parameters
    ----------
    name
        A folder in Hugging Face layout, a named model (``smollm2-135m-instruct``), or a hub id.
    dtype
        Of the weights; None keeps the stored one.
    device
        Where to put the model.

    Returns
    -------
    tuple
        Model (in evaluation mode) and tokenizer.

    Raises
    ------
    NotFoundError
        If there is no such model.
    InputError
        If what is there is not a causal language model.
    """
    import safetensors
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    folder = _folder(name)
    _check(name, folder)
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # loading takes a moment; its bar would stand in the output
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, safetensors.SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} can't be loaded as a causal language model: {first}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    return model.to(device).eval(), tokenizer


def _folder(name: str | Path) -> Path:
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, Path) or str(name).startswith((".", "/", "~")):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise NotFoundError(
                f"no model folder {name}: give a folder in Hugging Face layout, a model's name or a hub id"
            )
        return path
    from thrifty.data.fetch import fetch

    return fetch(str(name))


def _check(name: str | Path, folder: Path) -> None:
    """Say what is wrong with a folder in one line, before transformers says it in many."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{name} holds no config.json: a folder in Hugging Face layout was expected")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): download the model again") from error
    kind = config.get("model_type", "")
    if not kind:
        raise InputError(f"{name} is not a transformers model: its config.json has no model_type")
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    architectures = config.get("architectures") or []
    causal = any("CausalLM" in a or "LMHeadModel" in a for a in architectures) or not architectures
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not causal or config.get("is_encoder_decoder"):
        what = architectures[0] if architectures else kind
        raise InputError(
            f"{name} is a {what}; a causal language model (decoder with a language-model head) was expected"
        )
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{name} holds no *.safetensors weights: save the model again with save_pretrained")
