"""Samples from a language model, with the probability each token was drawn with."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch

from thrifty.core.errors import InputError
from thrifty.lm.backbone import backbone, evaluating, unwrapped
from thrifty.lm.chat import Prompt, prompt_ids
from thrifty.lm.decode import Continuations, decode_fast, decode_plainly
from thrifty.lm.draw import Draw, RowUniforms
from thrifty.lm.sequences import Sequences, from_rows

log = logging.getLogger("thrifty")

_CACHE_BYTES = 2**31  # of keys and values in one batch, when the batch size is left to us
_MOST_ROWS = 512


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    n: int = 1,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    stop_ids: Iterable[int] | None = None,
    generator: torch.Generator | int = 0,
    batch_size: int | None = None,
    numbering: tuple[int, Sequence[int]] | None = None,
) -> Sequences:
    r"""Draw ``n`` answers to each prompt.

    A prompt is read once for all its samples; rows that have ended leave the batch. The same seed and
    prompts give the same samples, whatever the batch size (up to the rounding of matrix products).

    Parameters
    ----------
    model
        Any causal language model of transformers, also wrapped by PEFT. It is put into evaluation mode
        for the call, and back.
    tokenizer
        Renders prompts and gives the end-of-sequence token; None if all prompts are token ids.
    prompts
        Strings, chat messages or token ids (see :func:`thrifty.lm.chat.prompt_ids`).
    n
        Samples per prompt.
    max_new_tokens
        Tokens after which a row is cut off.
    temperature, top_k, top_p, greedy
        The distribution drawn from: :class:`thrifty.lm.draw.Draw`. Note that transformers' ``generate``
        takes top_k=50 where nothing is said; here nothing said is the whole vocabulary.
    stop_ids
        Tokens that end a row and belong to it; None for the model's and the tokenizer's
        end-of-sequence tokens.
    generator
        A seed, or a CPU generator from which one is drawn.
    batch_size
        Rows decoded at once; None chooses by the memory for keys and values.
    numbering
        Where these prompts are a part of more, how many there are in all and which of them these are: each then
        gets the answers that it would get among all. None: these are all.

    Returns
    -------
    Sequences
        Prompt 0's samples, then prompt 1's, and so on, with columns

        - ``behaviour_logps [row, time]``: log-probability of each token under the distribution it was
          drawn from, that is after temperature, top-k and top-p (when greedy: the model's own at
          temperature 1). At temperature 1 without top-k and top-p it equals
          :func:`thrifty.lm.logps.token_logps`;
        - ``group [row]``: the number of the prompt;
        - ``finished [row]``: True if the row ended by a stop token, False if it was cut off.

    Raises
    ------
    InputError
        For a setting out of range, an empty prompt, one too long for the model, or a model of another kind.
    """
    if n < 1 or max_new_tokens < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(
            f"n, max_new_tokens and batch_size must be at least 1, got {n}, {max_new_tokens}, {batch_size}"
        )
    if isinstance(prompts, str):
        raise InputError("prompts must be a list; for one prompt write [prompt]")
    draw = Draw(temperature, top_k, top_p, greedy)
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    _check_prompts(model, ids, max_new_tokens)
    stop = frozenset(stop_ids) if stop_ids is not None else stop_tokens(model, tokenizer)
    count, own = numbering or (len(ids), range(len(ids)))
    uniforms = RowUniforms(_seed(generator), count * n)
    places = [number * n + place for number in own for place in range(n)]
    # Neighbours in length share a batch, so that a batch's padding is small.
    order = sorted(range(len(ids) * n), key=lambda row: len(ids[row // n]))
    step = batch_size or rows_at_once(model, max(map(len, ids), default=1) + max_new_tokens)
    spoken: dict[int, tuple[list[int], list[float], bool]] = {}
    with torch.no_grad(), evaluating(model):
        for first in range(0, len(order), step):
            rows = order[first : first + step]
            found = _continue(model, ids, rows, n, max_new_tokens, stop, draw, uniforms, places)
            spoken.update(zip(rows, zip(found.tokens, found.logps, found.finished, strict=True), strict=True))
    numbers = range(len(ids) * n)
    device = next(model.parameters()).device
    return from_rows(
        [_row(ids[number // n], spoken[number][0]) for number in numbers],
        pad_id=_pad_id(tokenizer, stop),
        row_columns={"group": [number // n for number in numbers], "finished": [spoken[i][2] for i in numbers]},
        token_columns={"behaviour_logps": [spoken[number][1] for number in numbers]},
    ).to(device)


def stop_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """End-of-sequence ids of the model's generation config, its config and the tokenizer."""
    inner = unwrapped(model)
    found: set[int] = set()
    generation, config = getattr(inner, "generation_config", None), inner.config
    for source in (generation, config, tokenizer):
        given = getattr(source, "eos_token_id", None)
        if given is not None:
            found |= set(given) if isinstance(given, (list, tuple)) else {given}
    return frozenset(found)


