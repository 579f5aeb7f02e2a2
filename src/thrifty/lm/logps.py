"""Log-probabilities of the tokens that a model spoke, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thrifty.core.errors import InputError
from thrifty.lm.attention import Packed
from thrifty.lm.backbone import Backbone, backbone, linear_parts, logits_by_model
from thrifty.lm.head import LogitTransform, head_logps
from thrifty.lm.memory import activation_tokens, split_rows
from thrifty.lm.sequences import Sequences

_GENERIC_CHUNK = 256


@overload
def token_logps(
    model: Any,
    sequences: Sequences,
    *,
    temperature: float = ...,
    chunk: int | None = ...,
    activation_bytes: int | None = ...,
    entropy: Literal[False] = ...,
) -> Float[Tensor, "row time"]: ...
@overload
def token_logps(
    model: Any,
    sequences: Sequences,
    *,
    temperature: float = ...,
    chunk: int | None = ...,
    activation_bytes: int | None = ...,
    entropy: Literal[True],
) -> tuple[Float[Tensor, "row time"], Float[Tensor, "row time"]]: ...
def token_logps(
    model: Any,
    sequences: Sequences,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    activation_bytes: int | None = None,
    entropy: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Log-probability of each response token given all tokens before it.

    .. math:: \log p_\theta(y_t \mid y_{<t}) = z_{y_t} / \tau - \log \sum_v e^{z_v / \tau}

    The body runs once, over real tokens only; the head runs only where the next token is a response
    token, in chunks (:func:`thrifty.lm.head.head_logps`). Differentiable; under ``torch.no_grad`` it keeps nothing.

    Parameters
    ----------
    model
        Any causal language model of transformers, also wrapped by PEFT, in training or evaluation mode
        as it stands.
    sequences
        Right-padded rows on the model's device. Each response starts after at least one token.
    temperature
        :math:`\tau > 0`, by which logits are divided.
    chunk
        Tokens whose logits exist at once; None chooses a size.
    activation_bytes
        Memory that the body's activations may take for the backward pass, about; beyond it, rows are
        computed again in the backward pass (in groups, all but the last). None is 0.875 GiB on a CPU, half of the
        free memory on a GPU. Left to the model where its own gradient checkpointing is on.
    entropy
        Whether to return the entropies of the next-token distributions too (differentiable as well).

    Returns
    -------
    Tensor, or a pair of them
        Float32 ``[row, time]``, 0 outside the response; with ``entropy`` a second one, in nats.

    Raises
    ------
    InputError
        If a response starts at token 0, the temperature is not positive, a token id is outside the
        vocabulary, or the model is not a causal language model.
    """
    if not temperature > 0:
        raise InputError(f"temperature must be greater than 0, got {temperature}: use sample(..., greedy=True) for 0")
    mask = sequences.response_mask & sequences.attention_mask
    _check(model, sequences, mask)
    rows, time = mask.shape
    where = mask.flatten().nonzero().squeeze(1)
    blank = torch.zeros(rows * time, device=mask.device)
    if len(where) == 0:
        blank = blank.view(rows, time)
        return (blank, blank.clone()) if entropy else blank
    parts = backbone(model)
    targets = sequences.input_ids.flatten()[where]
    if parts is None:
        found = _by_model(model, sequences, mask, LogitTransform(temperature=temperature), entropy)
    else:
        states = _response_states(model, parts, sequences, mask, activation_bytes)
        transform = LogitTransform(parts.transform.scale, parts.transform.softcap, temperature)
        if parts.plain_head:
            weight, bias = linear_parts(parts.head)
            found = head_logps(states, weight, bias, targets, transform, chunk=chunk, entropy=entropy)
        else:
            found = _generic_head(parts.head, states, targets, transform, chunk or _GENERIC_CHUNK, entropy)
    logps = blank.index_copy(0, where, found[0]).view(rows, time)
    if not entropy:
        return logps
    assert found[1] is not None
    return logps, blank.index_copy(0, where, found[1]).view(rows, time)


def sequence_logps(
    logps: Float[Tensor, "row time"],
    mask: Bool[Tensor, "row time"],
    reduction: Literal["sum", "mean"],
) -> Float[Tensor, " row"]:
    r"""One number per sequence: :math:`\sum_t m_t \log p_t`, or that divided by :math:`\sum_t m_t`.

    Parameters
    ----------
    logps
        From :func:`token_logps`.
    mask
        The tokens that count.
    reduction
        "sum" or "mean"; never implied, because methods differ in it. A row without tokens gives 0.

    Raises
    ------
    InputError
        For another reduction.
    """
    if reduction not in ("sum", "mean"):
        raise InputError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    total = (logps * mask).sum(1)
    return total if reduction == "sum" else total / mask.sum(1).clamp(min=1)


