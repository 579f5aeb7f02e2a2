"""Which weights of a language model are trained: all, the last layers, or low-rank adapters beside them."""

from __future__ import annotations

from typing import Any

from torch import nn

from thrifty.core.errors import InputError
from thrifty.data.optional import need


def train_last_layers(model: nn.Module, count: int | None) -> None:
    """Leaves only the last ``count`` decoder layers and the final norm to train, or everything when ``None``.

    The backward pass ends at the lowest trained layer, so fewer layers take less time as well as less memory.

    Raises
    ------
    InputError
        When the model has fewer layers, or its layers are not found.
    """
    if count is None:
        return
    body = getattr(model, "base_model", model)
    layers = next((part for part in (getattr(body, name, None) for name in ("layers", "h")) if part is not None), None)
    if not isinstance(layers, nn.ModuleList) or not 1 <= count <= len(layers):
        found = len(layers) if isinstance(layers, nn.ModuleList) else "no list of"
        raise InputError(f"can't train the last {count} layers: the model has {found} layers")
    model.requires_grad_(False)
    for layer in layers[-count:]:
        layer.requires_grad_(True)
    for name in ("norm", "ln_f", "final_layernorm"):
        if isinstance(getattr(body, name, None), nn.Module):
            getattr(body, name).requires_grad_(True)


def with_lora(model: Any, rank: int, *, alpha: float | None = None, dropout: float = 0.0) -> Any:
    """The model under PEFT with a low-rank adapter at every linear layer but the head; only the adapters are trained.

    Parameters
    ----------
    model
        A language model of transformers.
    rank
        Of the adapters, at least 1.
    alpha
        Numerator of their scale ``alpha / rank``; twice the rank when ``None``.
    dropout
        In front of the adapters.

    Raises
    ------
    InputError
        When the rank is below 1, or PEFT is not installed.
    """
    if rank < 1:
        raise InputError(f"the rank of an adapter must be at least 1, not {rank}")
    need("peft", "lm", "LoRA adapters")
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def merged(model: Any) -> Any:
    """The model without PEFT around it, adapters added to the weights; others as they are."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
