"""The Fréchet mean over classes: which class is nearest, in squared distance, to what a classifier thinks likely.

Arrays of squared distances here; :mod:`thrifty.adapt.class_metric` has the spaces that need none.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.adapt.accumulator import row_chunks
from thrifty.core.errors import InputError

TIE = 1e-10
"""Scores that differ by less than this share of the largest one are equal: rounding must not choose a class."""


def frechet_scores(probs: Float[Tensor, "B K"], sq_dist: Float[Tensor, "K N"]) -> Float[Tensor, "B N"]:
    """``Σ_i p_i d²(y, λ_i)`` for each class y (equation 1 of the paper); lower is better."""
    return probs @ sq_dist


def spread(probs: Float[Tensor, "B K"], observed: Int[Tensor, " K"], classes: int) -> Float[Tensor, "B N"]:
    """The probability of each of N classes: zero for those that are not observed."""
    full = probs.new_zeros(len(probs), classes)
    full[:, observed] = probs
    return full


def first_best(scores: Float[Tensor, "B N"], likely: Float[Tensor, "B N"]) -> Int[Tensor, " B"]:
    """Where each row's lowest score is; of equal ones the likeliest, then the first.

    Parameters
    ----------
    scores
        Lower is better.
    likely
        The probability of each class.
    """
    return torch.where(tied(scores), likely, -1.0).argmax(1)


def tied(scores: Float[Tensor, "B N"]) -> Tensor:
    """Which scores are their row's lowest, up to rounding; bool ``[B, N]``."""
    return scores <= scores.amin(1, keepdim=True) + TIE * scores.abs().amax(1, keepdim=True)


def frechet_predict(
    probs: Float[Tensor, "B K"],
    sq_dist: Float[Tensor, "K N"],
    observed: Int[Tensor, " K"] | None = None,
    *,
    chunk: int | None = None,
) -> Int[Tensor, " B"]:
    """The class with the lowest :func:`frechet_scores`, for many rows without all their scores at once.

    Parameters
    ----------
    probs
        p: probabilities of the K observed classes.
    sq_dist
        Squared distances from each of them to each of N classes.
    observed
        Which of the N the K are; decides between equal scores only. Left out, the first of equal ones is taken.
    chunk
        Rows at a time; by default so many that their scores are 4 million numbers.
    """
    width = sq_dist.shape[1]
    parts = [slice(a, a + chunk) for a in range(0, len(probs), chunk)] if chunk else row_chunks(len(probs), width)
    found = []
    for part in parts:
        scores = frechet_scores(probs[part], sq_dist)
        likely = torch.zeros_like(scores) if observed is None else spread(probs[part], observed, width)
        found.append(first_best(scores, likely))
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.int64)


def sharpened(probs: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    """``p^(1/T)``, scaled to sum to one: below a temperature of 1 the likely classes gain."""
    if temperature == 1:
        return probs
    powered = (probs / probs.amax(1, keepdim=True)) ** (1 / temperature)
    return powered / powered.sum(1, keepdim=True)


def check_probabilities(probs: Tensor, classes: int) -> Float[Tensor, "B K"]:
    """Probabilities in float64 whose rows sum to one.

    Raises
    ------
    InputError
        When there is not one for each class, or a row holds NaN or a negative number, or does not sum to one.
    """
    if probs.ndim != 2 or probs.shape[1] != classes:
        raise InputError(f"probabilities must be [B, {classes}], one for each observed class, not {list(probs.shape)}")
    double = probs.double()
    bad = ~torch.isfinite(double).all(1) | (double < 0).any(1) | ((double.sum(1) - 1).abs() > 1e-3)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise InputError(
            f"row {row} holds no probabilities: it sums to {float(double[row].sum()):.4g} and its least is "
            f"{float(double[row].min()):.4g}; of logits give the softmax"
        )
    return double / double.sum(1, keepdim=True)