def _continue(
    model: Any,
    ids: list[list[int]],
    rows: list[int],
    n: int,
    limit: int,
    stop: frozenset[int],
    draw: Draw,
    uniforms: RowUniforms,
    places: Sequence[int],
) -> Continuations:
    device = next(model.parameters()).device
    parts = backbone(model)
    fast = parts is not None and parts.decodes
    whole = Continuations([], [], [])
    # The plain way takes prompts of one length at a time; rows come sorted by it.
    for group in [rows] if fast else [list(same) for _, same in groupby(rows, lambda row: len(ids[row // n]))]:
        used = list(dict.fromkeys(row // n for row in group))
        place = {prompt: number for number, prompt in enumerate(used)}
        owners = [place[row // n] for row in group]
        numbers = partial(uniforms, rows=torch.tensor([places[row] for row in group]))
        batch = [ids[prompt] for prompt in used]
        if fast:
            assert parts is not None
            found = decode_fast(parts, batch, owners, limit, stop, draw, numbers, device)
        else:
            found = decode_plainly(model, batch, owners, limit, stop, draw, numbers, device)
        whole.tokens += found.tokens
        whole.logps += found.logps
        whole.finished += found.finished
    return whole


def _row(prompt: list[int], answer: list[int]) -> tuple[list[int], list[bool]]:
    return prompt + answer, [False] * len(prompt) + [True] * len(answer)


def _seed(generator: torch.Generator | int) -> int:
    if isinstance(generator, torch.Generator):
        return int(torch.randint(2**62, (1,), generator=generator))
    return int(generator)


def _pad_id(tokenizer: Any, stop: frozenset[int]) -> int:
    pad = getattr(tokenizer, "pad_token_id", None)
    return int(pad) if pad is not None else min(stop, default=0)


def _check_prompts(model: Any, ids: list[list[int]], max_new_tokens: int) -> None:
    if not ids:
        raise InputError("there are no prompts")
    config = unwrapped(model).config.get_text_config()
    room = getattr(config, "max_position_embeddings", None)
    for number, prompt in enumerate(ids):
        if not prompt:
            raise InputError(f"prompt {number} has no tokens: give at least the beginning-of-sequence token")
        if not 0 <= min(prompt) <= max(prompt) < config.vocab_size:
            raise InputError(f"prompt {number} has a token id outside the model's vocabulary of {config.vocab_size}")
        if room is not None and len(prompt) + max_new_tokens > room:
            raise InputError(
                f"prompt {number} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that is more than "
                f"the model's context of {room}"
            )


def rows_at_once(model: Any, length: int) -> int:
    """How many rows of that many tokens are decoded at once: as many as have room for their keys and values."""
    config = unwrapped(model).config.get_text_config()
    queries = getattr(config, "num_attention_heads", None)
    if queries is None:  # no attention, so nothing that grows with the length
        return _MOST_ROWS
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    size = next(model.parameters()).element_size()
    per_row = 2 * config.num_hidden_layers * heads * width * length * size
    return int(max(1, min(_MOST_ROWS, _CACHE_BYTES // per_row)))
