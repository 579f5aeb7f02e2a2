"""Log-probabilities of answers to prompts with pictures, for any image-text model of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thrifty.core.errors import InputError
from thrifty.core.remembered import Remembered
from thrifty.lm.backbone import Backbone, evaluating, same_logits, transform_of, unwrapped
from thrifty.lm.head import LogitTransform
from thrifty.lm.images import IMAGE_PROMPT, ImagePrompts, prompts_of
from thrifty.lm.logps import logps_of_logits, logps_of_states
from thrifty.lm.picture_tokens import picture_tokens
from thrifty.lm.sequences import Sequences
from thrifty.lm.states import response_states

# Rows are not computed again in the backward pass, when pictures are no longer known: a step's parts bound the memory.
_NO_LIMIT = 2**62
_bodies: Remembered[tuple[Backbone | None]] = Remembered("image_body")
_LOOKS_AHEAD = 1e-3  # of the largest logit: more than rounding
_causal: Remembered[bool] = Remembered("causal")

Found = tuple[Float[Tensor, " token"], Float[Tensor, " token"] | None]


def image_logps(
    model: Any,
    sequences: Sequences,
    mask: Bool[Tensor, "row time"],
    temperature: float,
    chunk: int | None,
    share_prefixes: bool,
    entropy: bool,
) -> tuple[Found, Int[Tensor, " token"]]:
    """Log-probabilities (and entropies) of the response tokens, and where these are in the flattened batch.

    Parameters
    ----------
    model
        With the prompts attached; see :class:`thrifty.lm.images.ImagePrompts`.
    sequences
        With the column ``image_prompt``.
    mask
        The response tokens; at least one.
    temperature, chunk, share_prefixes, entropy
        As for :func:`thrifty.lm.logps.token_logps`.
    """
    prompts = prompts_of(model)
    numbers: list[int] = sequences[IMAGE_PROMPT].tolist()
    ids, time = sequences.input_ids, mask.shape[1]
    tokens = picture_tokens(model, prompts, numbers)
    if tokens is not None:
        with tokens.known():
            extended = tokens.extend(ids, numbers)
            states, where = response_states(model, tokens.parts, extended, mask, _NO_LIMIT, share_prefixes)
        return logps_of_states(tokens.parts, states, ids.flatten()[where], temperature, chunk, entropy), where
    found, places = [], []
    for rows in prompts.by_kind(numbers):
        index = torch.tensor(rows, device=mask.device)
        batch = _Batch(model, prompts, [numbers[row] for row in rows], sequences.select(index), mask[index])
        found.append(batch.logps(temperature, chunk, entropy))
        row, column = mask[index].nonzero(as_tuple=True)
        places.append(index[row] * time + column)
    logps = torch.cat([logps for logps, _ in found])
    entropies = torch.cat([more for _, more in found if more is not None]) if entropy else None
    return (logps, entropies), torch.cat(places)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows whose pictures are of one kind, by the model's own body."""

    model: Any
    prompts: ImagePrompts
    numbers: list[int]
    part: Sequences
    ahead: Bool[Tensor, "row time"]

    def logps(self, temperature: float, chunk: int | None, entropy: bool) -> Found:
        """As :func:`image_logps`, row after row."""
        targets = self.part.input_ids[self.ahead]
        self._check_causal()
        parts = self._body()
        if parts is not None:
            states = parts.body(**self._given(slice(None)), use_cache=False).last_hidden_state
            return logps_of_states(parts, states[:, :-1][self.ahead[:, 1:]], targets, temperature, chunk, entropy)
        bounds = [0, *self.ahead.sum(1).cumsum(0).tolist()]

        def run(row: int) -> tuple[Tensor, Tensor]:
            logits = self.model(**self._given(slice(row, row + 1)), use_cache=False).logits
            ahead = logits[:, -self.ahead.shape[1] : -1][self.ahead[row : row + 1, 1:]]
            scaled = LogitTransform(temperature=temperature).apply(ahead.float())
            return logps_of_logits(scaled, targets[bounds[row] : bounds[row + 1]], entropy)

        pairs = [checkpoint(run, row, use_reentrant=False) for row in range(len(self.numbers))]
        entropies = torch.cat([pair[1] for pair in pairs]) if entropy else None
        return torch.cat([pair[0] for pair in pairs]), entropies

    @torch.no_grad()
    def _check_causal(self) -> None:
        """Looks, once for a model, whether an answer's first token is predicted without a look at the answer."""
        inner = unwrapped(self.model)
        if _causal.get(inner):
            return
        begins = int(self.ahead[0].int().argmax())
        with evaluating(self.model):
            for kind in (0, 1):  # to some, answers are of another kind than prompts, which may be looked at as a whole
                self.prompts.answer_kind = kind
                given = self._given(slice(0, 1))
                ids = given["input_ids"]
                other = torch.cat([ids[:, :begins], ids[:, begins - 1 : begins].expand(1, ids.shape[1] - begins)], 1)
                said, unsaid = (
                    self.model(**{**given, "input_ids": one}, use_cache=False).logits[0, begins - 1].float()
                    for one in (ids, other)
                )
                if (said - unsaid).abs().max() <= _LOOKS_AHEAD * said.abs().max():
                    _causal.put(inner, True)
                    return
        raise InputError(f"{type(inner).__name__} looks ahead in its answers: it can't be trained on what it samples")

    def _given(self, rows: slice) -> dict[str, Tensor]:
        """What the model is called with for some of the rows."""
        inner = unwrapped(self.model)
        ids, attention = self.part.input_ids[rows], self.part.attention_mask[rows].long()
        # A policy may say the token that stands for a picture, where there is no picture to be shown.
        picture = getattr(inner.config, "image_token_id", None)
        if picture is not None:
            ids = ids.masked_fill(self.part.response_mask[rows] & (ids == picture), self.prompts.pad_id)
        inputs = self.prompts.inputs(self.numbers[rows], ids.shape[1], inner.get_output_embeddings().weight)
        return {"input_ids": ids, "attention_mask": attention, **inputs}

    @torch.no_grad()
    def _body(self) -> Backbone | None:
        """The model's body and head, or None where its logits are not the head's product with the body's states."""
        inner = unwrapped(self.model)
        known = _bodies.get(inner)
        if known is not None:
            return known[0]
        body, head = inner.base_model, inner.get_output_embeddings()
        parts = Backbone(body, head, transform_of(inner.config), ()) if body is not inner else None
        if parts is not None:
            given = self._given(slice(0, 1))
            with evaluating(self.model):
                try:
                    states = parts.body(**given, use_cache=False).last_hidden_state
                    if not same_logits(parts.logits(states), self.model(**given, use_cache=False).logits):
                        parts = None
                except (TypeError, AttributeError, ValueError, RuntimeError):
                    parts = None
        _bodies.put(inner, (parts,))
        return parts
