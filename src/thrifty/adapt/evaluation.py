"""What a head gets right along a stream: the field's measures, named apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.stream import Index, Stream
from thrifty.core.errors import InputError
from thrifty.core.progress import Progress

Series = NDArray[np.float64]


class Head(Protocol):
    """A classifier that learns a stream."""

    def partial_fit(self, X: Any, y: Any) -> Any: ...

    def predict(self, X: Any) -> Any: ...


@runtime_checkable
class TellsBaseApart(Protocol):
    """A head that must be told which examples belong to the base session."""

    def fit_base(self, X: Any, y: Any) -> Any: ...


def _none() -> Series:
    return np.empty(0)


@dataclass(frozen=True, eq=False)
class StreamResult:
    """What a head got right after each session.

    Parameters
    ----------
    accuracies
        float64 ``[T, G]``: accuracy after session t on test group g; NaN where not tested, or empty.
    accuracy_after
        float64 ``[T]``: A_t, accuracy after session t on the union of the groups tested then.
    predictions
        The labels predicted after the last session for the rows of all test groups, in the order of ``test_x``.
    fit_seconds, predict_seconds
        Time spent learning, and predicting.
    base_after, new_after
        float64 ``[T]``: the mean over base classes ("seen"), and over the classes that came later ("unseen"), of the
        accuracy on each, after session t; NaN before there are some, empty where the stream has no base session.
    new_as_base_after, base_as_new_after
        float64 ``[T]``: the share of test examples of later classes for which a base class is predicted, and the other
        way round; likewise.
    anytime
        float64: accuracy on all classes exposed so far, each time that so many examples were learnt; empty when it was
        not asked for.
    """

    accuracies: Series
    accuracy_after: Series
    predictions: Labels
    fit_seconds: float
    predict_seconds: float
    base_after: Series = field(default_factory=_none)
    new_after: Series = field(default_factory=_none)
    new_as_base_after: Series = field(default_factory=_none)
    base_as_new_after: Series = field(default_factory=_none)
    anytime: Series = field(default_factory=_none)

    @property
    def average_incremental_accuracy(self) -> float:
        """The mean over t of A_t. Never compare it with another method's final accuracy."""
        return float(self.accuracy_after.mean())

    @property
    def final_accuracy(self) -> float:
        """A_T: accuracy after the last session on all test examples."""
        return float(self.accuracy_after[-1])

    @property
    def forgetting(self) -> float:
        """Mean over the earlier test groups of the best accuracy ever minus the last one; 0 for a single session."""
        if len(self.accuracies) == 1:
            return 0.0
        earlier = self.accuracies[:-1, : max(self.accuracies.shape[1] - 1, 1)]
        tested = ~np.isnan(self.accuracies[-1, : earlier.shape[1]])
        best = np.nanmax(earlier[:, tested], axis=0)
        return float((best - self.accuracies[-1, : earlier.shape[1]][tested]).mean())

    @property
    def anytime_accuracy(self) -> float:
        """A_auc: the mean of the accuracies on all exposed classes along the stream; NaN when not measured."""
        return float(self.anytime.mean()) if len(self.anytime) else float("nan")

    @property
    def harmonic_mean_after(self) -> Series:
        """float64 ``[T]``: ``2 S U / (S + U)`` of base and new accuracy after session t."""
        return harmonic_mean(self.base_after, self.new_after)

    @property
    def harmonic_mean(self) -> float:
        """That after the last session; NaN where the stream has no base session."""
        return float(self.harmonic_mean_after[-1]) if len(self.base_after) else float("nan")

    def row(self) -> dict[str, float]:
        """The summary: ``final_accuracy``, ``average_incremental_accuracy``, ``forgetting``, ``seconds`` and what else
        was measured (``anytime_accuracy``; ``base_accuracy``, ``new_accuracy``, ``harmonic_mean``, ``new_as_base``)."""
        found = {
            "final_accuracy": self.final_accuracy,
            "average_incremental_accuracy": self.average_incremental_accuracy,
            "forgetting": self.forgetting,
        }
        if len(self.anytime):
            found["anytime_accuracy"] = self.anytime_accuracy
        if len(self.base_after):
            found["base_accuracy"] = float(self.base_after[-1])
            found["new_accuracy"] = float(self.new_after[-1])
            found["harmonic_mean"] = self.harmonic_mean
            found["new_as_base"] = float(self.new_as_base_after[-1])
        return found | {"seconds": self.fit_seconds + self.predict_seconds}

    def curve(self) -> dict[str, float]:
        """A_t as ``accuracy@t``, sessions counted from 1: what a comparison draws over the sessions."""
        return {f"accuracy@{t}": float(value) for t, value in enumerate(self.accuracy_after, 1)}


