"""The command: ``thrifty list | show | run | reproduce | compare | bench | report | fetch``.

Exit codes: 0 done; 1 failed; 2 wrong input. An error is one line on standard error; ``--debug`` shows the
traceback.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import re
import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from rich.console import Console

from thrifty.claims import catalogue, store
from thrifty.core import index
from thrifty.core.errors import ExistsError, InputError, ThriftyError, nearest

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how a job runs.

    Parameters
    ----------
    out
        Directory of the run; ``runs/ID`` when not given. An unfinished run of the same settings is gone on with.
    seed
        Seed of everything.
    device
        ``auto``, ``cpu``, ``cuda``, ``mps`` ...
    dtype
        Precision of loaded language models: float32, bfloat16 or float16; ``auto`` takes what the device does fast.
    overwrite
        Replace a run that is in ``out``.
    json
        Print the summary as JSON.
    """

    out: Path | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    overwrite: bool = False
    json: bool = False


def list_papers(room: str | None = None, have: str | None = None, json: bool = False) -> None:
    """List the papers: what each needs, what is implemented, and what was measured.

    Parameters
    ----------
    room
        Only this room.
    have
        What you have, as words with commas between (``model,forget-set``): only papers that need no more.
    json
        Print rows as JSON.
    """
    words = [word.strip() for word in have.split(",") if word.strip()] if have is not None else None
    rows = catalogue.rows(room, words)
    if json:
        _print_json(rows)
        return
    from thrifty.report.tables import print_table

    # A narrow terminal would break titles into one word a line; `thrifty show` has them.
    wide = Console().width >= 110
    shown = [
        {"id": row["id"], "room": row["room"], "needs": ", ".join(row["needs"]), "state": _state(row)}
        | ({"title": row["title"]} if wide else {})
        for row in rows
    ]
    print_table(shown, title=f"{len(rows)} papers")


def _state(row: dict[str, Any]) -> str:
    if row["claim"]:
        return f"claim {row['claim']['verdict']}"
    return "not measured" if row["implemented"] else "planned"


def show(id: Annotated[str, tyro.conf.Positional], json: bool = False) -> None:
    """Show a paper: summary, equation, needs, arguments with defaults, and its claim's latest result.

    Parameters
    ----------
    id
        The paper's id, as ``thrifty list`` shows it.
    json
        Print it as JSON.
    """
    from thrifty.core.method import arguments, load

    paper = index.paper(id)
    settings = arguments(load(id)) if index.implemented(paper) else []
    result = store.read(id)
    if json:
        described = [dataclasses.asdict(argument) | {"default": repr(argument.default)} for argument in settings]
        _print_json(dataclasses.asdict(paper) | {"arguments": described, "claim": result})
        return
    console = Console(highlight=False, markup=False)
    console.print(f"{paper.title}\n{paper.name} · arXiv {paper.arxiv} · {paper.year} · room {paper.room}\n")
    console.print(f"{paper.summary}\n\n{paper.equation.rstrip()}\n")
    console.print(f"needs: {', '.join(paper.needs)}\ngives: {', '.join(paper.gives)}")
    if paper.code:
        console.print(f"official code: {paper.code} ({paper.licence})")
    if not settings:
        console.print("\nnot implemented yet")
    for argument in settings:
        flag = "--" + argument.name.replace("_", "-")
        indent = " " * 6
        said = textwrap.fill(argument.help, console.width, initial_indent=indent, subsequent_indent=indent)
        console.print(f"\n  {flag} (default {argument.default!r})\n{said}")
    if result is not None:
        console.print(f"\nclaim: {result['says']}\nverdict: {result['status']} ({result['date']})")
        _print_claim(result)


