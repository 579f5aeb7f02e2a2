"""Samples answers to prompts with pictures from any image-text model of transformers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from thrifty.core.errors import InputError
from thrifty.lm.backbone import evaluating, unwrapped
from thrifty.lm.decode import Continuations, Uniforms, decode_fast
from thrifty.lm.draw import Draw, RowUniforms
from thrifty.lm.head import LogitTransform
from thrifty.lm.images import IMAGE_PROMPT, ImagePrompt, prompts_of
from thrifty.lm.picture_tokens import picture_tokens
from thrifty.lm.sample import rows_at_once, stop_tokens
from thrifty.lm.sampler import ModelSampler, Request
from thrifty.lm.sequences import Sequences, from_rows


@dataclass(frozen=True)
class ImageTextSampler(ModelSampler):
    """Samples from an image-text model in this process, to which the prompts were attached.

    Where pictures are no more than tokens to the model's decoder, by the same fast decoding as text; else by the
    model's own ``generate``, whose every token is drawn here, so that its probability is known.

    Parameters
    ----------
    model
        With the prompts attached; see :class:`thrifty.lm.images.ImagePrompts`.
    tokenizer
        The processor's.
    batch_size
        Rows decoded at once; None chooses.
    """

    def sample(self, prompts: Sequence[ImagePrompt], request: Request) -> Sequences:  # type: ignore[override]
        """See :class:`thrifty.lm.sampler.Sampler`; with the column ``image_prompt``.

        Raises
        ------
        InputError
            When there are no prompts, or one of them is not from an :class:`~thrifty.lm.images.ImagePrompts`.
        """
        store = prompts_of(self.model)
        if not prompts:
            raise InputError("there are no prompts")
        strange = next((prompt for prompt in prompts if not isinstance(prompt, ImagePrompt)), None)
        if strange is not None:
            raise InputError(f"{str(strange)[:60]!r} is no prompt of an ImagePrompts: add it with add(text, images)")
        n, numbers = request.n, [prompt.number for prompt in prompts]
        count, own = request.numbering or (len(prompts), range(len(prompts)))
        uniforms = RowUniforms(request.seed, count * n)
        places = torch.tensor([number * n + place for number in own for place in range(n)]).view(-1, n)
        longest = max(len(store[number].ids) for number in numbers) + request.max_new_tokens
        at_once = max(1, (self.batch_size or rows_at_once(self.model, longest)) // n)
        spoken: list[tuple[list[int], list[float], bool]] = [([], [], False)] * (len(prompts) * n)
        order = sorted(range(len(prompts)), key=lambda place: len(store[numbers[place]].ids))
        with torch.no_grad(), evaluating(self.model):
            for first in range(0, len(order), at_once):
                chosen = order[first : first + at_once]
                for some, found in self._continued(chosen, numbers, request, uniforms, places):
                    rows = [place * n + copy for place in some for copy in range(n)]
                    for row, *answer in zip(rows, found.tokens, found.logps, found.finished, strict=True):
                        spoken[row] = tuple(answer)  # type: ignore[assignment]
        asked = [number for number in numbers for _ in range(n)]
        return from_rows(
            [
                (store[number].ids + said, [False] * len(store[number].ids) + [True] * len(said))
                for number, (said, _, _) in zip(asked, spoken, strict=True)
            ],
            pad_id=store.pad_id,
            row_columns={
                IMAGE_PROMPT: asked,
                "group": [place for place in range(len(prompts)) for _ in range(n)],
                "finished": [finished for _, _, finished in spoken],
            },
            token_columns={"behaviour_logps": [logps for _, logps, _ in spoken]},
        ).to(next(self.model.parameters()).device)

    def _continued(
        self,
        chosen: Sequence[int],
        numbers: Sequence[int],
        request: Request,
        uniforms: RowUniforms,
        places: Tensor,
    ) -> Iterator[tuple[list[int], Continuations]]:
        """The answers to some prompts, batch by batch."""
        store, device = prompts_of(self.model), next(self.model.parameters()).device
        n, limit, draw = request.n, request.max_new_tokens, request.draw
        stop = stop_tokens(self.model, self.tokenizer)
        asked = [numbers[place] for place in chosen]
        tokens = picture_tokens(self.model, store, asked)
        if tokens is not None:
            drawn = partial(uniforms, rows=places[list(chosen)].flatten())
            owners = [owner for owner in range(len(chosen)) for _ in range(n)]
            batch = [tokens.prompts[number] for number in asked]
            with tokens.known():
                yield list(chosen), decode_fast(tokens.parts, batch, owners, limit, stop, draw, drawn, device)
            return
        # Equal lengths need no padding on the left, which not every model reads as nothing.
        alike: dict[Any, list[int]] = {}
        for place in chosen:
            processed = store[numbers[place]]
            alike.setdefault((len(processed.ids), processed.kind), []).append(place)
        for some in alike.values():
            drawn = partial(uniforms, rows=places[some].flatten())
            rows = [numbers[place] for place in some for _ in range(n)]
            yield some, generated(self.model, rows, limit, stop, draw, drawn)


def generated(
    model: Any, numbers: Sequence[int], limit: int, stop: frozenset[int], draw: Draw, uniforms: Uniforms
) -> Continuations:
    """Answers by the model's own ``generate``, for prompts of one kind and length.

    Parameters
    ----------
    model
        An image-text model with its prompts attached.
    numbers
        The prompt of each row.
    limit, stop, draw, uniforms
        As for :func:`thrifty.lm.decode.decode_fast`.
    """
    store, inner = prompts_of(model), unwrapped(model)
    like = inner.get_output_embeddings().weight
    ids = torch.tensor([store[number].ids for number in numbers], device=like.device)
    inputs = store.inputs(numbers, ids.shape[1], like)
    drawn = _Drawn(draw, uniforms)
    settings = GenerationConfig(
        max_new_tokens=limit, do_sample=False, eos_token_id=sorted(stop) or None, pad_token_id=store.pad_id
    )
    with _set_aside(inner):
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            generation_config=settings,
            logits_processor=LogitsProcessorList([drawn]),
            **inputs,
        )
    return drawn.result(stop)


@contextlib.contextmanager
def _set_aside(model: Any) -> Iterator[None]:
    """Without the model's own settings of generation (penalties, temperature), which would fill what is unset."""
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


class _Drawn(LogitsProcessor):
    """Draws each token, and leaves ``generate`` no other choice."""

    def __init__(self, draw: Draw, uniforms: Uniforms) -> None:
        self.draw, self.uniforms = draw, uniforms
        self.tokens: list[Tensor] = []
        self.logps: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002 (the processor's own signature)
        numbers = self.uniforms(len(self.tokens)).to(scores.device)
        tokens, logps = self.draw(scores, numbers, LogitTransform())
        self.tokens.append(tokens.cpu())
        self.logps.append(logps.cpu())
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens[:, None], 0.0)

    def result(self, stop: frozenset[int]) -> Continuations:
        """What each row said, up to its end."""
        found = Continuations([], [], [])
        for said, logps in zip(torch.stack(self.tokens, 1).tolist(), torch.stack(self.logps, 1).tolist(), strict=True):
            end = next((place + 1 for place, token in enumerate(said) if token in stop), None)
            found.tokens.append(said[:end])
            found.logps.append(logps[:end])
            found.finished.append(end is not None)
        return found
