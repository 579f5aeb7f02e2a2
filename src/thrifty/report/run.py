"""The report of a run: one page that holds everything, made from whatever the run's directory has."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from thrifty import __version__
from thrifty.core import index
from thrifty.core.atomic import write_text
from thrifty.core.errors import InputError
from thrifty.core.run import CONFIG, METRICS, SUMMARY, read_metrics
from thrifty.report.again import command_line
from thrifty.report.claim import claim_section
from thrifty.report.html import PICTURES, Html, badge, command, embedded, join, page, pairs, table, tag
from thrifty.report.plots import curve_names, curves_plot
from thrifty.report.tables import text_of

RESULT, REPORT = "result.json", "report.html"
_SELF_CONTAINED = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MOST_PICTURES, _LARGEST_PICTURE = 12, 4_000_000
_MOST_STAGES = 12
_RESULT_KEYS = {"says", "quick", "metrics", "arms", "seeds"}


@dataclass(frozen=True)
class Record:
    """What a run's directory holds.

    Parameters
    ----------
    directory
        Where it is.
    config, summary, result
        The JSON files of that name; empty where they are missing.
    curves
        Name of a stage (empty for the run itself) to the lines of its metrics.
    """

    directory: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    result: dict[str, Any]
    curves: dict[str, list[dict[str, Any]]]

    @property
    def paper(self) -> str:
        """The paper's id, empty when the run does not say."""
        return str(self.result.get("paper") or self.config.get("paper") or "")

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.summary or self.result)


def read(directory: Path) -> Record:
    """Reads a run's directory, finished or not.

    Raises
    ------
    InputError
        When the directory is no run, or one of its files is damaged.
    """
    if not any((directory / name).is_file() for name in (CONFIG, METRICS, SUMMARY, RESULT)):
        raise InputError(f"{directory} is no run: it has none of {CONFIG}, {METRICS}, {SUMMARY} and {RESULT}")
    curves = {"": _metrics(directory)}
    stages = [file.parent for file in directory.rglob(METRICS) if file.parent != directory]
    # In the order in which they ended, as their names say nothing about it.
    for stage in sorted(stages, key=lambda stage: (stage / METRICS).stat().st_mtime):
        curves[stage.relative_to(directory).as_posix()] = _metrics(stage)
    result = _object(directory / RESULT)
    if result and not result.keys() >= _RESULT_KEYS:
        raise InputError(f"{directory / RESULT} is no result of a measurement: it should hold {sorted(_RESULT_KEYS)}")
    return Record(directory, _object(directory / CONFIG), _object(directory / SUMMARY), result, curves)


def _metrics(directory: Path) -> list[dict[str, Any]]:
    try:
        rows = read_metrics(directory)
    except ValueError as error:
        raise InputError(f"{directory / METRICS} is damaged: it should hold one JSON object a line") from error
    return [row for row in rows if isinstance(row, dict)]


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: it should hold a JSON object") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a JSON object")
    return value


def write_report(directory: Path) -> Path:
    """Writes ``report.html`` into a run's directory.

    Parameters
    ----------
    directory
        Any run: finished, unfinished, or metrics alone.

    Returns
    -------
    Path
        The report: one file that asks nothing of the network.

    Raises
    ------
    InputError
        When the directory is no run, or one of its files is damaged.
    """
    directory = Path(directory)
    record = read(directory)
    subject = " · ".join(str(record.config[name]) for name in ("room", "task") if record.config.get(name))
    title = record.paper or subject or directory.resolve().name
    policy = tag("meta", http_equiv="Content-Security-Policy", content=_SELF_CONTAINED)
    body = tag("main", _header(record, title), *_sections(record))
    path = directory / REPORT
    write_text(path, page(f"{title} · thrifty", body, styles=("base.css", "report.css"), head=[policy]))
    return path


def _header(record: Record, title: str) -> Html:
    known = index.papers().get(record.paper)
    lines: list[object] = [tag("p", "thrifty · run report", class_="kicker"), tag("h1", known.name if known else title)]
    if known:
        link = tag("a", f"arXiv:{known.arxiv}", href=f"https://arxiv.org/abs/{known.arxiv}", rel="noreferrer")
        lines.append(tag("p", known.title, " (", link, ")", class_="subtitle"))
    lines.append(tag("p", _state(record), class_="state"))
    return tag("header", *lines)


