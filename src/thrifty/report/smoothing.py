"""What makes a long, noisy curve readable: a smoothed one beside it, and fewer points with the same outline."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

_FEWEST = 20  # values below which every one is worth seeing


def is_noisy(values: Float[np.ndarray, " time"]) -> bool:
    """Whether a curve turns around so often that smoothing it helps: at more than a fifth of its values."""
    turns = np.diff(np.sign(np.diff(values))) != 0
    return len(values) >= _FEWEST and bool(turns.mean() > 0.2)


def smoothed(values: Float[np.ndarray, " time"], window: float) -> NDArray[np.float64]:
    """The mean of an exponential moving average forwards and one backwards, so that nothing lags.

    Each is ``s_t = (Σ_k a^k x_{t-k}) / (Σ_k a^k)`` with ``a = 1 - 1 / window``, which has no pull towards its start.

    Parameters
    ----------
    values
        Finite numbers.
    window
        The mean age of what is averaged, in values; at least 1.

    Returns
    -------
    ndarray
        As many numbers.
    """
    return (_average(values, window) + _average(values[::-1], window)[::-1]) / 2


def _average(values: Float[np.ndarray, " time"], window: float) -> NDArray[np.float64]:
    from scipy.signal import lfilter

    filters = [1.0], [1.0, 1 / window - 1]
    return np.asarray(lfilter(*filters, values) / lfilter(*filters, np.ones_like(values)), dtype=np.float64)


def extremes(
    steps: NDArray[np.float64], values: NDArray[np.float64], points: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most about ``points`` points of a curve that keep its outline: the least and the largest of each stretch."""
    if len(values) <= points:
        return steps, values
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), points // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    order = sorted(kept)
    return steps[order], values[order]
