"""The commands that fill a run's directory: ``run``, ``reproduce`` and ``compare``."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from thrifty.claims import catalogue, store
from thrifty.command_line import parse, print_claim, print_json
from thrifty.core import index
from thrifty.core.errors import ExistsError, InputError
from thrifty.core.method import RunOptions, check_fields, load, load_room


def run(argv: Sequence[str]) -> None:
    """Run one method: ``thrifty run ID [--model M] [--data D] [--out DIR] [its hyper-parameters]``."""
    from thrifty.claims.harness import versions
    from thrifty.core import processes
    from thrifty.core.run import Run, pick_device
    from thrifty.report.run import write_report
    from thrifty.report.tables import print_table

    paper_id, rest = _leading_id(argv)
    paper = index.paper(paper_id)
    method_class, room = load(paper_id), load_room(paper.room)
    parsed: Any = parse(_command(room.inputs, method_class), rest, f"thrifty run {paper_id}", paper.summary)
    options: RunOptions = parsed.options
    if processes.world() > 1 and not room.parallel:
        raise InputError(f"{paper_id} runs in one process: start it without torchrun")
    if sampling := getattr(parsed.inputs, "sampling_processes", 0):
        from thrifty.lm.remote import sampling_processes

        if sampling_processes(sampling, pick_device(options.device)):
            return
    processes.connect(pick_device(options.device))
    config = {
        "command": "run",
        "paper": paper_id,
        "inputs": _plain(parsed.inputs),
        "method": _plain(parsed.method),
        "device": options.device,
        "dtype": options.dtype,
    }
    wanted = Path("runs") / paper_id
    directory = options.out or processes.on_main(lambda: _free_directory(wanted, {**config, "seed": options.seed}))
    fresh = processes.on_main(lambda: not directory.exists())
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
        if fresh and processes.is_main():
            _drop_if_nothing_ran(directory)
        raise
    if not job.main:
        return
    page = write_report(job.directory)
    if options.json:
        print_json(summary | {"directory": str(job.directory), "report": str(page)})
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
        print_json(result)
        return
    print(f"{claim.says}\n{claim.setting}")
    print_claim(result)
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
        print_json(result)
        return
    print(result["says"])
    print_claim(result)
    print(f"report: {page}")


def _leading_id(argv: Sequence[str]) -> tuple[str, list[str]]:
    if not argv or argv[0] in {"-h", "--help"}:
        print(f"usage: thrifty run ID [options]\n\n{run.__doc__}")
        print("\n`thrifty list` shows the ids; `thrifty run ID --help` the options of one.")
        raise SystemExit(0)
    if argv[0].startswith("-"):
        raise InputError("give the paper's id first: thrifty run ID [options]")
    return argv[0], list(argv[1:])


def _command(inputs: type, method: type) -> type:
    """One dataclass of three, whose fields become the options of one command line."""
    check_fields(method, inputs, RunOptions)
    parts = {"inputs": inputs, "method": method, "options": RunOptions}
    fields = [
        (name, Annotated[part, tyro.conf.arg(name="")], dataclasses.field(default_factory=part))
        for name, part in parts.items()
    ]
    return dataclasses.make_dataclass("Command", fields)


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
