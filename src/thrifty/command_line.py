"""What the commands share at the terminal: arguments parsed, results printed, errors in one line."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from thrifty.core.errors import InputError, ThriftyError

T = TypeVar("T")


def parse(form: Callable[..., T], arguments: Sequence[str], program: str, description: str | None = None) -> T:
    """Calls a function or dataclass with the parsed arguments.

    Parameters
    ----------
    form
        Its parameters are the options, its docstring their help.
    arguments
        The words of the command line behind the command.
    program
        What the usage line begins with.
    description
        What the help says first; the docstring's when not given.

    Raises
    ------
    InputError
        When the arguments are wrong, in one line.
    """

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


def guarded(work: Callable[[], None], debug: bool) -> int:
    """Does the work of a command and returns its exit code; an error becomes one line on standard error.

    Parameters
    ----------
    work
        The command with its arguments.
    debug
        Show an error's traceback as well.
    """
    try:
        with _plain_output():
            work()
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


def print_claim(result: dict[str, Any]) -> None:
    """Prints a measured claim: its arms, and its conditions where it has some."""
    from thrifty.report.tables import claim_table, condition_table, print_table

    print_table(claim_table(result))
    if result.get("conditions"):
        print_table(condition_table(result), title="conditions")


def print_json(value: Any) -> None:
    """Prints what a program reads."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str))
