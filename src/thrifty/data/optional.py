"""What the readers share: libraries that only some of them need, and other libraries' errors in one line."""

from __future__ import annotations

import importlib
from typing import Any

from thrifty.core.errors import InputError


def need(module: str, extra: str, purpose: str) -> Any:
    """Import an optional library.

    Parameters
    ----------
    module
        Its import name.
    extra
        The extra of this package that brings it.
    purpose
        What it is needed for, as the beginning of a sentence: ``"Parquet files"``.

    Raises
    ------
    InputError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"{purpose} need the library {module}: `pip install 'thrifty[{extra}]'` ({error})") from error


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its kind if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