def harmonic_mean(seen: Series, unseen: Series) -> Series:
    """``2 S U / (S + U)``; 0 where both are, NaN where one is."""
    return 2 * seen * unseen / np.maximum(seen + unseen, 1e-12)


def mean_class_accuracy(right: NDArray[np.bool_], labels: Labels) -> float:
    """The mean over classes of the accuracy on each; NaN without an example."""
    if not len(labels):
        return float("nan")
    _, codes = np.unique(labels, return_inverse=True)
    return float((np.bincount(codes, weights=right) / np.bincount(codes)).mean())


def run_stream(
    head: Head,
    stream: Stream,
    *,
    batch_size: int | None = None,
    measure_every: int | None = None,
    label: str = "stream",
) -> StreamResult:
    """Lets a head learn a stream, and tests it after each session with one batched predict.

    Parameters
    ----------
    head
        Learns in place.
    stream
        The sessions.
    batch_size
        Examples per ``partial_fit``; a whole session when ``None``, or ``measure_every`` where that is given.
    measure_every
        Test on all classes exposed so far each time that so many examples were learnt (A_auc); never when ``None``.
    label
        What the progress bar says.

    Raises
    ------
    InputError
        When one of the sizes is less than 1.
    """
    for name, size in (("batch_size", batch_size), ("measure_every", measure_every)):
        if size is not None and size < 1:
            raise InputError(f"{name} must be at least 1, not {size}")
    total = len(stream.sessions)
    accuracies = np.full((total, len(stream.tests)), np.nan)
    after = np.empty(total)
    sides = np.full((total, 4), np.nan)
    anytime: list[float] = []
    predictions = np.empty(0)
    rows = np.empty(0, dtype=np.int64)
    fitting = predicting = 0.0
    learnt = 0
    exposed: Labels = stream.train_y[:0]
    with Progress(label, total) as progress:
        for session, arriving in enumerate(stream.sessions):
            tells = session == 0 and isinstance(head, TellsBaseApart)
            learn = head.fit_base if tells else head.partial_fit  # type: ignore[attr-defined]
            for batch in _batches(arriving, batch_size or measure_every):
                started = time.perf_counter()
                learn(stream.train_x[batch], stream.train_y[batch])
                fitting += time.perf_counter() - started
                before, learnt = learnt, learnt + len(batch)
                if measure_every is not None:
                    exposed = np.union1d(exposed, stream.train_y[batch])
                    if learnt // measure_every > before // measure_every:
                        known = np.flatnonzero(np.isin(stream.test_y, exposed))
                        started = time.perf_counter()
                        right = as_labels(head.predict(stream.test_x[known])) == stream.test_y[known]
                        predicting += time.perf_counter() - started
                        anytime.append(float(right.mean()))
            started = time.perf_counter()
            groups = [stream.tests[group] for group in stream.tested(session)]
            rows = np.concatenate(groups)
            predictions = as_labels(head.predict(stream.test_x[rows]))
            predicting += time.perf_counter() - started
            right = predictions == stream.test_y[rows]
            ends = np.cumsum([len(group) for group in groups])
            shares = [part.mean() if len(part) else np.nan for part in np.split(right, ends[:-1])]
            accuracies[session, : len(groups)] = shares
            after[session] = right.mean()
            if stream.base_classes is not None:
                sides[session] = _sides(predictions, stream.test_y[rows], stream.base_classes)
            progress.update(note=f"accuracy {after[session]:.3f}")
    last = predictions[np.argsort(rows)]
    base, new, new_as_base, base_as_new = [_none()] * 4 if stream.base_classes is None else list(sides.T)
    return StreamResult(
        accuracies, after, last, fitting, predicting, base, new, new_as_base, base_as_new, np.array(anytime)
    )


def _batches(rows: Index, size: int | None) -> Iterator[Index]:
    step = size or len(rows)
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _sides(predictions: Labels, labels: Labels, base_classes: Labels) -> tuple[float, float, float, float]:
    """Base accuracy, new accuracy, new taken for base, base taken for new."""
    base, as_base = np.isin(labels, base_classes), np.isin(predictions, base_classes)
    right = predictions == labels
    new_as_base = float(as_base[~base].mean()) if not base.all() else float("nan")
    base_as_new = float((~as_base[base]).mean()) if base.any() else float("nan")
    return (
        mean_class_accuracy(right[base], labels[base]),
        mean_class_accuracy(right[~base], labels[~base]),
        new_as_base,
        base_as_new,
    )
