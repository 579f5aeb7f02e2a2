"""A function of the user's own, named on the command line."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from thrifty.core.errors import InputError, NotFoundError, nearest
from thrifty.data.optional import first_line


def imported(name: str) -> Callable[..., Any]:
    """The function ``MODULE:FUNCTION``; its module is imported.

    Raises
    ------
    InputError
        When the name has another form, or what it names can't be called.
    NotFoundError
        When there is no such module, or nothing of that name in it.
    """
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise InputError(f"python:{name} names no function: write python:MODULE:FUNCTION")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise NotFoundError(f"python:{name}: the module {module} can't be imported: {first_line(error)}") from error
    if not hasattr(found, function):
        raise NotFoundError(
            f"python:{name}: {module} has no {function!r}: {nearest(function, vars(found))}".rstrip(": ")
        )
    called: Any = getattr(found, function)
    if not callable(called):
        raise InputError(f"python:{name} is {type(called).__name__}, expected a function")
    return called
