"""Training data of a recipe: sources mixed by weight, cleaned of evaluation problems, and pairs from rated answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from thrifty.align.asking import Record
from thrifty.align.recipe import user_text
from thrifty.core import processes
from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.data.decontaminate import exact_overlap, ngram_overlap, shared_ngrams
from thrifty.data.overlap import OverlapReport

_log = logging.getLogger("thrifty")
_MUCH = 0.02
Matching = Literal["tokens", "ngram", "exact", "exact+ngram", "none"]


def mixed(parts: Mapping[str, Sequence[Record]], weights: Mapping[str, float], seed: int) -> list[Record]:
    """Sources together, each as often as its weight says.

    Parameters
    ----------
    parts
        Name to rows.
    weights
        1 takes all rows of a source once, 0.5 a random half of them, 2.25 each twice and a quarter of them once more.
        A source without one is left out.
    seed
        Of the choice.

    Raises
    ------
    InputError
        When a weight is not above 0 or belongs to no source, or nothing is left.
    """
    found: list[Record] = []
    for name, weight in weights.items():
        if name not in parts:
            raise InputError(f"no source {name!r} in the mix: known are {', '.join(parts)}")
        if not weight > 0:
            raise InputError(f"the weight of {name!r} must be above 0, not {weight:g}")
        rows = list(parts[name])
        copies, rest = divmod(round(weight * len(rows)), max(len(rows), 1))
        chosen = torch.randperm(len(rows), generator=generator(seed, "mix", name))[:rest]
        found += rows * copies + [rows[at] for at in sorted(chosen.tolist())]
    if not found:
        raise InputError("the mix is empty: give larger weights")
    return found


def mixes(given: str) -> list[dict[str, float]]:
    """``a.jsonl=0.5,b.jsonl; a.jsonl`` as candidate mixes: of each, files with their weights, 1 where none is said.

    Raises
    ------
    InputError
        When a weight is no number, or a candidate names no file.
    """
    candidates = []
    for text in given.split(";"):
        weights: dict[str, float] = {}
        for part in text.split(","):
            file, equals, weight = (piece.strip() for piece in part.rpartition("="))
            file, weight = (file, weight) if equals else (weight, "1")
            try:
                if file:
                    weights[file] = float(weight)
            except ValueError:
                raise InputError(f"{part.strip()!r}: the weight {weight!r} is no number; write FILE=0.5") from None
        if not weights:
            raise InputError(f"the mix {given!r} has a candidate without a file: write FILE=WEIGHT,FILE; FILE=WEIGHT")
        candidates.append(weights)
    return candidates


def decontaminated(
    rows: Sequence[Record],
    evaluations: Mapping[str, Sequence[str]],
    how: Matching,
    *,
    n: int = 8,
    threshold: float = 0.5,
    file: Path | None = None,
) -> list[Record]:
    """The rows whose user turns hold no evaluation problem.

    Parameters
    ----------
    rows
        Training data.
    evaluations
        Name to texts.
    how
        ``tokens``: more than ``threshold`` of a problem's tokens lie in n-grams that the row has too (TULU 3).
        ``ngram``: one n-gram is shared; ``exact``: the same text, as it stands or without digits and punctuation;
        ``exact+ngram``: either (Light-R1, with n = 32). ``none``: all rows are kept.
    n
        Words in an n-gram.
    threshold
        As above.
    file
        Where the report goes: what was dropped, and for which problem.

    Raises
    ------
    InputError
        When nothing is left.
    """
    if how == "none" or not any(evaluations.values()):
        return list(rows)
    texts = [user_text(row) for row in rows]
    found: list[OverlapReport] = []
    if how == "tokens":
        found.append(ngram_overlap(texts, evaluations, n=n, threshold=threshold))
    if how in ("ngram", "exact+ngram"):
        found.append(shared_ngrams(texts, evaluations, n=n))
    if how in ("exact", "exact+ngram"):
        found.append(exact_overlap(texts, evaluations))
    matches = {match.row: match for report in reversed(found) for match in report.matches}
    dropped = [vars(match) | {"text": texts[row][:200]} for row, match in sorted(matches.items())]
    shares = {name: max(report.shares[name] for report in found) for name in evaluations}
    unchecked = min(len(report.unchecked) for report in found)
    if file is not None:
        summary = {"rows": len(rows), "dropped": len(dropped), "unchecked": unchecked, "found_of": shares}
        processes.on_main(lambda: write_json(file, {**summary, "matches": dropped}))
    if dropped or unchecked:
        much = [f"{share:.1%} of {name}" for name, share in shares.items() if share > _MUCH]
        _log.warning(
            "%d of %d rows hold an evaluation problem and are dropped (%s); %d are too short to tell",
            len(dropped), len(rows), ", ".join(much) or "none of the sets by more than 2%", unchecked,
        )  # fmt: skip
    if len(dropped) == len(rows):
        raise InputError(f"all {len(rows)} rows hold an evaluation problem: look at the report, or match more strictly")
    return [row for number, row in enumerate(rows) if number not in matches]


def rated_pairs(
    prompts: Sequence[Any], answers: Sequence[Sequence[str]], ratings: Sequence[Any], seed: int
) -> list[dict[str, Any]]:
    """Preference pairs of rated answers: the best against one of the worse, drawn at random.

    Parameters
    ----------
    prompts
        What was asked.
    answers
        Of each prompt, what several models said.
    ratings
        Of each answer a number, or a list of numbers for several aspects, whose mean counts.
    seed
        Of the draw.

    Returns
    -------
    list
        With ``prompt``, ``chosen``, ``rejected`` and both ratings; none for a prompt whose answers are all as good, and
        the first of the best where several are.

    Raises
    ------
    InputError
        When a prompt has not one rating for each answer.
    """
    draw = generator(seed, "rejected answers")
    pairs = []
    for prompt, said, rated in zip(prompts, answers, ratings, strict=True):
        if len(said) != len(rated):
            raise InputError(f"{len(said)} answers with {len(rated)} ratings to {str(prompt)[:60]!r}: rate each answer")
        values = [sum(one) / len(one) if isinstance(one, Sequence) else float(one) for one in rated]
        best = max(values, default=0.0)
        worse = [number for number, value in enumerate(values) if value < best]
        if not worse:
            continue
        chosen, rejected = values.index(best), worse[int(torch.randint(len(worse), (), generator=draw))]
        pairs.append(
            {
                "prompt": prompt,
                "chosen": said[chosen],
                "rejected": said[rejected],
                "chosen_rating": best,
                "rejected_rating": values[rejected],
            }
        )
    return pairs
