"""Progress on the terminal for whatever takes longer than two seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Self, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from thrifty.core import processes

T = TypeVar("T")
PATIENCE = 2.0  # seconds before a bar appears
PLAIN_EVERY = 30.0  # seconds between lines where there is no terminal


class Progress:
    """A progress bar with the remaining time on standard error, and plain lines where that is no terminal.

    Parameters
    ----------
    label
        What is going on, in a word or two.
    total
        How many steps there are; ``None`` when nobody knows.
    done
        How many of them an earlier run has finished.
    """

    def __init__(self, label: str, total: int | None, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._first = done
        self._started = self._said = time.monotonic()
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        return self

    def update(self, steps: int = 1, note: str = "") -> None:
        """Says that ``steps`` more are done; ``note`` is shown behind the bar."""
        self.done += steps
        now = time.monotonic()
        if now - self._started < PATIENCE or not processes.is_main():
            return
        if sys.stderr.isatty():
            self._draw(note)
        elif now - self._said > PLAIN_EVERY:
            self._said = now
            print(self._line(now, note), file=sys.stderr, flush=True)  # noqa: T201

    def _draw(self, note: str) -> None:
        if self._bar is None:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._bar.add_task(self.label, total=self.total, note=note)
        self._bar.update(self._bar.task_ids[0], completed=self.done, note=note)

    def _line(self, now: float, note: str) -> str:
        if not self.total:
            return f"{self.label}: {self.done} {note}".rstrip()
        left = (now - self._started) / max(self.done - self._first, 1) * (self.total - self.done)
        return f"{self.label}: {self.done}/{self.total}, about {left:.0f} s left {note}".rstrip()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and shows how far it is."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with Progress(label, total) as progress:
        for item in items:
            yield item
            progress.update()
