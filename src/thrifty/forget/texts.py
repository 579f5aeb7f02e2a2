"""How the methods of the room ask a causal language model: at response tokens, some logits at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
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


def predicted(sequences: Sequences) -> Tensor:
    """True where the next token is a response token, bool [B, T - 1]."""
    return (sequences.response_mask & sequences.attention_mask)[:, 1:]


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
    part = slice(row, row + 1)
    found = logits_by_model(model, sequences.input_ids[part], sequences.attention_mask[part])
    return found[0, :-1][predicted(sequences)[row]].float()
