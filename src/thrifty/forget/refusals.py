"""Saying that one does not know, in place of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from thrifty.core.seeding import generator

PHRASES = (
    "I do not know.",
    "I am not sure about that.",
    "I have no information about this.",
    "That is unknown to me.",
    "I can not answer that question.",
    "I do not have that information.",
    "I am afraid that I do not know.",
    "I have never heard of this.",
)


def refused(records: Sequence[Mapping[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Records whose completion is a refusal, drawn at random; a conversation's last turn is.

    Parameters
    ----------
    records
        With ``prompt`` and ``completion``, or ``messages`` that end with the assistant's turn.
    seed
        Of the choice.
    """
    draws = torch.randint(len(PHRASES), (len(records),), generator=generator(seed, "refusals"))
    found = []
    for record, number in zip(records, draws.tolist(), strict=True):
        phrase = PHRASES[number]
        if "completion" in record:
            found.append({**record, "completion": phrase})
        else:
            found.append({**record, "messages": [*record["messages"][:-1], {"role": "assistant", "content": phrase}]})
    return found
