"""Per-class sums and counts of features: all that a classifier by class means has to remember.

Shared by every method of the room whose prototypes are means. Adding is a sum, so the order and the grouping of
what was added leave no trace, and two accumulators of two parts of the data merge into that of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from thrifty.core.errors import InputError, nearest

CHUNK = 1 << 22
"""Numbers of a float64 working copy that are held at once (32 MiB)."""

Labels = NDArray[Any]


def row_chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices over ``rows`` whose parts hold about :data:`CHUNK` numbers of ``width`` each."""
    step = max(CHUNK // max(width, 1), 1)
    return (slice(start, start + step) for start in range(0, rows, step))


def precise(device: torch.device) -> torch.device:
    """The device itself where it knows float64, else the CPU."""
    return torch.device("cpu") if device.type == "mps" else device


def as_labels(labels: Any) -> Labels:
    """Labels of any kind (list, array, tensor) as a NumPy vector.

    Raises
    ------
    InputError
        When they are no vector, or neither integers, booleans, strings nor finite numbers.
    """
    array = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
    if array.ndim != 1:
        raise InputError(f"labels must be one value per example, not an array of shape {array.shape}")
    if array.dtype.kind == "O":
        kinds = {type(label).__name__ for label in array.tolist()}
        if kinds - {"str", "str_"}:
            raise InputError(f"labels must be integers or strings, not {' and '.join(sorted(kinds))}")
    elif array.dtype.kind not in "biufU":
        raise InputError(f"labels must be integers or strings, not {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("labels hold NaN or infinity: every example needs a class")
    return array


def grow(classes: Labels | None, labels: Labels) -> tuple[Labels, NDArray[np.int64]]:
    """The sorted union of known classes and labels, and where the known ones are in it.

    Parameters
    ----------
    classes
        The C known classes, sorted; ``None`` when there are none yet.
    labels
        Labels of examples, or classes to come.

    Returns
    -------
    classes
        Their C' >= C sorted union.
    positions
        int64 ``[C]``: where each known class is in it.

    Raises
    ------
    InputError
        When numbers meet strings.
    """
    found = np.unique(labels)
    if classes is None:
        return found, np.empty(0, dtype=np.int64)
    if not len(classes):
        return found, np.empty(0, dtype=np.int64)
    if len(found) and (classes.dtype.kind in "UO") != (found.dtype.kind in "UO"):
        raise InputError(f"the classes so far are like {classes[0]!r}, the new labels like {found[0]!r}")
    union = np.union1d(classes, found)
    return union, np.searchsorted(union, classes).astype(np.int64)


class ClassAccumulator:
    """Sum and count of the features of each class, in float64; classes are added as they come.

    .. math:: S_c = \\sum_{i: y_i = c} z_i, \\qquad n_c = |\\{i: y_i = c\\}|, \\qquad \\mu_c = S_c / n_c

    Parameters
    ----------
    dimension
        D, the length of a feature vector.
    device
        Where the sums live; features on other devices are moved there. A device without float64 gives way to the CPU.

    Attributes
    ----------
    classes : ndarray
        The C classes so far, sorted; ``None`` before the first. A class can be announced with no example yet.
    sums : Tensor
        float64 ``[C, D]``.
    counts : Tensor
        int64 ``[C]``.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        if dimension < 1:
            raise InputError(f"features must have at least one column, not {dimension}")
        place = precise(torch.device(device))
        self.classes: Labels | None = None
        self.sums: Float[Tensor, "C D"] = torch.zeros(0, dimension, dtype=torch.float64, device=place)
        self.counts: Int[Tensor, " C"] = torch.zeros(0, dtype=torch.int64, device=place)
        self._means: Tensor | None = None

    @property
    def dimension(self) -> int:
        """D, the length of a feature vector."""
        return self.sums.shape[1]

    @property
    def device(self) -> torch.device:
        """Where the sums live."""
        return self.sums.device

    @property
    def means(self) -> Float[Tensor, "C D"]:
        """The mean of each class, float64; of a class without an example zero (see :attr:`seen`)."""
        if self._means is None:
            self._means = self.sums / self.counts.clamp(min=1)[:, None]
        return self._means

    @property
    def seen(self) -> Tensor:
        """Which classes have an example, bool ``[C]``."""
        return self.counts > 0

    def announce(self, classes: Any) -> Self:
        """Makes room for classes without an example yet; known ones keep what they have."""
        union, positions = grow(self.classes, as_labels(classes))
        if self.classes is None or len(union) > len(self.classes):
            index = torch.from_numpy(positions).to(self.device)
            sums = self.sums.new_zeros(len(union), self.dimension)
            counts = self.counts.new_zeros(len(union))
            sums[index], counts[index] = self.sums, self.counts
            self.sums, self.counts, self.classes, self._means = sums, counts, union, None
        return self

    def add(self, features: Float[Tensor, "N D"], labels: Any) -> Self:
        """Adds examples.

        Parameters
        ----------
        features
            Any floating point dtype ``[N, D]``; summed in float64, chunk by chunk.
        labels
            ``[N]`` integers or strings (array, list or tensor); classes not seen before are added.

        Raises
        ------
        InputError
            When the numbers of features and labels or the dimension don't match, or a feature is NaN or infinite;
            nothing is added then.
        """
        names = as_labels(labels)
        self._check(features, len(names))
        self.announce(names)
        assert self.classes is not None
        codes = torch.from_numpy(np.searchsorted(self.classes, names).astype(np.int64)).to(self.device)
        for part in row_chunks(len(names), self.dimension):
            self.sums.index_add_(0, codes[part], features[part].detach().to(self.device, torch.float64))
        self.counts += torch.bincount(codes, minlength=len(self.counts))
        self._means = None
        return self

    def _check(self, features: Tensor, count: int) -> None:
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise InputError(f"features must be [N, {self.dimension}], not {list(features.shape)}")
        if len(features) != count:
            raise InputError(f"{len(features)} features came with {count} labels")
        # The sum of a row is finite only when all of it is, and needs no mask the size of the features.
        finite = torch.isfinite(features.sum(1, dtype=torch.float64 if features.device.type != "mps" else None))
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise InputError(f"feature row {row} holds NaN or infinity ({int((~finite).sum())} such rows)")

    def merge(self, other: ClassAccumulator) -> Self:
        """Adds all that another accumulator holds, such as that of another process or of another day.

        Raises
        ------
        InputError
            When the other's features have another dimension.
        """
        if other.dimension != self.dimension:
            raise InputError(f"can't merge means of {other.dimension} features into means of {self.dimension}")
        if other.classes is not None:
            sums, counts = other.sums.to(self.device), other.counts.to(self.device)
            self.announce(other.classes)
            assert self.classes is not None
            index = torch.from_numpy(np.searchsorted(self.classes, other.classes)).to(self.device)
            self.sums[index] += sums
            self.counts[index] += counts
            self._means = None
        return self

    def position(self, label: Any) -> int:
        """Which row belongs to a class.

        Raises
        ------
        InputError
            When there is no such class; the nearest are named.
        """
        known = [] if self.classes is None else self.classes.tolist()
        if label not in known:
            hint = nearest(str(label), map(str, known))
            raise InputError(f"there is no class {label!r}" + (f": {hint}" if hint else ""))
        return known.index(label)

    def replace(self, label: Any, mean: Float[Tensor, " D"], count: int = 1) -> Self:
        """Sets the mean of a class, known or new, as if ``count`` examples had given it.

        Raises
        ------
        InputError
            When the mean has another dimension or is not finite, or the count is not positive.
        """
        if count < 1:
            raise InputError(f"a mean must stand for at least one example, not {count}")
        self._check(mean[None], 1)
        row = self.announce([label]).position(label)
        self.sums[row] = mean.detach().to(self.device, torch.float64) * count
        self.counts[row] = count
        self._means = None
        return self

    def forget(self, label: Any) -> Self:
        """Removes a class with all it holds, as if none of its examples had ever been added.

        Raises
        ------
        InputError
            When there is no such class.
        """
        keep = np.arange(len(self.counts)) != self.position(label)
        assert self.classes is not None
        index = torch.from_numpy(keep).to(self.device)
        self.classes, self.sums, self.counts = self.classes[keep], self.sums[index], self.counts[index]
        self._means = None
        return self

    def to(self, device: torch.device | str) -> Self:
        """Moves the sums to a device."""
        place = precise(torch.device(device))
        self.sums, self.counts, self._means = self.sums.to(place), self.counts.to(place), None
        return self

    def state_dict(self) -> dict[str, Any]:
        """Classes, sums and counts as a tree that a checkpoint can hold."""
        classes = self.classes
        # Strings can't be tensors; numbers keep their dtype as one.
        named = classes is not None and classes.dtype.kind in "UO"
        kept = classes.tolist() if classes is not None and named else classes
        return {
            "classes": kept,
            "object": classes is not None and classes.dtype.kind == "O",
            "sums": self.sums.clone(),
            "counts": self.counts.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned, onto the present device.

        Raises
        ------
        InputError
            When the parts don't fit together.
        """
        sums, counts, classes = state["sums"], state["counts"], state["classes"]
        if isinstance(classes, list):
            classes = np.array(classes, dtype=object if state["object"] else str)
        if sums.ndim != 2 or len(sums) != len(counts) or len(sums) != (0 if classes is None else len(classes)):
            raise InputError("the state of the class means is damaged: classes, sums and counts don't fit together")
        self.classes = classes
        self.sums = sums.to(self.device, torch.float64).clone()
        self.counts = counts.to(self.device).clone()
        self._means = None
