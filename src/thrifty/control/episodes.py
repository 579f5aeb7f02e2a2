"""Logged episodes: the data of this room, in the layout of Minari.

An episode of T steps has T + 1 observations and T actions, rewards, terminations and truncations. An episode whose
actions are unknown has ``actions=None``; all else is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from thrifty.control.episode import Array, Episode, check, check_actions
from thrifty.control.transitions import Spaces, Transitions
from thrifty.core.errors import InputError


class Episodes(Sequence[Episode]):
    """A checked list of episodes of one environment.

    Parameters
    ----------
    episodes
        At least one.
    low, high
        Bounds of the action space, one number for all dimensions or one each. Without them they are [-1, 1] if
        all actions lie inside, else the least and greatest action that occurs.

    Raises
    ------
    InputError
        When there is no episode, or when one has arrays that do not fit together, a value that is not finite, other
        dimensions than the rest, or an action outside the bounds; the message names episode, array and step.
    """

    def __init__(
        self, episodes: Iterable[Episode], low: ArrayLike | None = None, high: ArrayLike | None = None
    ) -> None:
        self._episodes = list(episodes)
        if not self._episodes:
            raise InputError("there are no episodes: the data set is empty")
        first = self._episodes[0]
        for number, episode in enumerate(self._episodes):
            check(number, episode)
            if episode.observations.shape[1] != first.observations.shape[1]:
                raise InputError(
                    f"episode {number}: observations have {episode.observations.shape[1]} numbers, those of episode 0 "
                    f"have {first.observations.shape[1]}: all episodes must come from one environment"
                )
        sizes = {e.actions.shape[1]: n for n, e in reversed(list(enumerate(self._episodes))) if e.actions is not None}
        if len(sizes) > 1:
            raise InputError(f"actions have {sorted(sizes)} numbers (episodes {sorted(sizes.values())}): give one kind")
        self.low, self.high = self._bounds(low, high)
        if self.low is not None and self.high is not None:
            for number, episode in enumerate(self._episodes):
                check_actions(number, episode, self.low, self.high)

    def _bounds(self, low: ArrayLike | None, high: ArrayLike | None) -> tuple[Array | None, Array | None]:
        actions = [episode.actions for episode in self._episodes if episode.actions is not None]
        if low is None or high is None:
            if not actions:
                return None, None
            least = np.min([a.min(0) for a in actions], 0)
            greatest = np.max([a.max(0) for a in actions], 0)
            if least.min() >= -1 and greatest.max() <= 1:
                least, greatest = -np.ones_like(least), np.ones_like(greatest)
            low = least if low is None else low
            high = greatest if high is None else high
        size = actions[0].shape[1] if actions else np.broadcast(np.atleast_1d(low), np.atleast_1d(high)).shape[0]
        try:
            bounds = [np.broadcast_to(np.asarray(b, dtype=np.float32), (size,)).copy() for b in (low, high)]
        except ValueError as error:
            raise InputError(f"action bounds {low!r} and {high!r} do not fit actions of {size} numbers") from error
        if not (np.isfinite(bounds).all() and (bounds[0] < bounds[1]).all()):
            raise InputError(f"action bounds must be finite with low < high, not {bounds[0]} and {bounds[1]}")
        return bounds[0], bounds[1]

    @overload
    def __getitem__(self, index: int) -> Episode: ...
    @overload
    def __getitem__(self, index: slice) -> Episodes: ...
    def __getitem__(self, index: int | slice) -> Episode | Episodes:
        return self.like(self._episodes[index]) if isinstance(index, slice) else self._episodes[index]

    def __len__(self) -> int:
        return len(self._episodes)

    def __iter__(self) -> Iterator[Episode]:
        return iter(self._episodes)

    def __add__(self, other: Episodes) -> Episodes:
        return self.like([*self, *other])

    def __repr__(self) -> str:
        return f"Episodes({len(self)} episodes, {self.steps} steps, {int(self.labelled.sum())} with actions)"

    def like(self, episodes: Iterable[Episode]) -> Episodes:
        """Other episodes in the same action space."""
        return Episodes(episodes, self.low, self.high)

    def subset(self, numbers: Iterable[int]) -> Episodes:
        """The episodes with these numbers, in this order."""
        return self.like([self._episodes[int(number)] for number in numbers])

    @property
    def steps(self) -> int:
        """Steps of all episodes together."""
        return sum(episode.steps for episode in self)

    @property
    def labelled(self) -> Array:
        """bool ``[episodes]``: which have actions."""
        return np.array([episode.actions is not None for episode in self])

    def spaces(self) -> Spaces:
        """Sizes and bounds.

        Raises
        ------
        InputError
            When neither actions nor bounds say what the action space is.
        """
        if self.low is None or self.high is None:
            raise InputError("no episode has actions: give at least one that has, or the bounds of the action space")
        return Spaces(self[0].observations.shape[1], tuple(self.low.tolist()), tuple(self.high.tolist()))

    def returns(self) -> Float[np.ndarray, " episodes"]:
        """Sum of rewards of each episode, undiscounted."""
        return np.array([episode.rewards.sum(dtype=np.float64) for episode in self])

    def observations(self) -> Float[np.ndarray, "steps observation"]:
        """All observations of all episodes, last ones included."""
        return np.concatenate([episode.observations for episode in self])

    def transitions(self) -> Transitions:
        """All steps of all episodes as flat tensors, in order.

        Raises
        ------
        InputError
            When an episode has no actions.
        """
        missing = np.flatnonzero(~self.labelled)
        if len(missing):
            raise InputError(
                f"episode {missing[0]} has no actions ({len(missing)} of {len(self)} have none): fill them in first "
                "(SSORL does), or leave those episodes out"
            )
        lengths = [episode.steps for episode in self]
        return Transitions(
            observation=_join(episode.observations[:-1] for episode in self),
            action=_join(episode.actions for episode in self if episode.actions is not None),
            reward=_join(episode.rewards for episode in self),
            next_observation=_join(episode.observations[1:] for episode in self),
            terminal=_join(episode.terminations.astype(np.float32) for episode in self),
            episode=torch.repeat_interleave(torch.arange(len(self)), torch.tensor(lengths)),
            step=torch.cat([torch.arange(length) for length in lengths]),
        )

    def split(self, share: float, seed: int = 0) -> tuple[Episodes, Episodes]:
        """Two parts by whole episodes, so that no neighbour of a held-out step stays behind.

        Parameters
        ----------
        share
            Share of the episodes in the second part, in (0, 1); at least one episode goes to each part.
        seed
            Decides which.

        Raises
        ------
        InputError
            When there are fewer than two episodes, or the share is out of range.
        """
        if not 0 < share < 1:
            raise InputError(f"the share to hold out must lie between 0 and 1, not {share}")
        if len(self) < 2:
            raise InputError("one episode can't be split: give at least two, so that one can be held out")
        order = np.random.default_rng(seed).permutation(len(self))
        held = min(max(round(share * len(self)), 1), len(self) - 1)
        return self.subset(sorted(order[held:])), self.subset(sorted(order[:held]))

    def without_actions(self, mask: ArrayLike | None = None) -> Episodes:
        """The same episodes, the actions of those in ``mask`` (all by default) taken away.

        Parameters
        ----------
        mask
            bool ``[episodes]``.
        """
        chosen = np.ones(len(self), dtype=bool) if mask is None else np.asarray(mask, dtype=bool)
        if chosen.shape != (len(self),):
            raise InputError(f"the mask should have shape [{len(self)}], not {list(chosen.shape)}")
        pairs = zip(self, chosen, strict=True)
        return self.like(dataclasses.replace(e, actions=None) if gone else e for e, gone in pairs)

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, atomically; :meth:`load` reads it."""
        from thrifty.control.files import save_episodes

        save_episodes(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Episodes:
        """Reads episodes: what :meth:`save` wrote, an NPZ file, or a Minari data set (see :mod:`.files`)."""
        from thrifty.control.files import load_episodes

        return load_episodes(Path(path))

    @classmethod
    def from_minari(cls, source: Any, low: ArrayLike | None = None, high: ArrayLike | None = None) -> Episodes:
        """Episodes of a Minari data set: its path, the data set, or an iterable of its episodes.

        Parameters
        ----------
        source
            A path, or anything whose items have ``observations``, ``actions``, ``rewards``, ``terminations`` and
            ``truncations`` as attributes or keys.
        low, high
            As for :class:`Episodes`; by default those of the data set's ``action_space``, where it has one.
        """
        from thrifty.control.files import episodes_from_minari

        return episodes_from_minari(source, low, high)


def _join(parts: Iterable[Array]) -> Tensor:
    return torch.from_numpy(np.concatenate(list(parts)))
