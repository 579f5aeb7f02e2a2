"""Rewards of length: a limit, a target, and the cosine that makes short right answers and long wrong ones better."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.reward.base import Reward, Text, checked_values, text_of

Unit = Literal["tokens", "characters"]


def lengths(
    completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None, unit: Unit = "tokens"
) -> Float[Tensor, " N"]:
    """How long each completion is, in tokens or characters.

    Raises
    ------
    InputError
        When tokens are to be counted and there are none, or for another unit.
    """
    if unit == "characters":
        return torch.tensor([float(len(text_of(said))) for said in completions])
    if unit != "tokens":
        raise InputError(f"unit is {unit!r}, expected tokens or characters")
    if completion_ids is None:
        raise InputError("a reward of length in tokens needs completion_ids: give them, or unit='characters'")
    return torch.tensor([float(len(ids)) for ids in completion_ids])


def length_limit(limit: int, *, soft: int = 0, unit: Unit = "tokens") -> Callable[..., list[float]]:
    r"""A reward of 0 up to the limit and -1 beyond it, falling linearly over the last ``soft`` tokens.

    .. math::
        r = -\mathrm{clip}\big((n - (\text{limit} - \text{soft})) / \text{soft},\, 0,\, 1\big)

    Parameters
    ----------
    limit
        Longest completion wanted.
    soft
        How many tokens (characters) before the limit the reward begins to fall.
    unit
        What is counted.

    Raises
    ------
    InputError
        When not ``0 <= soft <= limit`` and ``limit >= 1``.
    """
    if not (limit >= 1 and 0 <= soft <= limit):
        raise InputError(f"expected limit >= 1 and 0 <= soft <= limit, not limit {limit} and soft {soft}")

    def limited(
        completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        beyond = lengths(completions, completion_ids, unit) - (limit - soft)
        falling = (beyond / soft).clamp(0, 1) if soft else (beyond > 0).float()
        return [-value + 0.0 for value in falling.tolist()]

    limited.__name__ = f"length_limit({limit})"
    return limited


def length_target(target: int, *, unit: Unit = "tokens") -> Callable[..., list[float]]:
    r"""A reward of 0 at the target, falling to -1 with the relative distance: :math:`-\min(|n - t| / t, 1)`.

    Parameters
    ----------
    target
        Length wanted.
    unit
        What is counted.

    Raises
    ------
    InputError
        When the target is below 1.
    """
    if target < 1:
        raise InputError(f"the target length must be at least 1, not {target}")

    def near(
        completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None = None, **_: Any
    ) -> list[float]:
        far = ((lengths(completions, completion_ids, unit) - target).abs() / target).clamp(max=1)
        return [-value + 0.0 for value in far.tolist()]

    near.__name__ = f"length_target({target})"
    return near


def cosine(t: Float[Tensor, " N"], T: float, a: float, b: float) -> Float[Tensor, " N"]:
    r""":math:`b + \tfrac12 (a - b)(1 + \cos(\pi t / T))`: a at length 0, b at length T.

    Parameters
    ----------
    t
        Lengths, 0 to T.
    T
        The limit.
    a, b
        Values at the two ends.
    """
    return b + 0.5 * (a - b) * (1 + torch.cos(math.pi * t / T))


def cosine_length(
    correct: Reward,
    limit: int,
    *,
    right: tuple[float, float] = (1.0, 0.5),
    wrong: tuple[float, float] = (-1.0, -0.5),
    exceeded: float = -1.0,
    most: float | None = None,
    unit: Unit = "tokens",
) -> Callable[..., list[float | None]]:
    """A verifier whose reward falls with the length of right answers and rises with that of wrong ones.

    The papers' constants are not established; the values at the ends are set here, and are yours to choose.

    Parameters
    ----------
    correct
        The verifier: an answer is right where it says 1 or more.
    limit
        Length at which sampling stops.
    right
        Rewards of a right answer at length 0 and at the limit.
    wrong
        Rewards of a wrong answer at length 0 and at the limit.
    exceeded
        Reward at the limit and beyond, right or wrong: the answer was cut off.
    most
        What a right answer earns at most, so that the shortest are not preferred too much ("shortening reward clipped
        when the answer is correct"); ``None`` leaves the cosine as it is.
    unit
        What is counted.

    Raises
    ------
    InputError
        When the limit is below 1.

    References
    ----------
    Yeo et al., "Demystifying Long Chain-of-Thought Reasoning in LLMs", arXiv 2502.03373; used by Wen et al.,
    "Light-R1", arXiv 2503.10460.
    """
    if limit < 1:
        raise InputError(f"the limit must be at least 1, not {limit}")

    def scaled(
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        judged = checked_values(correct, prompts, completions, completion_ids=completion_ids, columns=columns)
        long = lengths(completions, completion_ids, unit)
        highest = math.inf if most is None else most
        values = {
            True: cosine(long, limit, *right).clamp(max=highest).tolist(),
            False: cosine(long, limit, *wrong).tolist(),
        }
        rewards: list[float | None] = []
        for number, (said, length) in enumerate(zip(judged, long.tolist(), strict=True)):
            within = exceeded if length >= limit else None
            rewards.append(None if said is None else values[said >= 1][number] if within is None else within)
        return rewards

    return scaled
