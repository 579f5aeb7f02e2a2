"""How the methods of the room ask a causal language model: at response tokens, some logits at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from thrifty.core.errors import InputError
from thrifty.lm.backbone import Backbone, backbone, logits_by_model
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

_CHUNK = 256  # tokens whose logits exist at once


def cross_entropy(model: nn.Module, sequences: Sequences) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a batch's response tokens, in nats.

    Raises
    ------
    InputError
        When no token is a response.
    """
    return -token_logps(model, sequences).sum() / _predicted(sequences).sum()


def squared_logits(model: nn.Module, sequences: Sequences) -> Float[Tensor, ""]:
    """Mean squared norm of the logits from which a batch's response tokens are predicted.

    Raises
    ------
    InputError
        When no token is a response.
    """
    ahead = _predicted(sequences)
    parts = backbone(model)
    if parts is None:
        norms = [_by_model(model, sequences, row).square().sum() for row in _rows_with(ahead)]
    else:
        states, whole = _states(parts, sequences, ahead), parts

        def norm(part: Tensor) -> Tensor:
            return whole.logits(part).float().square().sum()

        # Recomputed in the backward pass: the logits of all tokens together are many times the model.
        norms = [checkpoint(norm, part, use_reentrant=False) for part in states.split(_CHUNK)]
    return torch.stack(norms).sum() / ahead.sum()


def response_logits(
    model: nn.Module, sequences: Sequences
) -> Iterator[tuple[Float[Tensor, "token vocab"], Int[Tensor, " token"]]]:
    """The logits from which response tokens are predicted, with those tokens, in the order of the rows.

    Parameters
    ----------
    model
        A causal language model.
    sequences
        Right-padded rows on the model's device.

    Yields
    ------
    tuple
        Logits in float32 and the tokens that follow, for some tokens at a time.
    """
    ahead = _predicted(sequences)
    targets = sequences.input_ids[:, 1:]
    parts = backbone(model)
    if parts is None:
        for row in _rows_with(ahead):
            yield _by_model(model, sequences, row), targets[row][ahead[row]]
    else:
        states = _states(parts, sequences, ahead)
        for part, tokens in zip(states.split(_CHUNK), targets[ahead].split(_CHUNK), strict=True):
            yield parts.logits(part).float(), tokens


def compared(
    model: nn.Module,
    reference: nn.Module,
    sequences: Sequences,
    where: Bool[Tensor, "row time"],
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, ""]:
    """Mean distance of a model's next-token distributions from a reference's; differentiable in the model.

    Parameters
    ----------
    model, reference
        Two causal language models of one vocabulary.
    sequences
        Right-padded rows on the models' device.
    where
        The tokens after which the two are compared; at least one.
    distance
        Of logits and reference logits, float32 ``[token, vocab]``, one number for each token.
    """
    parts, other = backbone(model), backbone(reference)
    if parts is None or other is None:
        sums = []
        for row in _rows_with(where):
            mine = _row_logits(model, sequences, row)[where[row]]
            with torch.no_grad():
                theirs = _row_logits(reference, sequences, row)[where[row]]
            sums.append(distance(mine, theirs).sum())
    else:
        whole, fixed = parts, other
        states = whole.states(sequences.input_ids)[where]
        with torch.no_grad():
            reference_states = fixed.states(sequences.input_ids)[where]

        def total(part: Tensor, reference_part: Tensor) -> Tensor:
            with torch.no_grad():
                theirs = fixed.logits(reference_part).float()
            return distance(whole.logits(part).float(), theirs).sum()

        chunks = zip(states.split(_CHUNK), reference_states.split(_CHUNK), strict=True)
        # Recomputed in the backward pass, as above.
        sums = [checkpoint(total, *pair, use_reentrant=False) for pair in chunks]
    return torch.stack(sums).sum() / where.sum()


def predicted(sequences: Sequences) -> Tensor:
    """True where the next token is a response token, bool [B, T - 1]."""
    return (sequences.response_mask & sequences.attention_mask)[:, 1:]


def positions(sequences: Sequences, which: Literal["answer", "text", "all"]) -> Bool[Tensor, "row time"]:
    """After which tokens a prediction counts: those before an answer token, all of the text, or padding as well."""
    if which == "all":
        return torch.ones_like(sequences.attention_mask)
    return sequences.attention_mask if which == "text" else functional.pad(predicted(sequences), (0, 1))


def _predicted(sequences: Sequences) -> Tensor:
    ahead = predicted(sequences)
    if not ahead.any():
        raise InputError("a batch of texts has no response token: give records whose completion is not empty")
    return ahead


def _rows_with(ahead: Tensor) -> list[int]:
    rows: list[int] = ahead.any(1).nonzero()[:, 0].tolist()
    return rows


def _states(parts: Backbone, sequences: Sequences, ahead: Tensor) -> Tensor:
    return parts.states(sequences.input_ids)[:, :-1][ahead]


def _by_model(model: nn.Module, sequences: Sequences, row: int) -> Tensor:
    return _row_logits(model, sequences, row)[:-1][predicted(sequences)[row]]


def _row_logits(model: nn.Module, sequences: Sequences, row: int) -> Tensor:
    part = slice(row, row + 1)
    return logits_by_model(model, sequences.input_ids[part], sequences.attention_mask[part])[0].float()