def _state(record: Record) -> Html:
    if record.finished:
        when = str(record.summary.get("finished", "")).replace("T", " ")[:16]
        return join(badge("holds", "finished"), f" {when}" if when else "")
    steps = [row["step"] for rows in record.curves.values() for row in rows[-1:] if "step" in row]
    return join(badge("inconclusive", "unfinished"), f" last logged step {max(steps)}" if steps else "")


def _sections(record: Record) -> Iterator[Html]:
    if record.result:
        heading = "Claim" if "verdict" in record.result else "Comparison"
        yield tag("section", tag("h2", heading), claim_section(record.result))
    yield from _summary({name: value for name, value in record.summary.items() if name not in record.result})
    yield from _curves(record)
    yield from _pictures(record.directory)
    settings = flattened({name: value for name, value in record.config.items() if name != "command"})
    if settings:
        yield tag("section", tag("h2", "Settings"), pairs(settings))
    yield tag("section", tag("h2", "Environment"), *_environment(record))
    again = command_line(record.config, "" if record.finished else str(record.directory))
    if again and record.finished:
        note = "The same numbers on the same machine with the same versions."
        yield tag("section", tag("h2", "Run it again"), command(again), tag("p", note, class_="note"))
    elif again:
        note = "It continues from its newest checkpoint and ends with the same numbers."
        yield tag("section", tag("h2", "Go on with it"), command(again), tag("p", note, class_="note"))


def _summary(summary: Mapping[str, Any]) -> Iterator[Html]:
    tables = {name: value for name, value in summary.items() if _is_table(value)}
    rest = {
        name: value
        for name, value in summary.items()
        if name not in tables and name not in {"finished", "versions"} and value != []
    }
    if not tables and not rest:
        return
    # The table is the run's result; further ones need their names to be told apart.
    shown = [table(rows, "" if name == "table" else name) for name, rows in tables.items()]
    yield tag("section", tag("h2", "Result"), *shown, pairs(flattened(rest)) if rest else "")


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as one level of dotted names and texts."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            text = text_of(value)
            flat[f"{prefix}{name}"] = text if len(text) <= 400 else f"{text[:400]} … ({len(text)} characters)"
    return flat


def _curves(record: Record) -> Iterator[Html]:
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        drawn = {name: rows for name, rows in record.curves.items() if curve_names(rows)}
        for name, rows in list(drawn.items())[:_MOST_STAGES]:
            shown = curve_names(rows)
            stage = name or "run"
            alt = f"Curves of {', '.join(shown)} over {len(rows)} logged steps of {stage}."
            image = embedded(curves_plot(rows, Path(temporary) / "curves.svg"), alt)
            figures.append(tag("figure", image, tag("figcaption", stage) if len(drawn) > 1 else ""))
    if figures:
        note = "Noisy curves: what was logged in pale, smoothed in full colour."
        if len(drawn) > len(figures):
            note += f" {len(figures)} of {len(drawn)} stages are shown."
        yield tag("section", tag("h2", "Training"), tag("p", note, class_="note"), *figures)


def _pictures(directory: Path) -> Iterator[Html]:
    files = [path for path in sorted(directory.iterdir()) if path.suffix.lower() in PICTURES and path.is_file()]
    small = [path for path in files if path.stat().st_size <= _LARGEST_PICTURE][:_MOST_PICTURES]
    if small:
        figures = [tag("figure", embedded(path, path.stem), tag("figcaption", path.name)) for path in small]
        yield tag("section", tag("h2", "Pictures"), *figures)


def _environment(record: Record) -> list[Html]:
    for source in (record.result, record.summary, record.config):
        if isinstance(source.get("versions"), dict):
            return [pairs(flattened(source["versions"]))]
    note = "The run recorded no versions; these wrote the report."
    return [tag("p", note, class_="note"), pairs(installed_versions())]


def installed_versions() -> dict[str, str]:
    """The versions of what is installed here, without importing it."""
    found = {"thrifty": __version__, "python": platform.python_version(), "machine": platform.machine()}
    for package in ("torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
