"""A causal language model taken apart into its body and its head, with proof that the parts are the whole."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.remembered import Remembered
from thrifty.lm.attention import Packed, PackedPlan, attending
from thrifty.lm.head import LogitTransform
from thrifty.lm.lean import LeanBody, lean_body

if TYPE_CHECKING:
    from thrifty.lm.cache import RowCache
    from thrifty.lm.prefill import PromptCache

log = logging.getLogger("thrifty")

_KNOWN_LAYERS = {"full_attention", "sliding_attention"}
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # of the largest logit; coarser for half precision
_HALF_TOLERANCE = 6e-2


@dataclass(frozen=True, eq=False)
class Backbone:
    """The parts of a causal language model and which of the fast ways it was seen to allow.

    Parameters
    ----------
    body
        Maps token ids to last hidden states.
    head
        Maps hidden states to logits before ``transform``.
    transform
        What the model does to the head's product.
    configs
        Configs whose attention implementation the body reads.
    packed
        Whether sequences may lie end to end in one row (:class:`thrifty.lm.attention.Packed`).
    decodes
        Whether it can go on from keys and values in a :class:`thrifty.lm.cache.RowCache`.
    lean
        The body's layers run by hand, where its family is known.
    """

    body: Callable[..., Any]
    head: nn.Module
    transform: LogitTransform
    configs: tuple[Any, ...]
    packed: bool = False
    decodes: bool = False
    lean: LeanBody | None = None

    @property
    def plain_head(self) -> bool:
        """Whether the head is one matrix (and a bias), with nothing hooked on to it."""
        hooks = self.head._forward_hooks or self.head._forward_pre_hooks or self.head._backward_hooks
        return type(self.head) is nn.Linear and type(self.head.weight.data) is Tensor and not hooks

    def logits(self, hidden: Float[Tensor, "*token width"]) -> Float[Tensor, "*token vocab"]:
        """Logits as the model itself gives them, before any temperature."""
        return self.transform.apply(self.head(hidden))

    def products(self, states: Float[Tensor, "row width"], space: Tensor) -> Float[Tensor, "row vocab"]:
        """The head's products, written into ``space`` where it can: fresh memory takes as long as a third of them."""
        weight, bias = getattr(self.head, "weight", None), getattr(self.head, "bias", None)
        if torch.is_grad_enabled() or not self.plain_head or not isinstance(weight, Tensor) or bias is not None:
            products: Tensor = self.head(states)
            return products
        return torch.mm(states, weight.t(), out=space[: len(states)])

    def states_packed(self, ids: Int[Tensor, " total"], plan: PackedPlan) -> Float[Tensor, "total width"]:
        """Last hidden states of sequences that lie end to end, in ``plan``'s order."""
        if self.lean is not None and self.lean.usable():
            return self.lean.packed(ids, plan)
        with attending(self.configs, plan):
            states: Tensor = self.body(
                input_ids=ids[None], position_ids=plan.positions, use_cache=False
            ).last_hidden_state
        return states[0]

    def read(self, ids: Int[Tensor, " total"], plan: Packed, cache: PromptCache) -> Float[Tensor, "total width"]:
        """The same, keeping keys and values in ``cache``."""
        if self.lean is not None and self.lean.usable():
            return self.lean.read(ids, plan, cache)
        with attending(self.configs, plan):
            states: Tensor = self.body(
                input_ids=ids[None], position_ids=plan.positions, past_key_values=cache, use_cache=True
            ).last_hidden_state
        return states[0]

    def step(self, ids: Int[Tensor, " row"], cache: RowCache) -> Float[Tensor, "row width"]:
        """States of one further token per row; the cache moves on to its next column."""
        if self.lean is not None and self.lean.usable():
            states = self.lean.step(ids, cache)
        else:
            with attending(self.configs, cache):
                states = self.body(
                    input_ids=ids[:, None], position_ids=cache.positions, past_key_values=cache, use_cache=True
                ).last_hidden_state[:, 0]
        cache.advance()
        return states

    def states(self, ids: Int[Tensor, "row time"]) -> Float[Tensor, "row time width"]:
        """Last hidden states of right-padded rows, by the model's own attention.

        No mask is given: with causal attention nothing real ever looks at padding on its right.
        """
        states: Tensor = self.body(input_ids=ids, use_cache=False).last_hidden_state
        return states


_found: Remembered[tuple[Any, Backbone | None]] = Remembered("backbone")


def backbone(model: nn.Module) -> Backbone | None:
    """Take a model apart, or None where its logits are not its head's product with its body's states.

    The first call for a model compares, on two short rows, the parts' logits with the model's own; so a
    model that does something else between body and logits falls back to its own forward pass instead of
    being silently misread.

    Parameters
    ----------
    model
        Any causal language model of transformers, also wrapped by PEFT.

    Returns
    -------
    Backbone or None
        The parts.

    Raises
    ------
    InputError
        If the model is not a causal language model.
    """
    check_causal(model)
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    known = _found.get(model)
    if known is not None and known[0] is head:
        return known[1]
    parts = _take_apart(model, inner, head)
    _found.put(model, (head, parts))
    return parts


