"""The errors a user can meet, each a single line that names the thing and the cure.

Everything that a user's input can cause derives from :class:`InputError` (the command leaves with
exit code 2); what goes wrong later, through no fault of the input, derives from :class:`RunError`
(exit code 1). Raise them where the input enters, not where it later hurts.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ThriftyError(Exception):
    """Base of all errors of this library; ``exit_code`` is what the command leaves with."""

    exit_code = 1


class InputError(ThriftyError, ValueError):
    """Something the user gave is wrong: a column, a label, a name, a range."""

    exit_code = 2


class NotFoundError(InputError, FileNotFoundError):
    """A file, model, data set or paper that was asked for is not there."""

    # FileNotFoundError would print an errno tuple; the message is the whole story here.
    __str__ = Exception.__str__


class ExistsError(InputError, FileExistsError):
    """An output would overwrite something that exists."""

    __str__ = Exception.__str__


class RunError(ThriftyError, RuntimeError):
    """A run failed although its input was right."""


class NonFiniteError(RunError):
    """A loss or metric became NaN or infinite."""


class DiskFullError(RunError):
    """There was no room to write an output; what existed before is untouched."""


def nearest(given: str, known: Iterable[str]) -> str:
    """A clause that offers the names nearest to ``given``, or all of them when there are few.

    Parameters
    ----------
    given
        What the user wrote.
    known
        The names that would have been right.

    Returns
    -------
    str
        For example ``"did you mean 'ssd'?"``; empty when nothing is known.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(name) for name in close) + "?"
    if 0 < len(names) <= 12:
        return "known: " + ", ".join(names)
    return ""
