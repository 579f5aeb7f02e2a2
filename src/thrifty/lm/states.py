"""Hidden states from which response tokens are predicted: over real tokens only, and what rows share only once."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thrifty.core import sharding
from thrifty.lm.attention import Packed
from thrifty.lm.backbone import Backbone
from thrifty.lm.memory import activation_tokens, split_rows
from thrifty.lm.prefix import Branched, group_rows


def response_states(
    model: Any,
    parts: Backbone,
    ids: Int[Tensor, "row time"],
    mask: Bool[Tensor, "row time"],
    activation_bytes: int | None,
    share_prefixes: bool,
) -> tuple[Float[Tensor, "token width"], Int[Tensor, " token"]]:
    """Last hidden states before each response token, and where these tokens are in the flattened batch.

    Parameters
    ----------
    model
        The model that ``parts`` are of.
    parts
        Its parts.
    ids
        Token ids.
    mask
        The response tokens; at least one.
    activation_bytes, share_prefixes
        See :func:`thrifty.lm.logps.token_logps`.
    """
    time = mask.shape[1]
    # What follows a row's last response token predicts nothing that is asked for.
    last = (torch.arange(time, device=mask.device) * mask).amax(1)
    used = last.nonzero().squeeze(1)
    # Layers that checkpoint themselves run again outside of this call, where packing is not known.
    checkpoints_itself = torch.is_grad_enabled() and any(
        getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules()
    )
    packs = parts.packed and not checkpoints_itself
    shares = share_prefixes and packs and parts.decodes
    groups = group_rows(ids[used], mask[used], last[used]) if shares else None
    if groups is not None:
        used = used[groups.order]
    ids, ahead, lengths = ids[used], mask[used], last[used].tolist()
    shared = groups.shared if groups is not None else [0] * len(lengths)

    def run(first: int, end: int) -> Tensor:
        rows, longest = slice(first, end), max(lengths[first:end])
        part, chosen = ids[rows, :longest], ahead[rows, 1 : longest + 1]
        if not packs:
            return _take(parts.states(part).flatten(0, 1), chosen.flatten().nonzero().squeeze(1))
        if groups is not None and any(shared[first + 1 : end]):
            tree = Branched(lengths[rows], groups.numbers[rows], groups.begun[rows], part.device)
            states = parts.states_packed(tree.pack_ids(part), tree)
            return _TakeRepeatedly.apply(states, tree.places(longest)[chosen])
        plan = Packed(lengths[rows], part.device)
        states = parts.states_packed(part.flatten()[plan.slots], plan)
        return _take(states, chosen.flatten()[plan.slots].nonzero().squeeze(1))

    segments = [(0, len(lengths))]
    if torch.is_grad_enabled() and not checkpoints_itself:
        by_hand = parts.packed and parts.lean is not None and parts.lean.usable()
        most = activation_tokens(model, activation_bytes, mask.device, lean=by_hand)
        segments = split_rows(lengths, most, shared)
    # The backward pass begins with the last segment, whose activations are gone before another's are
    # made anew: so the last one need not be computed twice.
    # Sharded layers run in all processes at once: where another has more segments, a row runs again and counts nothing.
    idle = sharding.most(model, len(segments)) - len(segments)
    kept = [checkpoint(run, 0, 1, use_reentrant=False)[:0] for _ in range(idle)]
    kept += [checkpoint(run, first, end, use_reentrant=False) for first, end in segments[:-1]]
    states = torch.cat([*kept, run(*segments[-1])]) if kept else run(*segments[-1])
    rows, columns = ahead.nonzero(as_tuple=True)
    return states, used[rows] * time + columns


def _take(states: Tensor, index: Tensor) -> Tensor:
    return states if len(index) == len(states) else states.index_select(0, index)


class _TakeRepeatedly(torch.autograd.Function):
    """States at places that may repeat; what a state got from several is summed in float32."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = len(states)
        return states.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        gradient = upstream[0]
        wide = torch.promote_types(gradient.dtype, torch.float32)
        summed = gradient.new_zeros((ctx.size, *gradient.shape[1:]), dtype=wide)
        return summed.index_add_(0, index, gradient.to(wide)).to(gradient.dtype), None