def run(argv: Sequence[str]) -> None:
    """Run one method: ``thrifty run ID [--model M] [--data D] [--out DIR] [its hyper-parameters]``."""
    from thrifty.claims.harness import versions
    from thrifty.core.method import load, load_room
    from thrifty.core.run import Run
    from thrifty.report.run import write_report
    from thrifty.report.tables import print_table

    paper_id, rest = _leading_id(argv, "run")
    paper = index.paper(paper_id)
    method_class, room = load(paper_id), load_room(paper.room)
    command = dataclasses.make_dataclass(
        "Command",
        [
            (name, Annotated[cls, tyro.conf.arg(name="")], dataclasses.field(default_factory=cls))
            for name, cls in (("inputs", room.inputs), ("method", method_class), ("options", RunOptions))
        ],
    )
    parsed: Any = _parse(command, rest, f"thrifty run {paper_id}", paper.summary)
    options: RunOptions = parsed.options
    config = {
        "command": "run",
        "paper": paper_id,
        "inputs": _plain(parsed.inputs),
        "method": _plain(parsed.method),
        "device": options.device,
        "dtype": options.dtype,
    }
    directory = options.out or _free_directory(Path("runs") / paper_id, {**config, "seed": options.seed})
    fresh = not directory.exists()
    job = Run(
        directory,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
        config=config,
        overwrite=options.overwrite,
    )
    try:
        with job:
            summary = room.run(parsed.method, parsed.inputs, job) | {"versions": versions()}
            job.finish(summary)
    except InputError:
        if fresh:
            _drop_if_nothing_ran(directory)
        raise
    page = write_report(job.directory)
    if options.json:
        _print_json(summary | {"directory": str(job.directory), "report": str(page)})
        return
    print_table(summary["table"], title=f"{paper.name} ({paper_id})")
    print(f"run:    {job.directory}\nreport: {page}")


def reproduce(
    id: Annotated[str | None, tyro.conf.Positional] = None,
    quick: bool = False,
    seeds: int | None = None,
    out: Path | None = None,
    store_result: Annotated[bool, tyro.conf.arg(name="store")] = False,
    json: bool = False,
) -> None:
    """Measure a paper's claim: the method beside its baselines, over several seeds, with a computed verdict.

    Parameters
    ----------
    id
        The paper's id. Without one: every claim that was never measured or whose code has changed since, one
        after the other.
    quick
        Small sizes and one seed, under a minute: shows that all works; decides nothing.
    seeds
        How many seeds; the claim's own number when not given.
    out
        Directory; ``runs/reproduce-ID`` when not given. An interrupted measurement is gone on with.
    store_result
        Keep the result in ``results/``, where ``thrifty list`` and the index page find it.
    json
        Print the result as JSON.
    """
    from thrifty.claims.fingerprint import fingerprint
    from thrifty.claims.harness import reproduce as measure_claim
    from thrifty.core.atomic import write_json

    if id is None:
        for outdated in catalogue.outdated():
            reproduce(outdated, quick, seeds, out and out / outdated, store_result, json)
        return
    claim = catalogue.load_claim(id)
    code = fingerprint(f"thrifty.claims.{id.replace('-', '_')}")
    config = {"command": "reproduce", "paper": id, "quick": quick, "seeds": seeds, "code": code}

    def work(directory: Path) -> dict[str, Any]:
        result = measure_claim(claim, directory, seeds=seeds, quick=quick)
        write_json(directory / "result.json", result)
        return result

    result, page = _measured(out or Path("runs") / f"reproduce-{id}", out is None, config, work)
    if store_result:
        store.write(result)
    if json:
        _print_json(result)
        return
    print(f"{claim.says}\n{claim.setting}")
    _print_claim(result)
    print(f"verdict: {result['verdict']}{' (quick: decides nothing)' if quick else ''}\nreport:  {page}")


