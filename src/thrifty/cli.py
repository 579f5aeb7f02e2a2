"""The command: ``thrifty list | show | run | reproduce | compare | bench | report | fetch``.

Exit codes: 0 done; 1 failed; 2 wrong input. An error is one line on standard error; ``--debug`` shows the
traceback.
"""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from thrifty.claims import catalogue, store
from thrifty.command_line import guarded, parse, print_claim, print_json
from thrifty.core import index
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import arguments, load
from thrifty.jobs import compare, reproduce, run


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
        print_json(rows)
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
    paper = index.paper(id)
    settings = arguments(load(id)) if index.implemented(paper) else []
    result = store.read(id)
    if json:
        described = [dataclasses.asdict(argument) | {"default": repr(argument.default)} for argument in settings]
        print_json(dataclasses.asdict(paper) | {"arguments": described, "claim": result})
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
        print_claim(result)


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
        print_json(rows)
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
        print_json({"name": name, "path": str(path)}) if json else print(path)
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
    print_json(rows) if json else print_table(rows, title="models and data")


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
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = [argument for argument in given if argument != "--debug"]
    return guarded(lambda: _dispatch(arguments), debug="--debug" in given)


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
        parse(COMMANDS[name], rest, f"thrifty {name}")


if __name__ == "__main__":
    sys.exit(main())