def check_causal(model: Any) -> None:
    """Raise an :class:`InputError` for anything but a causal language model of transformers."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "get_output_embeddings"):
        raise InputError(
            f"a causal language model of transformers was expected, {type(model).__name__} was given: "
            f"load one with thrifty.lm.load_lm or AutoModelForCausalLM"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{type(model).__name__} is an encoder-decoder; a causal (decoder-only) model was expected")
    if unwrapped(model).get_output_embeddings() is None:
        raise InputError(
            f"{type(model).__name__} has no language-model head: load it with AutoModelForCausalLM, not with AutoModel"
        )


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT wrapper (its adapters stay in place); others as they are."""
    inner = getattr(model, "get_base_model", None)
    return inner() if callable(inner) else model


def body_of(inner: Any) -> Any:
    """The part of an unwrapped model that maps token ids to last hidden states, or None where it is the whole."""
    body = inner.get_decoder() if hasattr(inner, "get_decoder") else inner.base_model
    return None if body is inner else body


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and afterwards give every module its own flag back."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _take_apart(model: nn.Module, inner: Any, head: Any) -> Backbone | None:
    body = body_of(inner)
    if body is None:
        return None
    configs = {
        id(module.config): module.config
        for module in body.modules()
        if hasattr(getattr(module, "config", None), "_attn_implementation_internal")
    }
    parts = Backbone(body, head, transform_of(inner.config), tuple(configs.values()))
    name = type(inner).__name__
    with torch.no_grad(), evaluating(model):
        lengths = (5, 3)
        vocabulary = inner.config.get_text_config().vocab_size
        ids = torch.arange(10, device=next(model.parameters()).device).view(2, 5) * 7 % vocabulary
        ids[1, 0] = ids[0, 0]  # rows that begin alike are read in two passes
        mask = torch.ones_like(ids)
        mask[1, lengths[1] :] = 0
        real = mask.bool()
        own = model(input_ids=ids, attention_mask=mask).logits[:, -ids.shape[1] :][real]
        try:
            if not same_logits(parts.logits(parts.states(ids)[real]), own):
                log.info("%s: logits are not head(body); using the model's own forward pass", name)
                return None
        except (TypeError, AttributeError, ValueError, RuntimeError) as error:
            log.info("%s can't be taken apart (%s); using the model's own forward pass", name, error)
            return None
        layers = set(getattr(inner.config.get_text_config(), "layer_types", None) or ())
        if not configs or not layers <= _KNOWN_LAYERS:
            return parts
        ends = [length - back + sum(lengths[:row]) for back in (2, 1) for row, length in enumerate(lengths)]
        claims: list[tuple[str, Any, Any, Tensor]] = [
            ("packed", True, _packed_logits, own),
            ("decodes", True, _decoded_logits, own[ends]),
        ]
        lean = lean_body(body)
        if lean is not None:
            claims.append(("lean", lean, _packed_logits, own))
        for claim, value, proof, expected in claims:
            try:
                claimed = replace(parts, **{claim: value})
                if not same_logits(proof(claimed, ids, lengths), expected):
                    log.info("%s gives other logits when %s", name, claim)
                    break
                parts = claimed
            except (TypeError, AttributeError, ValueError, RuntimeError, KeyError, IndexError) as error:
                log.info("%s is not %s: %s", name, claim, error)
                break
    return parts


def _packed_logits(parts: Backbone, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    plan = Packed(lengths, ids.device)
    rows = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
    return parts.logits(parts.states_packed(rows, plan))


def _decoded_logits(parts: Backbone, ids: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """The logits of each row's last token but one, by reading up to it, then of the last, by a decoding step."""
    from thrifty.lm.cache import RowCache
    from thrifty.lm.prefill import read_prompts

    prompts = [row[: length - 1].tolist() for row, length in zip(ids, lengths, strict=True)]
    states, cache = read_prompts(parts, prompts, ids.device, least_shared=1)
    rows = RowCache(cache, torch.arange(len(lengths), device=ids.device), 1)
    last = torch.stack([row[length - 1] for row, length in zip(ids, lengths, strict=True)])
    return torch.cat([parts.logits(states), parts.logits(parts.step(last, rows))])


def same_logits(ours: Tensor, own: Tensor) -> bool:
    """Whether logits that were computed by parts are the model's own, up to the rounding of their dtype."""
    if ours.shape != own.shape:
        return False
    tolerance = _TOLERANCE.get(own.dtype, _HALF_TOLERANCE) * float(own.abs().max())
    return bool((ours.float() - own.float()).abs().max() <= tolerance)


def transform_of(config: Any) -> LogitTransform:
    """What a model of that config does to its head's product."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    scale = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    softcap = getattr(config, "final_logit_softcapping", None)
    return LogitTransform(scale=float(scale) / float(divisor), softcap=float(softcap) if softcap else None)


def logits_by_model(model: Any, ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The model's own logits for right-padded rows, the way that always works."""
    logits: Tensor = model(input_ids=ids, attention_mask=attention_mask.long(), use_cache=False).logits
    return logits[:, -ids.shape[1] :]


def linear_parts(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a plain head."""
    if not isinstance(head, nn.Linear):
        raise TypeError(f"{type(head).__name__} is no linear head")
    return head.weight, head.bias