def compare(
    room: Annotated[str, tyro.conf.Positional],
    task: str | None = None,
    seeds: int = 3,
    quick: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Compare every method of a room that a task's data allow, beside its baselines.

    Parameters
    ----------
    room
        A room's name.
    task
        One of its tasks; an unknown one lists them.
    seeds
        How many seeds.
    quick
        Small sizes and one seed.
    out
        Directory; ``runs/compare-ROOM-TASK`` when not given.
    json
        Print the result as JSON.
    """
    from thrifty.claims.compare import compare as measure_room
    from thrifty.claims.compare import pick_task
    from thrifty.core.atomic import write_json

    name, _ = pick_task(room, task)
    config = {"command": "compare", "room": room, "task": name, "seeds": seeds, "quick": quick}

    def work(directory: Path) -> dict[str, Any]:
        result = measure_room(room, name, directory, seeds=seeds, quick=quick)
        write_json(directory / "result.json", result)
        return result

    result, page = _measured(out or Path("runs") / f"compare-{room}-{name}", out is None, config, work)
    if json:
        _print_json(result)
        return
    print(result["says"])
    _print_claim(result)
    print(f"report: {page}")


def bench(name: Annotated[str, tyro.conf.Positional], quick: bool = False, json: bool = False) -> None:
    """Measure speed and memory beside a peer, as ratios of paired runs.

    Parameters
    ----------
    name
        What to measure: ``lm`` or ``core``.
    quick
        Small sizes: shows that all works; decides nothing.
    json
        Print rows as JSON.
    """
    from thrifty.bench import load_bench
    from thrifty.report.tables import print_table

    rows = load_bench(name)(quick=quick)
    if json:
        _print_json(rows)
        return
    shown = [
        {
            "what": row["name"],
            "ratio [min, max]": f"{row['median']:.3g} [{row['min']:.3g}, {row['max']:.3g}]",
            "ours, peer": f"{row['ours']:.3g}, {row['peer']:.3g} {row['unit']}",
            "target": f"{row['target']}: {'met' if row['ok'] else 'missed'}",
        }
        for row in rows
    ]
    print_table(shown, title=f"bench {name}")


def report(
    directory: Annotated[Path | None, tyro.conf.Positional] = None, index: Path | None = None, overwrite: bool = False
) -> None:
    """Write a run's report, or the index page of all papers.

    Parameters
    ----------
    directory
        A run's directory: writes its ``report.html``.
    index
        Write the static index page of all papers to this directory.
    overwrite
        Replace an index page that is there.
    """
    if (directory is None) == (index is None):
        raise InputError("give a run's directory, or --index DIR for the page of all papers")
    if directory is not None:
        from thrifty.report.run import write_report

        print(write_report(directory))
    elif index is not None:
        from thrifty.report.index import write_index

        print(write_index(index, overwrite=overwrite))


def fetch(name: Annotated[str | None, tyro.conf.Positional] = None, json: bool = False) -> None:
    """Bring a model or data set to the cache; without a name, list them.

    Parameters
    ----------
    name
        A name from the list, or a Hugging Face hub id.
    json
        Print as JSON.
    """
    from thrifty.data.assets import assets
    from thrifty.data.fetch import cached
    from thrifty.data.fetch import fetch as bring
    from thrifty.report.tables import print_table

    if name is not None:
        path = bring(name)
        _print_json({"name": name, "path": str(path)}) if json else print(path)
        return
    rows = [
        {
            "name": asset.name,
            "kind": asset.kind,
            "MB": asset.megabytes,
            "cached": "yes" if cached(asset.name) else "",
            "licence": asset.licence,
            "what": asset.about,
        }
        for asset in assets().values()
    ]
    _print_json(rows) if json else print_table(rows, title="models and data")


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_papers,
    "show": show,
    "run": run,
    "reproduce": reproduce,
    "compare": compare,
    "bench": bench,
    "report": report,
    "fetch": fetch,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (0 done, 1 failed, 2 wrong input)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with _plain_output():
            _dispatch(arguments)
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 1
    except BrokenPipeError:  # `thrifty list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        known = isinstance(error, ThriftyError)
        said = " ".join(str(error).split()) if known else f"{type(error).__name__}: {' '.join(str(error).split())}"
        hint = "" if known or debug else " (--debug shows where)"
        print(f"thrifty: error: {said}{hint}", file=sys.stderr)
        return error.exit_code if isinstance(error, ThriftyError) else 1
    return 0


def _dispatch(arguments: list[str]) -> None:
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(__doc__)
        for name, function in COMMANDS.items():
            print(f"  {name:<10} {(function.__doc__ or '').splitlines()[0]}")
        print("\n`thrifty COMMAND --help` tells more.")
        return
    if arguments[0] == "--version":
        from thrifty import __version__

        print(__version__)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(f"no command {name!r}: {nearest(name, COMMANDS)}")
    if name == "run":
        run(rest)
    else:
        _parse(COMMANDS[name], rest, f"thrifty {name}")


@contextlib.contextmanager
def _plain_output() -> Iterator[None]:
    """Leaves standard error to this command's own lines, and shows what the library has to say there."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)
    log, handler = logging.getLogger("thrifty"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("thrifty: %(message)s"))
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _parse(form: Callable[..., T], arguments: Sequence[str], program: str, description: str | None = None) -> T:
    """Calls a function or dataclass with the parsed arguments; what is wrong with them becomes one line."""

    def later(*args: Any, **kwargs: Any) -> Callable[[], T]:
        return functools.partial(form, *args, **kwargs)

    # A function is called only after its arguments are known to be right, so its own errors pass through.
    parsed: Any = form if isinstance(form, type) else functools.update_wrapper(later, form)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            result = tyro.cli(parsed, args=list(arguments), prog=program, description=description)
    except SystemExit as leaving:
        if leaving.code != 2:
            raise
        raise InputError(f"{_one_line(said.getvalue())} (`{program} --help` lists the options)") from None
    value: T = result if isinstance(form, type) else result()
    return value


def _one_line(box: str) -> str:
    """The message inside of tyro's box, without frame, title and help."""
    rows = [re.sub(r"[│╭╮╰╯─┃]+", " ", line).strip() for line in box.splitlines()[1:]]
    text = " ".join(row for row in rows if row)
    message, _, rest = text.partition("Perhaps you meant:")
    option = re.search(r"--[\w-]+", rest)
    message = re.split(r"Argument helptext:|For full helptext|Full usage", message)[0].strip().rstrip(".")
    return f"{message}: did you mean {option[0]}?" if option else message


def _leading_id(argv: Sequence[str], command: str) -> tuple[str, list[str]]:
    if not argv or argv[0] in {"-h", "--help"}:
        print(f"usage: thrifty {command} ID [options]\n\n{COMMANDS[command].__doc__}")
        print(f"\n`thrifty list` shows the ids; `thrifty {command} ID --help` the options of one.")
        raise SystemExit(0)
    if argv[0].startswith("-"):
        raise InputError(f"give the paper's id first: thrifty {command} ID [options]")
    return argv[0], list(argv[1:])


def _measured(
    base: Path, choose: bool, config: dict[str, Any], work: Callable[[Path], dict[str, Any]]
) -> tuple[dict[str, Any], Path]:
    """Runs a measurement in a run's directory and writes its report."""
    from thrifty.core.run import Run
    from thrifty.report.run import write_report

    directory = _free_directory(base, {**config, "seed": 0}) if choose else base
    with Run(directory, config=config) as job:
        result = work(job.directory)
        job.finish({"table": [], "verdict": result.get("verdict")})
    return result, write_report(directory)


def _free_directory(base: Path, config: dict[str, Any]) -> Path:
    """``base``, ``base-2``, ... : the first that is free or holds an unfinished run of this configuration."""
    from thrifty.core.run import SUMMARY, read_config

    for number in range(1, 10_000):
        directory = base if number == 1 else base.with_name(f"{base.name}-{number}")
        if not directory.exists():
            return directory
        with contextlib.suppress(InputError):
            unfinished = not (directory / SUMMARY).exists()
            if unfinished and read_config(directory) == json.loads(json.dumps(config)):
                return directory
    raise ExistsError(f"{base} and 9,999 numbered ones exist: give --out")


def _drop_if_nothing_ran(directory: Path) -> None:
    """Removes a run's directory in which wrong input was found before there was anything to keep."""
    left = {path.name for path in directory.iterdir()}
    if left <= {"config.json", ".lock"}:
        shutil.rmtree(directory)


def _plain(value: Any) -> Any:
    """A dataclass as JSON-able values."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


def _print_claim(result: dict[str, Any]) -> None:
    from thrifty.report.tables import claim_table, condition_table, print_table

    print_table(claim_table(result))
    if result.get("conditions"):
        print_table(condition_table(result), title="conditions")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))


if __name__ == "__main__":
    sys.exit(main())
