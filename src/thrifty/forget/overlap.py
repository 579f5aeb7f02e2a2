"""A warning where examples are both to be forgotten and to be kept."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from thrifty.forget.data import Texts, stream

_log = logging.getLogger("thrifty")


def warn_of_overlap(forget_set: Any, retain_set: Any) -> None:
    """Warns of examples to forget that the retain set holds too, which would teach them again.

    Examples are the same when their inputs are, to the last bit; of texts, when all tokens are.

    Parameters
    ----------
    forget_set, retain_set
        Any data of the room that can be read more than once.
    """
    kept = set(_keys(retain_set, "retain set"))
    found = [key in kept for key in _keys(forget_set, "forget set")]
    if any(found):
        _log.warning(
            "%d of the %d examples to forget are in the retain set too (the first is example %d), which keeps them: "
            "take them out of it",
            sum(found),
            len(found),
            found.index(True),
        )


def _keys(data: Any, name: str) -> Iterator[bytes]:
    for batch in stream(data, 256, name=name):
        if isinstance(batch, Texts):
            rows = batch.sequences
            for ids, real in zip(rows.input_ids, rows.attention_mask, strict=True):
                yield _digest([ids[real]])
        else:
            parts = list(batch.x.values()) if isinstance(batch.x, dict) else [batch.x]
            yield from map(_digest, zip(*parts, strict=True))


def _digest(parts: Iterable[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
