"""Decoders of Llama's kind, their layers run by hand: fewer passes over memory, less kept for the backward pass.

The products are the model's own. What stands between them (normalisation, rotation, gate) goes through float32 in
blocks that stay in the processor's cache, and keeps for the backward pass only what can't be computed again cheaply.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules import module as module_hooks

if TYPE_CHECKING:
    from thrifty.lm.attention import Packed, PackedPlan
    from thrifty.lm.cache import RowCache
    from thrifty.lm.prefill import PromptCache

_FAMILIES = frozenset({"LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model"})
_BLOCK_ELEMENTS = 2**18  # float32 at once on a CPU: 1 MiB, about a core's own cache
_MOST_JOINED = 2**28  # weights that are copied to be joined: matrices of larger models are large enough as they are
_LEAST_STEPS = 16  # after which the copy is paid for

# Of a layer, the queries, keys and values ``[token, head, width]`` to the attended values ``[token, head * width]``.
Attend = Callable[[Any, Tensor, Tensor, Tensor], Tensor]


class LeanBody:
    """The body of a decoder, run layer by layer.

    Parameters
    ----------
    body
        A model of one of the families that this knows; see :func:`lean_body`.
    """

    def __init__(self, body: Any) -> None:
        self.body = body
        self._modules = list(body.modules())
        self._joined: list[_Joined] | None = None

    def usable(self) -> bool:
        """Whether nothing asks for the modules' own forward passes: hooks, autocast, gradient checkpointing."""
        if torch.is_autocast_enabled(next(self.body.parameters()).device.type):
            return False
        if module_hooks._global_forward_hooks or module_hooks._global_forward_pre_hooks:
            return False
        return not any(
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or "forward" in module.__dict__
            or (module.training and getattr(module, "gradient_checkpointing", False))
            for module in self._modules
        )

    def packed(self, ids: Int[Tensor, " total"], plan: PackedPlan) -> Float[Tensor, "total width"]:
        """See :meth:`thrifty.lm.backbone.Backbone.states_packed`."""

        def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
            return plan.attend(query, key, value, *_settings(attention))[0].flatten(1)

        return self._run(ids, plan.positions, attend)

    def read(self, ids: Int[Tensor, " total"], plan: Packed, cache: PromptCache) -> Float[Tensor, "total width"]:
        """See :meth:`thrifty.lm.backbone.Backbone.read`."""

        def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
            key, value = cache.update(key, value, attention.layer_idx)
            return plan.attend(query, key, value, *_settings(attention))[0].flatten(1)

        return self._run(ids, plan.positions, attend)

    def step(self, ids: Int[Tensor, " row"], cache: RowCache) -> Float[Tensor, "row width"]:
        """See :meth:`thrifty.lm.backbone.Backbone.step`."""

        def attend(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.update(key[:, :, None], value[:, :, None], attention.layer_idx)
            return cache.attend(query[:, :, None], keys, values, *_settings(attention)).flatten(1)

        return self._run(ids, cache.positions, attend)

    @contextlib.contextmanager
    def joined(self, steps: int) -> Iterator[None]:
        """Within it, products of one layer that read the same states are one product; the weights must not change.

        Parameters
        ----------
        steps
            How often the body is to run, at most.
        """
        if steps >= _LEAST_STEPS and not torch.is_grad_enabled():
            self._joined = _joined_layers(self.body)
        try:
            yield
        finally:
            self._joined = None

    def _run(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        body = self.body
        hidden = body.embed_tokens(ids)
        cos, sin = (part.flatten(0, 1)[:, None] for part in body.rotary_emb(hidden[None], positions))
        for number, layer in enumerate(body.layers):
            attention, joined = layer.self_attn, self._joined[number] if self._joined else _APART
            states = _normed(layer.input_layernorm, hidden)
            query, key, value = _heads(attention, states, joined.qkv, cos, sin)
            hidden = hidden + attention.o_proj(attend(attention, query, key, value))
            states = _normed(layer.post_attention_layernorm, hidden)
            hidden = hidden + _gated(layer.mlp, states, joined.gate_up)
        return _normed(body.norm, hidden)


@dataclass(frozen=True, eq=False)
class _Joint:
    """Linear maps of one input as one."""

    weight: Float[Tensor, "width out"]
    bias: Float[Tensor, " out"] | None
    sizes: tuple[int, ...]

    def __call__(self, states: Tensor) -> Tensor:
        """All products side by side."""
        return states @ self.weight if self.bias is None else torch.addmm(self.bias, states, self.weight)


@dataclass(frozen=True, eq=False)
class _Joined:
    """What of a layer is joined."""

    qkv: _Joint | None = None
    gate_up: _Joint | None = None


_APART = _Joined()


def _joined_layers(body: Any) -> list[_Joined] | None:
    """Of each layer the joined maps; None where one is no plain matrix, or they would take too much memory."""
    found, weights = [], 0
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        groups = ((attention.q_proj, attention.k_proj, attention.v_proj), (mlp.gate_proj, mlp.up_proj))
        maps = [one for group in groups for one in group]
        weights += sum(one.weight.numel() for one in maps if _is_plain(one))
        if weights > _MOST_JOINED or not all(_is_plain(one) for one in maps):
            return None
        found.append(_Joined(*(_joint(group) for group in groups)))
    return found


def _joint(maps: Sequence[nn.Linear]) -> _Joint:
    biases = [one.bias for one in maps]
    given: list[Tensor] = [bias for bias in biases if bias is not None]
    if given:  # Qwen2 has them in all three
        like = maps[0].weight
        given = [like.new_zeros(len(one.weight)) if one.bias is None else one.bias for one in maps]
    weight = torch.cat([one.weight.data for one in maps])
    return _Joint(weight.t(), torch.cat(given) if given else None, tuple(len(one.weight) for one in maps))


def _heads(attention: Any, states: Tensor, joint: _Joint | None, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values ``[token, head, width]``, the first two rotated."""
    maps, width = (attention.q_proj, attention.k_proj, attention.v_proj), attention.head_dim
    if joint is None:
        query, key, value = (project(states).unflatten(1, (-1, width)) for project in maps)
    else:
        queries, keys, values = (size // width for size in joint.sizes)
        heads = joint(states).unflatten(1, (-1, width))
        if not hasattr(attention, "q_norm"):
            query, key = _rotated(heads[:, : queries + keys], cos, sin).split([queries, keys], 1)
            return query, key, heads[:, queries + keys :]
        query, key, value = heads.split([queries, keys, values], 1)
    if hasattr(attention, "q_norm"):
        query, key = _normed(attention.q_norm, query), _normed(attention.k_norm, key)
    return _rotated(query, cos, sin), _rotated(key, cos, sin), value


def lean_body(body: Any) -> LeanBody | None:
    """The body's layers run by hand, or None where it is of another family or was changed.

    Parameters
    ----------
    body
        What maps token ids to last hidden states in a causal language model.
    """
    kind = type(body)
    if kind.__name__ not in _FAMILIES or not kind.__module__.startswith("transformers.models."):
        return None
    family = kind.__name__.removesuffix("Model")
    norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), "RMSNorm")
    expected = {"self_attn": "Attention", "mlp": "MLP", **norms}
    for layer in body.layers:
        parts = {name: type(part).__name__ for name, part in layer.named_children()}
        if parts != {name: family + suffix for name, suffix in expected.items()}:
            return None
    if body.config.hidden_act != "silu":
        return None
    return LeanBody(body)


def _settings(attention: Any) -> tuple[float, None, int | None, float]:
    """Scaling, soft cap, window and dropout of a layer's attention."""
    # Where layers differ, each says its own; else the config says it for all.
    window = getattr(attention if hasattr(attention, "sliding_window") else attention.config, "sliding_window", None)
    return attention.scaling, None, window, attention.attention_dropout if attention.training else 0.0


def _is_plain(linear: Any) -> bool:
    """Whether it is one matrix (and a bias): no adapter, nothing quantized."""
    return type(linear) is nn.Linear and type(linear.weight) is nn.Parameter and type(linear.weight.data) is Tensor


# Without gradients, as in decoding, the detour through autograd is a tenth of what stands between products.


def _normed(norm: Any, x: Tensor) -> Tensor:
    given = (x, norm.weight, norm.variance_epsilon)
    normed: Tensor = _RMSNorm.apply(*given) if torch.is_grad_enabled() else _rms_norm(*given)[0]
    return normed


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    rotated: Tensor = _Rotation.apply(x, cos, sin) if torch.is_grad_enabled() else _rotate(x, cos, sin)
    return rotated


def _gated(mlp: Any, states: Tensor, joint: _Joint | None) -> Tensor:
    gate, up = (mlp.gate_proj(states), mlp.up_proj(states)) if joint is None else joint(states).split(joint.sizes, 1)
    down = mlp.down_proj
    if torch.is_grad_enabled() and _is_plain(down):
        product: Tensor = _GatedProduct.apply(gate, up, down.weight)
        return product if down.bias is None else product + down.bias
    active = _Gate.apply(gate, up) if torch.is_grad_enabled() else functional.silu(gate).mul_(up)
    gated: Tensor = down(active)
    return gated


def _blocks(x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, their float32 copy) in one reused buffer."""
    rows, width = x.shape
    step = rows if x.device.type != "cpu" else max(1, _BLOCK_ELEMENTS // width)
    buffer = torch.empty((min(step, rows), width), dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        yield part, buffer[: part.stop - first].copy_(x[part])


def _inverse_rms(z: Tensor, epsilon: float) -> Tensor:
    squares = torch.linalg.vector_norm(z, dim=1, keepdim=True).square_()
    return squares.div_(z.shape[1]).add_(epsilon).rsqrt_()


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The normalised rows, rounded before the weight as the models do it, and one number per row."""
    flat = x.reshape(-1, x.shape[-1])
    wide = torch.promote_types(x.dtype, torch.float32)
    if flat.numel() <= _BLOCK_ELEMENTS:
        z = flat.to(wide, copy=True)
        scale = _inverse_rms(z, epsilon)
        out = z.mul_(scale).to(x.dtype)
    else:
        out, scale = torch.empty_like(flat), flat.new_empty((len(flat), 1), dtype=wide)
        for rows, z in _blocks(flat):
            scale[rows] = _inverse_rms(z, epsilon)
            out[rows] = z.mul_(scale[rows])
    return out.mul_(weight).view(x.shape), scale


class _RMSNorm(torch.autograd.Function):
    r""":math:`w \, x / \sqrt{\mathrm{mean}(x^2) + \epsilon}`; keeps one number per row beside its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = _rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        flat, gradient = x.reshape(-1, x.shape[-1]), upstream[0].reshape(-1, x.shape[-1])
        for_x = torch.empty_like(flat)
        for_weight = torch.zeros_like(weight, dtype=scale.dtype)
        wide = weight.to(scale.dtype)
        for rows, z in _blocks(flat):
            z.mul_(scale[rows])
            g = gradient[rows].to(z.dtype)
            along = g * z
            if ctx.needs_input_grad[1]:
                for_weight += along.sum(0)
            shared = torch.mv(along, wide).div_(-z.shape[1])
            for_x[rows] = g.mul_(wide).addcmul_(z, shared[:, None]).mul_(scale[rows])
        return for_x.view(x.shape), for_weight.to(weight.dtype) if ctx.needs_input_grad[1] else None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = x * cos
    (first, second), (low, high), (new_low, new_high) = (part.chunk(2, -1) for part in (sin, x, out))
    new_low.addcmul_(high, first, value=-1)
    new_high.addcmul_(low, second)
    return out


class _Rotation(torch.autograd.Function):
    """Rotary position embedding of ``[token, head, width]`` by cosines and sines ``[token, 1, width]``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        out = upstream[0] * cos
        (first, second), (low, high), (new_low, new_high) = (part.chunk(2, -1) for part in (sin, upstream[0], out))
        new_low.addcmul_(high, second)
        new_high.addcmul_(low, first, value=-1)
        return out, None, None


def _gate_gradients(gradient: Tensor, gate: Tensor, up: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``silu(gate) * up`` in both; ``active`` is the first factor and is overwritten."""
    for_gate = torch.ops.aten.silu_backward(gradient * up, gate)
    return for_gate, active.mul_(gradient)


class _Gate(torch.autograd.Function):
    """``silu(gate) * up``; keeps its inputs alone."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _gate_gradients(upstream[0], gate, up, functional.silu(gate))


class _GatedProduct(torch.autograd.Function):
    """``(silu(gate) * up) W^T``; the product's wide side is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return functional.silu(gate).mul_(up) @ weight.t()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        active = functional.silu(gate)
        for_weight = upstream[0].t() @ (active * up) if ctx.needs_input_grad[2] else None
        return *_gate_gradients(upstream[0] @ weight, gate, up, active), for_weight
