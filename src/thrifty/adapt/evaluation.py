"""What a head gets right along a stream: the field's measures, named apart."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.stream import Stream
from thrifty.core.progress import Progress


class Head(Protocol):
    """A classifier that learns a stream."""

    def partial_fit(self, X: Any, y: Any) -> Any: ...

    def predict(self, X: Any) -> Any: ...


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
    """

    accuracies: NDArray[np.float64]
    accuracy_after: NDArray[np.float64]
    predictions: Labels
    fit_seconds: float
    predict_seconds: float

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

    def row(self) -> dict[str, float]:
        """The summary: ``final_accuracy``, ``average_incremental_accuracy``, ``forgetting`` and ``seconds``."""
        return {
            "final_accuracy": self.final_accuracy,
            "average_incremental_accuracy": self.average_incremental_accuracy,
            "forgetting": self.forgetting,
            "seconds": self.fit_seconds + self.predict_seconds,
        }


def run_stream(head: Head, stream: Stream, *, batch_size: int | None = None, label: str = "stream") -> StreamResult:
    """Lets a head learn a stream, and tests it after each session with one batched predict.

    Parameters
    ----------
    head
        Learns in place.
    stream
        The sessions.
    batch_size
        Examples per ``partial_fit``; a whole session when ``None``.
    label
        What the progress bar says.
    """
    total = len(stream.sessions)
    accuracies = np.full((total, len(stream.tests)), np.nan)
    after = np.empty(total)
    predictions = np.empty(0)
    rows = np.empty(0, dtype=np.int64)
    fitting = predicting = 0.0
    with Progress(label, total) as progress:
        for session, arriving in enumerate(stream.sessions):
            started = time.perf_counter()
            for start in range(0, len(arriving), batch_size or len(arriving)):
                batch = arriving[start : start + (batch_size or len(arriving))]
                head.partial_fit(stream.train_x[batch], stream.train_y[batch])
            learnt = time.perf_counter()
            groups = [stream.tests[group] for group in stream.tested(session)]
            rows = np.concatenate(groups)
            predictions = as_labels(head.predict(stream.test_x[rows]))
            right = predictions == stream.test_y[rows]
            ends = np.cumsum([len(group) for group in groups])
            shares = [part.mean() if len(part) else np.nan for part in np.split(right, ends[:-1])]
            accuracies[session, : len(groups)] = shares
            after[session] = right.mean()
            fitting += learnt - started
            predicting += time.perf_counter() - learnt
            progress.update(note=f"accuracy {after[session]:.3f}")
    return StreamResult(accuracies, after, predictions[np.argsort(rows)], fitting, predicting)
