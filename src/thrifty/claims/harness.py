"""A paper's claim as a program: arms, a metric, and what must hold between the arms.

A claim prepares one problem a seed, runs every arm on it, and computes the verdict from the paired differences
between arms. Nobody writes a verdict. Each finished arm is kept in the run's directory, so an interrupted
reproduction goes on where it stopped.
"""

from __future__ import annotations

import json
import logging
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from thrifty.core.atomic import write_json
from thrifty.core.errors import RunError
from thrifty.core.progress import Progress
from thrifty.core.seeding import seed_everything
from thrifty.core.statistics import Interval, mean_interval, paired_interval

_log = logging.getLogger("thrifty")
Verdict = Literal["holds", "does not hold", "inconclusive"]
Arm = Callable[[Any], Mapping[str, float]]


@dataclass(frozen=True)
class Condition:
    """``left - right > margin`` on one metric, where ``right`` is an arm or a number.

    Parameters
    ----------
    metric
        Name of a measured value.
    left
        Name of an arm.
    right
        Name of an arm, or a fixed number.
    margin
        What the difference must exceed, in the metric's unit. Negative: ``left`` may fall short by that much.
    less
        The other way round: ``right - left > margin`` (for metrics of which less is better).
    """

    metric: str
    left: str
    right: str | float
    margin: float = 0.0
    less: bool = False

    def __str__(self) -> str:
        sign = "<" if self.less else ">"
        margin = "" if self.margin == 0 else f" {'-' if (self.margin > 0) == self.less else '+'} {abs(self.margin):g}"
        right = f"{self.right:g}" if isinstance(self.right, float | int) else self.right
        return f"{self.metric}: {self.left} {sign} {right}{margin}"

    def difference(self, values: Mapping[str, Mapping[str, Sequence[float]]]) -> Interval:
        """The interval of the difference, signed so that larger is better for the claim."""
        left = values[self.left][self.metric]
        right = values[self.right][self.metric] if isinstance(self.right, str) else [float(self.right)] * len(left)
        return paired_interval(right, left) if self.less else paired_interval(left, right)

    def verdict(self, difference: Interval) -> Verdict:
        """``holds`` when the whole interval exceeds the margin, ``does not hold`` when none of it does."""
        if difference.low > self.margin:
            return "holds"
        return "does not hold" if difference.high <= self.margin else "inconclusive"


@dataclass(frozen=True)
class Claim:
    """What a paper says, in a form that can fail.

    Parameters
    ----------
    paper_id
        The paper.
    says
        The claim in one sentence.
    setting
        Model, data and budget of the measurement, in one or two sentences.
    prepare
        ``prepare(seed, quick, directory)``: what all arms of that seed share (data, trained model); must leave
        nothing in it that one arm changes for the next.
    arms
        Name to ``arm(problem)``, which returns the metrics. The method comes first.
    metrics
        Names of the measured values to show, the decisive one first; a leading ``-`` marks less as better.
    conditions
        What must hold between the arms; all of it.
    seeds
        How many seeds a full reproduction takes.
    tried
        What was tried in vain before the present setting, where something was.
    """

    paper_id: str
    says: str
    setting: str
    prepare: Callable[[int, bool, Path], Any]
    arms: Mapping[str, Arm]
    metrics: Sequence[str]
    conditions: Sequence[Condition]
    seeds: int = 3
    tried: str = ""


@dataclass(frozen=True)
class Measured:
    """All measured values: ``values[arm][metric]`` has one number a seed."""

    values: dict[str, dict[str, list[float]]]
    seconds: dict[str, list[float]] = field(default_factory=dict)


