"""Bring a language model and its tokenizer, or an image-text model and its processor, into memory."""

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
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = _folder(name)
    _check(name, folder)
    return _read(name, folder, AutoModelForCausalLM, AutoTokenizer, "a causal language model", dtype, device)


def load_vlm(
    name: str | Path, *, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any]:
    """Load an image-text model (one that answers questions about pictures) and its processor.

    Any model that ``AutoModelForImageTextToText`` reads, under the same conditions as for :func:`load_lm`.

    Parameters
    ----------
    name
        A folder in Hugging Face layout, or a hub id.
    dtype
        Of the weights; None keeps the stored one.
    device
        Where to put the model.

    Returns
    -------
    tuple
        Model (in evaluation mode) and processor.

    Raises
    ------
    NotFoundError
        If there is no such model.
    InputError
        If what is there is no image-text model, or its processor needs a library that is not installed.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import thrifty.nets.vision_tower  # noqa: F401 (makes its kind of tower known)

    folder = _folder(name)
    if not is_vlm(name):
        raise InputError(f"{name} is no image-text model: AutoModelForImageTextToText does not know its kind")
    check_weights(name, folder)
    model, processor = _read(
        name, folder, AutoModelForImageTextToText, AutoProcessor, "an image-text model", dtype, device
    )
    if not hasattr(processor, "tokenizer"):
        raise InputError(f"{name} has no processor for pictures and text: save it beside the model (save_pretrained)")
    return model, processor


def is_vlm(name: str | Path) -> bool:
    """Whether a model is one that answers questions about pictures; what is no model is none.

    Raises
    ------
    NotFoundError
        If there is no such model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT

    try:
        config = json.loads((_folder(name) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    kind, architectures = config.get("model_type", ""), config.get("architectures") or []
    if kind not in IMAGE_TEXT:
        return False
    known = IMAGE_TEXT[kind]
    return any(one in known for one in architectures) if architectures else kind not in CAUSAL


def _read(
    name: str | Path,
    folder: Path,
    models: Any,
    tokenizers: Any,
    what: str,
    dtype: torch.dtype | None,
    device: str | torch.device,
) -> tuple[Any, Any]:
    import safetensors
    from transformers.utils import logging as transformers_logging

    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # loading takes a moment; its bar would stand in the output
    try:
        model = models.from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        tokenizer = tokenizers.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, ImportError, safetensors.SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} can't be loaded as {what}: {first}") from error
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
    config = stored_config(name, folder)
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
    check_weights(name, folder)


def stored_config(name: str | Path, folder: Path) -> dict[str, Any]:
    """What a model folder's ``config.json`` says.

    Raises
    ------
    InputError
        If there is none, or it is not valid JSON.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{name} holds no config.json: a folder in Hugging Face layout was expected")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): download the model again") from error
    return config


def check_weights(name: str | Path, folder: Path) -> None:
    """Raises an :class:`InputError` for a model folder without safetensors."""
    if not any(folder.glob("*.safetensors")):
        raise InputError(f"{name} holds no *.safetensors weights: save the model again with save_pretrained")
