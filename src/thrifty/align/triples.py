"""Triples of answers, gold, chosen and rejected, from responses that were scored."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

from thrifty.core.errors import InputError

_log = logging.getLogger("thrifty")
ANSWERS = ("reference", "chosen", "rejected")
"""The columns of a triple, in the order of its rows; ``reference`` is the gold answer."""


def triples_from_scores(
    records: Iterable[Mapping[str, Any]], *, chosen_rank: int = 2, rejected_rank: int | None = None
) -> list[dict[str, Any]]:
    """Triples from scored responses: the best is the gold answer, the second the chosen, the worst the rejected one.

    Prompts with fewer responses than that takes, or whose chosen response scores no more than the rejected one, are
    left out; that is said.

    Parameters
    ----------
    records
        With ``responses`` (texts) and ``scores`` (as many numbers, more is better), beside ``prompt``.
    chosen_rank
        Which is the chosen one, from 2.
    rejected_rank
        Which is the rejected one; the last when ``None``.

    Raises
    ------
    InputError
        When responses and scores of a record do not fit, a score is no finite number, or no triple can be made.
    """
    check_ranks(chosen_rank, rejected_rank)
    triples, seen = [], 0
    for number, record in enumerate(records, start=1):
        seen += 1
        responses, scores = list(record["responses"]), list(record["scores"])
        if len(responses) != len(scores):
            raise InputError(
                f"record {number} has {len(responses)} responses and {len(scores)} scores: give one for each"
            )
        for score in scores:
            if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
                raise InputError(f"record {number} has the score {score!r}: give a finite number, or leave it out")
        last = len(responses) if rejected_rank is None else rejected_rank
        if len(responses) < max(last, chosen_rank + 1):
            continue
        # Of equal scores the response that was given first comes first.
        order = sorted(range(len(scores)), key=lambda place: -scores[place])
        gold, chosen, rejected = (order[rank - 1] for rank in (1, chosen_rank, last))
        if scores[chosen] > scores[rejected]:
            answers = dict(zip(ANSWERS, (responses[place] for place in (gold, chosen, rejected)), strict=True))
            triples.append({"prompt": record["prompt"], **answers})
    if not triples:
        raise InputError(
            f"no triple can be made of {seen} records: each needs a response of rank {chosen_rank} that scores more "
            f"than {'the worst' if rejected_rank is None else f'the one of rank {rejected_rank}'}"
        )
    if len(triples) < seen:
        _log.warning("%d of %d records have too few or equally good responses: left out", seen - len(triples), seen)
    return triples


def check_ranks(chosen: int, rejected: int | None) -> None:
    """Checks that the gold answer is better than the chosen one, and that than the rejected one.

    Raises
    ------
    InputError
        When they are not in this order.
    """
    if chosen < 2:
        raise InputError(f"chosen_rank must be at least 2, not {chosen}: the best response is the gold answer")
    if rejected is not None and rejected <= chosen:
        raise InputError(f"rejected_rank must be above chosen_rank {chosen}, not {rejected}")
