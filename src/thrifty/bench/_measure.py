"""What the benches share: pairs of runs in alternating order, rows of results, peak memory of a fresh process."""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from thrifty.core.errors import RunError


def row(
    name: str,
    pairs: Sequence[tuple[float, float]],
    unit: str,
    *,
    least: float | None = None,
    most: float | None = None,
    inverse: bool = False,
) -> dict[str, Any]:
    """A row of a bench's table.

    Parameters
    ----------
    name
        What was measured.
    pairs
        (ours, the peer's) of each pair of runs.
    unit
        Of both.
    least, most
        What the ratio should be at least, or at most; one of them.
    inverse
        Whether the ratio is the peer's by ours ("times as fast" from seconds) instead of ours by the peer's.

    Returns
    -------
    dict
        ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``; ``runs`` are the ratios of the pairs.
    """
    ratios = [peer / ours if inverse else ours / peer for ours, peer in pairs]
    median = statistics.median(ratios)
    limit = least if least is not None else most
    assert limit is not None
    return {
        "name": name,
        "ratio": median,
        "ours": statistics.median(ours for ours, _ in pairs),
        "peer": statistics.median(peer for _, peer in pairs),
        "unit": unit,
        "runs": ratios,
        "min": min(ratios),
        "median": median,
        "max": max(ratios),
        "target": f"{'<=' if least is None else '>='} {limit:g}",
        "ok": median <= limit if least is None else median >= limit,
    }


def paired(ours: Callable[[], float], peer: Callable[[], float], pairs: int) -> list[tuple[float, float]]:
    """Runs both ways that many times, in alternating order; (ours, the peer's) of each pair."""
    found = []
    for pair in range(pairs):
        if pair % 2 == 0:
            mine = ours()
            found.append((mine, peer()))
        else:
            theirs = peer()
            found.append((ours(), theirs))
    return found


def peak_of(work: Callable[[], object]) -> float:
    """Gigabytes of resident memory that ``work`` takes at most beyond what there is before.

    Needs Linux, and a process that has done nothing else: memory that was freed before is taken up again unseen.
    """
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark back to the present size
    before = _status("VmRSS")
    work()
    return (_status("VmHWM") - before) / 1e6


def peak_in_fresh_process(module: str, *arguments: str) -> float:
    """The number, in JSON, that the last line of ``python -m module arguments`` says.

    Raises
    ------
    RunError
        When the process is killed, as happens where memory runs out.
    RuntimeError
        When it fails; the end of what it said is in the message.
    """
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        raise RunError(f"{module} {' '.join(arguments)} was killed: there was not enough memory for it")
    if done.returncode:
        raise RuntimeError(f"{module} {' '.join(arguments)} failed: {done.stderr.strip()[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _status(field: str) -> int:
    """A field of the process's status, in kilobytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))