def measure(
    prepare: Callable[[int, bool, Path], Any],
    arms: Mapping[str, Arm],
    seeds: Sequence[int],
    directory: Path,
    *,
    quick: bool = False,
) -> Measured:
    """Runs every arm on every seed's problem; finished ones are read back from ``directory``.

    Raises
    ------
    RunError
        When an arm returns other metrics than it did for the seed before, or none.
    """
    measured = Measured({arm: {} for arm in arms}, {arm: [] for arm in arms})
    with Progress("measure", len(arms) * len(seeds)) as progress:
        for seed in seeds:
            problem: Any = None
            for arm, run in arms.items():
                file = directory / "arms" / f"seed{seed}-{arm.replace('/', '_').replace(' ', '_')}.json"
                if not file.exists():
                    if problem is None:
                        seed_everything(seed)
                        problem = prepare(seed, quick, directory / f"seed{seed}")
                    seed_everything(seed)
                    started = time.perf_counter()
                    metrics = {name: float(value) for name, value in run(problem).items()}
                    write_json(file, {"seconds": time.perf_counter() - started, "metrics": metrics})
                stored = json.loads(file.read_text(encoding="utf-8"))
                _collect(measured, arm, stored)
                progress.update(note=f"seed {seed} {arm}")
    return measured


def _collect(measured: Measured, arm: str, stored: Mapping[str, Any]) -> None:
    seen = len(measured.seconds[arm])
    values = measured.values[arm]
    if not stored["metrics"] or (seen and set(values) != set(stored["metrics"])):
        raise RunError(f"arm {arm!r} returned the metrics {sorted(stored['metrics'])}, before {sorted(values)}")
    measured.seconds[arm].append(stored["seconds"])
    for name, value in stored["metrics"].items():
        values.setdefault(name, []).append(value)


def judge(conditions: Sequence[Condition], measured: Measured) -> tuple[Verdict, list[dict[str, Any]]]:
    """The verdict over all conditions, with the difference and verdict of each.

    One that does not hold decides; else one that is inconclusive; else the claim holds.
    """
    rows = []
    for condition in conditions:
        difference = condition.difference(measured.values)
        row = {"condition": str(condition), "margin": condition.margin, "verdict": condition.verdict(difference)}
        rows.append(row | _finite(difference))
    verdicts = {row["verdict"] for row in rows}
    for verdict in ("does not hold", "inconclusive"):
        if verdict in verdicts:
            return verdict, rows
    return "holds", rows


def _finite(interval: Interval) -> dict[str, float | None]:
    named = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {name: value if math.isfinite(value) else None for name, value in named.items()}


def summarise(measured: Measured) -> dict[str, Any]:
    """Mean, interval and values of each metric of each arm, and the mean seconds, as JSON."""
    return {
        arm: {
            "metrics": {name: _finite(mean_interval(values)) | {"values": values} for name, values in metrics.items()},
            "seconds": sum(measured.seconds[arm]) / len(measured.seconds[arm]),
        }
        for arm, metrics in measured.values.items()
    }


def reproduce(claim: Claim, directory: Path, *, seeds: int | None = None, quick: bool = False) -> dict[str, Any]:
    """Measures a claim and returns its result as JSON (see :mod:`thrifty.claims.store`).

    Parameters
    ----------
    claim
        What to measure.
    directory
        Where finished arms are kept.
    seeds
        How many seeds; the claim's own number when ``None``, one when ``quick``.
    quick
        Small sizes, one seed: shows that everything works; decides nothing.

    Returns
    -------
    dict
        ``paper, says, setting, tried, verdict, quick, metric, metrics, arms, conditions, seeds, seconds, date,
        versions, code``.
    """
    from thrifty.claims.fingerprint import fingerprint

    count = seeds if seeds is not None else (1 if quick else claim.seeds)
    started = time.perf_counter()
    code = fingerprint(f"thrifty.claims.{claim.paper_id.replace('-', '_')}")
    measured = measure(claim.prepare, claim.arms, range(count), directory, quick=quick)
    verdict, conditions = judge(claim.conditions, measured)
    return {
        "paper": claim.paper_id,
        "says": claim.says,
        "setting": claim.setting,
        "tried": claim.tried,
        "verdict": verdict,
        "quick": quick,
        "metric": claim.metrics[0].lstrip("-"),
        "metrics": list(claim.metrics),
        "arms": summarise(measured),
        "conditions": conditions,
        "seeds": list(range(count)),
        "seconds": time.perf_counter() - started,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "versions": versions(),
        "code": code,
    }


def versions() -> dict[str, str]:
    """The versions that a measurement depends on."""
    import numpy
    import torch
    import transformers

    from thrifty import __version__

    return {
        "thrifty": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
    }