def _check(model: Any, sequences: Sequences, mask: Tensor) -> None:
    if bool(mask[:, :1].any()):
        row = int(mask[:, 0].nonzero()[0])
        raise InputError(
            f"sequence {row}: the response starts at token 0, where nothing predicts it: give it a prompt, "
            f"at least the tokenizer's beginning-of-sequence token"
        )
    if not sequences.right_padded():
        raise InputError(
            "sequences must be right-padded (attention_mask True, then False): build them with from_records"
        )
    device = next(model.parameters()).device
    if sequences.input_ids.device != device:
        raise InputError(
            f"sequences are on {sequences.input_ids.device}, the model on {device}: call sequences.to({str(device)!r})"
        )
    vocabulary = model.get_input_embeddings().weight.shape[0]
    if len(sequences) and int(sequences.input_ids.max()) >= vocabulary:
        raise InputError(
            f"token id {int(sequences.input_ids.max())} is outside the model's vocabulary of {vocabulary}: "
            f"were the sequences made with another model's tokenizer?"
        )


def _response_states(
    model: Any, parts: Backbone, sequences: Sequences, mask: Tensor, activation_bytes: int | None
) -> Float[Tensor, "token width"]:
    """Hidden states from which the response tokens are predicted, row after row."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    # What follows a row's last response token predicts nothing that is asked for.
    last = (positions * mask).amax(1)
    used = last.nonzero().squeeze(1)
    ids, ahead, lengths = sequences.input_ids[used], mask[used], last[used].tolist()
    # Layers that checkpoint themselves run again outside of this call, where packing is not known.
    checkpoints_itself = torch.is_grad_enabled() and any(
        getattr(module, "gradient_checkpointing", False) and module.training for module in model.modules()
    )

    def run(first: int, end: int) -> Tensor:
        longest = max(lengths[first:end])
        part, chosen = ids[first:end, :longest], ahead[first:end, 1 : longest + 1]
        if not parts.packed or checkpoints_itself:
            return _take(parts.states(part).flatten(0, 1), chosen.flatten().nonzero().squeeze(1))
        plan = Packed(lengths[first:end], part.device)
        real = plan.slots
        states = parts.states_packed(part.flatten()[real], plan)
        return _take(states, chosen.flatten()[real].nonzero().squeeze(1))

    segments = [(0, len(lengths))]
    if torch.is_grad_enabled() and not checkpoints_itself:
        by_hand = parts.packed and parts.lean is not None and parts.lean.usable()
        segments = split_rows(lengths, activation_tokens(model, activation_bytes, mask.device, lean=by_hand))
    # The backward pass begins with the last segment, whose activations are gone before another's are
    # made anew: so the last one need not be computed twice.
    kept = [checkpoint(run, first, end, use_reentrant=False) for first, end in segments[:-1]]
    return torch.cat([*kept, run(*segments[-1])]) if kept else run(*segments[-1])


def _take(states: Tensor, index: Tensor) -> Tensor:
    return states if len(index) == len(states) else states.index_select(0, index)


def _generic_head(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    targets: Int[Tensor, " token"],
    transform: LogitTransform,
    chunk: int,
    entropy: bool,
) -> tuple[Tensor, Tensor | None]:
    """The same as :func:`head_logps` for a head that is more than a matrix, such as one with an adapter."""

    def run(part: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return _from_logits(transform.apply(head(part).float()), ids, entropy)

    pairs = [
        checkpoint(run, states[first : first + chunk], targets[first : first + chunk], use_reentrant=False)
        for first in range(0, len(targets), chunk)
    ]
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]) if entropy else None


def _from_logits(z: Tensor, targets: Tensor, entropy: bool) -> tuple[Tensor, Tensor]:
    log_p = z.log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1) if entropy else z.new_empty(0)
    return log_p.gather(-1, targets[:, None]).squeeze(1), entropies


def _by_model(
    model: Any, sequences: Sequences, mask: Tensor, transform: LogitTransform, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """By the model's own forward pass, a row at a time, each recomputed in the backward pass."""

    def run(ids: Tensor, attention_mask: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_by_model(model, ids, attention_mask)[:, :-1][ahead]
        return _from_logits(transform.apply(logits.float()), ids[:, 1:][ahead], entropy)

    pairs = []
    for row in range(len(sequences)):
        if bool(mask[row].any()):
            end = int(mask[row].nonzero().max()) + 1
            part = slice(row, row + 1), slice(0, end)
            pairs.append(
                checkpoint(
                    run,
                    sequences.input_ids[part],
                    sequences.attention_mask[part],
                    mask[row : row + 1, 1:end],
                    use_reentrant=False,
                )
            )
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]) if entropy else None
