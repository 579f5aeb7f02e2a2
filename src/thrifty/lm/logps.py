"""Log-probabilities of the tokens that a model spoke, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thrifty.core import sharding
from thrifty.core.errors import InputError
from thrifty.lm.backbone import Backbone, backbone, linear_parts, logits_by_model
from thrifty.lm.head import LogitTransform, head_logps
from thrifty.lm.images import IMAGE_PROMPT
from thrifty.lm.sequences import Sequences
from thrifty.lm.states import response_states

_GENERIC_CHUNK = 256


@overload
def token_logps(
    model: Any,
    sequences: Sequences,
    *,
    temperature: float = ...,
    chunk: int | None = ...,
    activation_bytes: int | None = ...,
    share_prefixes: bool = ...,
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
    share_prefixes: bool = ...,
    entropy: Literal[True],
) -> tuple[Float[Tensor, "row time"], Float[Tensor, "row time"]]: ...
def token_logps(
    model: Any,
    sequences: Sequences,
    *,
    temperature: float = 1.0,
    chunk: int | None = None,
    activation_bytes: int | None = None,
    share_prefixes: bool = True,
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
        Right-padded rows on the model's device. Each response starts after at least one token. With a column
        ``image_prompt``, their pictures are those that were attached to the model
        (:class:`thrifty.lm.images.ImagePrompts`).
    temperature
        :math:`\tau > 0`, by which logits are divided.
    chunk
        Tokens whose logits exist at once; None chooses a size.
    activation_bytes
        Memory that the body's activations may take for the backward pass, about; beyond it, rows are
        computed again in the backward pass (in groups, all but the last). None is 0.875 GiB on a CPU, half of the
        free memory on a GPU. Left to the model where its own gradient checkpointing is on.
    share_prefixes
        Whether rows with the same tokens before the response (a prompt's samples, a pair's answers), wherever they
        stand in the batch, have these computed once for all. Dropout then falls on them once for all, too.
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
    blank = torch.zeros(rows * time, device=mask.device)
    if not bool(mask.any()):
        blank = blank.view(rows, time)
        return (blank, blank.clone()) if entropy else blank
    parts = backbone(model)
    if IMAGE_PROMPT in sequences.columns:
        from thrifty.lm.image_logps import image_logps

        found, where = image_logps(model, sequences, mask, temperature, chunk, share_prefixes, entropy)
    elif parts is None:
        where = mask.flatten().nonzero().squeeze(1)
        found = _by_model(model, sequences, mask, LogitTransform(temperature=temperature), entropy)
    else:
        ids = sequences.input_ids
        states, where = response_states(model, parts, ids, mask, activation_bytes, share_prefixes)
        found = logps_of_states(parts, states, ids.flatten()[where], temperature, chunk, entropy)
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


def logps_of_states(
    parts: Backbone,
    states: Float[Tensor, "token width"],
    targets: Int[Tensor, " token"],
    temperature: float = 1.0,
    chunk: int | None = None,
    entropy: bool = False,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"] | None]:
    """Log-probabilities (and entropies) of tokens from the last hidden states before them.

    Parameters
    ----------
    parts
        The model whose head is applied.
    states, targets
        For each token, the state from which it is predicted, and its id.
    temperature, chunk, entropy
        As for :func:`token_logps`.
    """
    transform = LogitTransform(parts.transform.scale, parts.transform.softcap, temperature)
    if parts.plain_head:
        weight, bias = linear_parts(parts.head)
        return head_logps(states, weight, bias, targets, transform, chunk=chunk, entropy=entropy)
    return _generic_head(parts.head, states, targets, transform, chunk or _GENERIC_CHUNK, entropy)


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
        return logps_of_logits(transform.apply(head(part).float()), ids, entropy)

    pairs = [
        checkpoint(run, states[first : first + chunk], targets[first : first + chunk], use_reentrant=False)
        for first in range(0, len(targets), chunk)
    ]
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]) if entropy else None


def logps_of_logits(
    z: Float[Tensor, "token vocab"], targets: Int[Tensor, " token"], entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of tokens, and with ``entropy`` the entropies (else nothing), from logits as they are."""
    log_p = z.log_softmax(-1)
    entropies = -(log_p.exp() * log_p).sum(-1) if entropy else z.new_empty(0)
    return log_p.gather(-1, targets[:, None]).squeeze(1), entropies


def _by_model(
    model: Any, sequences: Sequences, mask: Tensor, transform: LogitTransform, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """By the model's own forward pass, a row at a time, each recomputed in the backward pass."""

    def run(ids: Tensor, attention_mask: Tensor, ahead: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_by_model(model, ids, attention_mask)[:, :-1][ahead]
        return logps_of_logits(transform.apply(logits.float()), ids[:, 1:][ahead], entropy)

    spoken = [row for row in range(len(sequences)) if bool(mask[row].any())]
    pairs: list[tuple[Tensor, Tensor]] = []
    # A sharded model runs in all processes at once: where another has more rows, one runs again and counts nothing.
    for row in spoken + spoken[:1] * (sharding.most(model, len(spoken)) - len(spoken)):
        end = int(mask[row].nonzero().max()) + 1
        part = slice(row, row + 1), slice(0, end)
        given = sequences.input_ids[part], sequences.attention_mask[part], mask[row : row + 1, 1:end]
        logps, entropies = checkpoint(run, *given, use_reentrant=False)
        pairs.append((logps, entropies) if len(pairs) < len(spoken) else (logps[:0], entropies[:0]))
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]) if entropy else None
