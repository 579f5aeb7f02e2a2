"""Pictures as tokens of a longer vocabulary, for models whose decoder gets nothing else from them.

Of many image-text models (LLaVA and its kin, Idefics3, SmolVLM, InternVL ...) the decoder is an ordinary one that is
given vectors in the place of a picture's tokens. If these vectors are further rows of its embedding, a prompt with
pictures is a list of token ids, and all that makes text fast (prompts that are read once for all answers, rows end to
end without padding) serves pictures too. Whether a model is of that kind is seen from what its decoder is called with,
and proven on its logits.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core import sharding
from thrifty.core.remembered import Remembered
from thrifty.lm.attention import Packed
from thrifty.lm.backbone import Backbone, backbone, evaluating, same_logits, unwrapped
from thrifty.lm.images import ImagePrompts

log = logging.getLogger("thrifty")
_allowed: Remembered[bool] = Remembered("picture_tokens")
_PROOFS = 3
_PROOF_ANSWER = 3  # tokens after the prompt, so that the proof looks at both


@dataclass(frozen=True, eq=False)
class PictureTokens:
    """Prompts as token ids, of which those beyond the vocabulary stand for vectors.

    Parameters
    ----------
    parts
        The model.
    vocabulary
        Token ids of the model's own embedding.
    prompts
        Of each prompt's number, its ids.
    vectors
        What the ids from ``vocabulary`` on stand for.
    """

    parts: Backbone
    vocabulary: int
    prompts: dict[int, list[int]]
    vectors: Float[Tensor, "token width"]

    def extend(self, ids: Int[Tensor, "row time"], numbers: Sequence[int]) -> Int[Tensor, "row time"]:
        """Rows with each prompt's own ids replaced; what follows the prompt stays."""
        extended = ids.clone()
        for row, number in enumerate(numbers):
            prompt = self.prompts[number]
            extended[row, : len(prompt)] = torch.tensor(prompt, device=ids.device)
        return extended

    @contextlib.contextmanager
    def known(self) -> Iterator[None]:
        """Within the block, the model's decoder knows what the further ids stand for."""
        body: Any = self.parts.body
        own = body.get_input_embeddings()
        body.set_input_embeddings(_LongerEmbedding(own, self.vocabulary, self.vectors))
        try:
            yield
        finally:
            body.set_input_embeddings(own)


class _LongerEmbedding(nn.Module):
    """An embedding with further rows, which are not parameters: gradients flow to what they were computed from."""

    def __init__(self, own: nn.Module, vocabulary: int, vectors: Tensor) -> None:
        super().__init__()
        self.own, self.vocabulary, self.vectors = own, vocabulary, vectors

    def forward(self, ids: Tensor) -> Tensor:
        text: Tensor = self.own(ids.clamp(max=self.vocabulary - 1))
        further = ids >= self.vocabulary
        if not bool(further.any()):
            return text
        return text.masked_scatter(further[..., None], self.vectors[ids[further] - self.vocabulary].to(text.dtype))


def picture_tokens(model: Any, prompts: ImagePrompts, numbers: Sequence[int]) -> PictureTokens | None:
    """Some prompts as token ids, or None where the model is not of that kind.

    Parameters
    ----------
    model
        An image-text model, adapters included; gradients flow to what makes vectors of pictures.
    prompts
        All prompts.
    numbers
        Which of them.
    """
    parts = backbone(model)
    if sharding.on() or parts is None or not parts.decodes or _allowed.get(model) is False:
        return None
    made = _make(model, parts, prompts, list(dict.fromkeys(numbers)))
    if made is not None and _allowed.get(model) is None and len(made.vectors):
        _allowed.put(model, _proven(model, made, prompts, numbers))
    elif made is None:
        _allowed.put(model, False)
    if _allowed.get(model) is False:
        log.info("%s: pictures are more than tokens to its decoder", type(unwrapped(model)).__name__)
        return None
    return made


