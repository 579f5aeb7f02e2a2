"""Intervals for what is measured: over seeds, over pairs of seeds, and for shares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from thrifty.core.errors import InputError


class Interval(NamedTuple):
    """A mean with the two ends of its confidence interval."""

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of a mean.

    Parameters
    ----------
    values
        Independent measurements, one a seed. With a single one the interval is unbounded.
    confidence
        The share of such intervals that cover the true mean.

    Returns
    -------
    Interval
        Mean and ends, in the unit of the values.

    Raises
    ------
    InputError
        When there is no value.
    """
    count = len(values)
    if not count:
        raise InputError("an interval needs at least one value")
    mean = math.fsum(values) / count
    if count == 1:
        return Interval(mean, -math.inf, math.inf)
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * deviation / math.sqrt(count)
    return Interval(mean, mean - half, mean + half)


def paired_interval(left: Sequence[float], right: Sequence[float], confidence: float = 0.95) -> Interval:
    """The interval of the mean difference ``left - right`` of measurements that share a seed.

    Raises
    ------
    InputError
        When the two have not the same length.
    """
    if len(left) != len(right):
        raise InputError(f"paired measurements must be equally many, not {len(left)} and {len(right)}")
    return mean_interval([a - b for a, b in zip(left, right, strict=True)], confidence)


def share_interval(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """Wilson's interval of a share, such as an accuracy on ``trials`` examples.

    Raises
    ------
    InputError
        Unless ``0 <= successes <= trials`` and ``trials > 0``.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise InputError(f"{successes} of {trials} is no share")
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    # Rounding must not put the share itself outside of its interval.
    return Interval(share, min(max(0.0, centre - half), share), max(min(1.0, centre + half), share))
