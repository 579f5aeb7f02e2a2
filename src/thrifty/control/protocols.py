"""Who keeps their actions: the two ways in which the paper divides a data set, and the error of proxy labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from thrifty.control.episode import Array
from thrifty.control.episodes import Episodes
from thrifty.core.errors import InputError


@dataclass(frozen=True)
class Split:
    """Numbers of episodes, each in at most one part.

    Parameters
    ----------
    labelled
        Those that keep their actions.
    in_distribution
        Unlabelled, of the quality the labelled ones were drawn from.
    out_of_distribution
        Unlabelled, of another quality.
    """

    labelled: Array
    in_distribution: Array
    out_of_distribution: Array

    @property
    def unlabelled(self) -> Array:
        """Numbers of all episodes that lose their actions."""
        return np.sort(np.concatenate([self.in_distribution, self.out_of_distribution]))

    def hide(self, episodes: Episodes) -> Episodes:
        """The episodes of this split in their order, the unlabelled ones without actions; others are left out."""
        chosen = np.sort(np.concatenate([self.labelled, self.unlabelled]))
        return episodes.subset(chosen).without_actions(~np.isin(chosen, self.labelled))


def coupled_split(episodes: Episodes, share: float = 0.1, quantile: float = 0.5, seed: int = 0) -> Split:
    """Labels for a share of all episodes, drawn from those with the lowest returns.

    Parameters
    ----------
    episodes
        All of them.
    share
        Labelled episodes, as a share of all.
    quantile
        The labelled ones are drawn uniformly from this share of the episodes, lowest returns first.
    seed
        Decides which.

    Returns
    -------
    Split
        ``in_distribution``: the rest of the low-return part; ``out_of_distribution``: the other part.

    Raises
    ------
    InputError
        When the low-return part has too few episodes.
    """
    order = np.argsort(episodes.returns(), kind="stable")
    bottom = int(quantile * len(episodes))
    count = max(round(share * len(episodes)), 1)
    if not 0 < share <= 1 or not 0 < quantile <= 1 or count > bottom:
        raise InputError(
            f"{count} labelled episodes can't be drawn from the {bottom} with the lowest returns (share {share}, "
            f"quantile {quantile}, {len(episodes)} episodes): give a smaller share or a larger quantile"
        )
    chosen = np.random.default_rng(seed).permutation(bottom)[:count]
    rest = np.setdiff1d(np.arange(bottom), chosen)
    return Split(np.sort(order[chosen]), np.sort(order[rest]), np.sort(order[bottom:]))


def decoupled_split(
    episodes: Episodes,
    labelled_share: float = 0.1,
    labelled_quality: tuple[float, float] = (0.0, 1.0),
    unlabelled_share: float = 0.5,
    unlabelled_quality: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Split:
    """Size and quality of the labelled and of the unlabelled part chosen independently.

    Parameters
    ----------
    episodes
        All of them; those in neither part are left out.
    labelled_share, unlabelled_share
        Episodes in each part, as a share of all.
    labelled_quality, unlabelled_quality
        The range of quantiles of the return that each part is drawn from, uniformly.
    seed
        Decides which.

    Returns
    -------
    Split
        ``in_distribution``: unlabelled ones whose return lies in the labelled quality's range.

    Raises
    ------
    InputError
        When a range holds too few episodes.
    """
    order = np.argsort(episodes.returns(), kind="stable")
    total, generator = len(episodes), np.random.default_rng(seed)
    low, high = (round(q * total) for q in labelled_quality)
    taken = _draw("labelled", np.arange(low, high), labelled_share, total, generator)
    first, last = (round(q * total) for q in unlabelled_quality)
    free = np.setdiff1d(np.arange(first, last), taken)
    hidden = _draw("unlabelled", free, unlabelled_share, total, generator)
    inside: Bool[np.ndarray, " hidden"] = (hidden >= low) & (hidden < high)
    return Split(np.sort(order[taken]), np.sort(order[hidden[inside]]), np.sort(order[hidden[~inside]]))


def _draw(part: str, pool: Array, share: float, total: int, generator: np.random.Generator) -> Array:
    count = max(round(share * total), 1)
    if count > len(pool):
        raise InputError(
            f"{count} {part} episodes can't be drawn from the {len(pool)} of that quality: give a smaller share or a "
            "wider range of quality"
        )
    return generator.permutation(pool)[:count]


def label_mse(truth: Episodes, proxy: Episodes, numbers: Sequence[int] | Array) -> float:
    """Mean squared error of proxy actions against true ones, over all steps and dimensions, in squared action units.

    Parameters
    ----------
    truth, proxy
        The same episodes, with true and with proxy actions.
    numbers
        Which of them; NaN when there are none.
    """
    errors: list[Array] = []
    for number in numbers:
        true, guess = truth[int(number)].actions, proxy[int(number)].actions
        if true is None or guess is None:
            raise InputError(f"episode {int(number)} has no actions to compare")
        errors.append(np.square(true - guess).ravel())
    return float(np.concatenate(errors).mean()) if errors else float("nan")
