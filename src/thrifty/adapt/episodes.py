"""Few-shot episodes as one batch of tensors: a few labelled examples and the queries of thousands of tasks at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.design import Design, draw_rows
from thrifty.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Episodes:
    """T few-shot tasks of one shape.

    Parameters
    ----------
    support
        Features of the labelled examples, ``[T, Ns, D]``.
    support_labels
        Their classes, int64 ``[T, Ns]``, 0 to K - 1; each class has at least one example.
    query
        Features of the unlabelled examples, ``[T, Nq, D]``.
    query_labels
        Their classes, int64 ``[T, Nq]``, where they are known.
    classes
        K.
    names
        What the classes are called: ``[K]`` where all episodes share them, ``[T, K]`` where each has its own.
    centre
        ``[D]``: the mean feature of the classes the encoder was trained on, where it is known.

    Raises
    ------
    InputError
        When shapes don't fit together, a label is out of range, or a class has no support; for NaN or infinity.
    """

    support: Float[Tensor, "T Ns D"]
    support_labels: Int[Tensor, "T Ns"]
    query: Float[Tensor, "T Nq D"]
    query_labels: Int[Tensor, "T Nq"] | None
    classes: int
    names: Labels | None = None
    centre: Float[Tensor, " D"] | None = None

    def __post_init__(self) -> None:
        support, query = self.support, self.query
        if support.ndim != 3 or query.ndim != 3 or 0 in support.shape or 0 in query.shape:
            raise InputError(
                f"episodes must be support [T, Ns, D] and query [T, Nq, D], not {list(support.shape)} and "
                f"{list(query.shape)}"
            )
        if support.shape[0] != query.shape[0] or support.shape[2] != query.shape[2]:
            raise InputError(f"support {list(support.shape)} and query {list(query.shape)} must share T and D")
        for part, features, labels in (
            ("support", support, self.support_labels),
            ("query", query, self.query_labels),
        ):
            if labels is None:
                continue
            if labels.shape != features.shape[:2]:
                raise InputError(
                    f"{part} labels must be {list(features.shape[:2])} like the features, not {list(labels.shape)}"
                )
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.classes:
                raise InputError(f"{part} labels must be 0 to {self.classes - 1}, not {low if low < 0 else high}")
        missing = self.counts() == 0
        if missing.any():
            episode, name = missing.nonzero()[0].tolist()
            raise InputError(f"class {self.name(episode, name)} of episode {episode} has no support example")
        for part, features in (("support", support), ("query", query)):
            bad = ~torch.isfinite(features.sum(2))
            if bad.any():
                episode, row = bad.nonzero()[0].tolist()
                raise InputError(f"{part} feature {row} of episode {episode} holds NaN or infinity")

    @classmethod
    def single(cls, support: Any, support_labels: Any, query: Any, query_labels: Any = None) -> Self:
        """One task from arrays, its classes named as the user names them.

        Parameters
        ----------
        support
            ``[Ns, D]``.
        support_labels
            ``[Ns]`` integers or strings.
        query
            ``[Nq, D]``.
        query_labels
            ``[Nq]``, where they are known.

        Raises
        ------
        InputError
            When a query's label has no support, or as for the class.
        """
        names = as_labels(support_labels)
        found = np.unique(names)
        truth = None
        if query_labels is not None:
            given = as_labels(query_labels)
            strange = np.setdiff1d(given, found).tolist()
            if strange:
                raise InputError(f"class {strange[0]!r} of the queries has no support example")
            truth = torch.from_numpy(np.searchsorted(found, given))[None]
        tensors = [_float(part)[None] for part in (support, query)]
        codes = torch.from_numpy(np.searchsorted(found, names))[None]
        return cls(tensors[0], codes, tensors[1], truth, len(found), found)

    def __len__(self) -> int:
        return len(self.support)

    @property
    def shots(self) -> int:
        """The fewest support examples of a class."""
        return int(self.counts().min())

    def counts(self) -> Int[Tensor, "T K"]:
        """How many support examples each class has."""
        return torch.nn.functional.one_hot(self.support_labels, self.classes).sum(1)

    def name(self, episode: int, label: int) -> Any:
        """What a class of an episode is called."""
        if self.names is None:
            return label
        return (self.names if self.names.ndim == 1 else self.names[episode])[label]

    def take(self, rows: slice | Tensor) -> Episodes:
        """Some of the episodes."""
        own = self.names is not None and self.names.ndim == 2
        return self._derived(
            support=self.support[rows],
            support_labels=self.support_labels[rows],
            query=self.query[rows],
            query_labels=None if self.query_labels is None else self.query_labels[rows],
            names=self.names[rows] if own and self.names is not None else self.names,
        )

    def parts(self, episodes: int) -> Iterator[Episodes]:
        """All of them, so many at a time."""
        return (self.take(slice(start, start + episodes)) for start in range(0, len(self), max(episodes, 1)))

    def with_features(self, support: Tensor, query: Tensor) -> Episodes:
        """The same tasks with other features ``[T, Ns, D']`` and ``[T, Nq, D']``, which are taken as they are."""
        return self._derived(support=support, query=query, centre=None)

    def to(self, device: torch.device | str) -> Episodes:
        """All tensors on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return self._derived(**moved)

    def _derived(self, **changes: Any) -> Episodes:
        # Checks read all features, which costs as much as a round of a method: they are for what comes from outside.
        found = object.__new__(Episodes)
        found.__dict__.update(vars(self) | changes)
        return found

    def accuracy(self, labels: Int[Tensor, "T Nq"]) -> Float[Tensor, " T"]:
        """The share of each episode's queries that got their class.

        Raises
        ------
        InputError
            When the classes of the queries are not known.
        """
        if self.query_labels is None:
            raise InputError("the queries have no labels, so there is no accuracy")
        return (labels == self.query_labels).double().mean(1)


def draw_episodes(
    features: Any,
    labels: Any,
    design: Design,
    count: int,
    *,
    seed: int = 0,
    centre: Float[Tensor, " D"] | None = None,
) -> Episodes:
    """Episodes from labelled features, all drawn at once; support and queries of an episode never share an example.

    Parameters
    ----------
    features
        ``[N, D]``, NumPy or torch.
    labels
        ``[N]``.
    design
        What each episode looks like.
    count
        T.
    seed
        Of the draws.
    centre
        See :class:`Episodes`.

    Raises
    ------
    InputError
        When there are too few classes, or a class has too few examples; it is named.
    """
    if count < 1:
        raise InputError(f"at least 1 episode is needed, not {count}")
    names = as_labels(labels)
    x = _float(features)
    if x.ndim != 2 or len(x) != len(names):
        raise InputError(f"features must be [N, D] with N labels, not {list(x.shape)} with {len(names)} labels")
    classes, codes = np.unique(names, return_inverse=True)
    support, query, chosen, truth = draw_rows(codes, design, count, seed=seed)
    ways, shots = chosen.shape[1], design.shots
    given = torch.arange(ways).repeat_interleave(shots).expand(count, -1)
    return Episodes(
        x[torch.from_numpy(support).to(x.device)],
        given.to(x.device),
        x[torch.from_numpy(query).to(x.device)],
        torch.from_numpy(truth).to(x.device),
        ways,
        classes[chosen],
        centre,
    )


def _float(features: Any) -> Tensor:
    tensor = features.detach() if isinstance(features, Tensor) else torch.from_numpy(np.asarray(features))
    return tensor if tensor.is_floating_point() else tensor.float()