def _make(model: Any, parts: Backbone, prompts: ImagePrompts, numbers: list[int]) -> PictureTokens | None:
    embedding = unwrapped(model).get_input_embeddings()
    vocabulary = embedding.weight.shape[0]
    found: dict[int, list[int]] = {}
    vectors: list[Tensor] = []
    count = 0
    for places in prompts.by_kind(numbers):
        some = [numbers[place] for place in places]
        ids, mask = padded([prompts[number].ids for number in some], prompts.pad_id, embedding.weight.device)
        given = _decoder_input(model, ids, mask, prompts.inputs(some, ids.shape[1], embedding.weight))
        if given is None:
            return None
        differ = (given.detach() != embedding(ids).detach()).any(-1) & mask
        vectors.append(given[differ])
        for row, number in enumerate(some):
            own, further = ids[row, mask[row]].clone(), differ[row, mask[row]]
            own[further] = vocabulary + count + torch.arange(int(further.sum()), device=own.device)
            count += int(further.sum())
            found[number] = own.tolist()
    return PictureTokens(parts, vocabulary, found, torch.cat(vectors))


class _ReachedError(Exception):
    """Carries what a decoder was called with out of the model's forward pass."""


def _decoder_input(model: Any, ids: Tensor, mask: Tensor, inputs: dict[str, Tensor]) -> Tensor | None:
    """The vectors that the model gives to its decoder, or None where it gives anything else that matters."""

    def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _ReachedError(args, kwargs)

    handle = unwrapped(model).get_decoder().register_forward_pre_hook(stop, with_kwargs=True)
    try:
        model(input_ids=ids, attention_mask=mask.long(), use_cache=False, **inputs)
    except _ReachedError as reached:
        args, kwargs = reached.args
    else:
        return None
    finally:
        handle.remove()
    vectors = kwargs.pop("inputs_embeds", None)
    positions = kwargs.pop("position_ids", None)
    places = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    in_order = positions is None or (
        positions.shape[-1] == ids.shape[1] and positions.ndim == 2 and bool((positions == places)[mask].all())
    )
    attended = kwargs.pop("attention_mask", None)
    as_usual = attended is None or (isinstance(attended, Tensor) and attended.ndim == 2)
    kwargs.pop("cache_position", None)
    further = [value for value in (*args, *kwargs.values()) if isinstance(value, (Tensor, list, tuple, dict))]
    if vectors is None or vectors.shape[:2] != ids.shape or not in_order or not as_usual or further:
        return None
    return vectors


@torch.no_grad()
def _proven(model: Any, made: PictureTokens, prompts: ImagePrompts, numbers: Sequence[int]) -> bool:
    """Whether the decoder's logits for a prompt with pictures and an answer are those of the model itself."""
    # In half precision one difference of many may by chance be beyond the tolerance: most of a few prompts count.
    seen = [one for one in dict.fromkeys(numbers) if max(made.prompts[one]) >= made.vocabulary]
    with evaluating(model):
        agreed = [_agrees(model, made, prompts, number) for number in seen[:_PROOFS]]
    return 2 * sum(agreed) > len(agreed)


def _agrees(model: Any, made: PictureTokens, prompts: ImagePrompts, number: int) -> bool:
    own = prompts[number].ids
    ids = torch.tensor([own + own[-1:] * _PROOF_ANSWER], device=made.vectors.device)
    inputs = prompts.inputs([number], ids.shape[1], made.vectors)
    wanted = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False, **inputs).logits[0]
    try:
        with made.known():
            plan = Packed([ids.shape[1]], ids.device)
            states = made.parts.states_packed(made.extend(ids, [number])[0], plan)
        return same_logits(made.parts.logits(states), wanted)
    except (TypeError, AttributeError, ValueError, RuntimeError, IndexError) as error:
        log.info("%s can't be given pictures as tokens: %s", type(unwrapped(model)).__name__, error)
        return False


def padded(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of token ids as a right-padded batch, and where it is not padding."""
    ids = torch.full((len(rows), max(map(len, rows))), pad_id, device=device)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(list(row), device=device)
        mask[number, : len(row)] = True
    return ids, mask
