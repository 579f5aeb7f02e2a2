"""The command that makes a run again, from the run's configuration."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

# A command's subject stands without a name; these hold it, the verb, or groups of options.
_SUBJECTS, _NO_OPTIONS = ("paper", "room"), frozenset({"command", "paper", "room", "code"})
_GROUPS = frozenset({"inputs", "method"})


def command_line(config: Mapping[str, Any], out: str = "") -> str:
    """The shell command of a run, every setting spelt out so that later defaults can't change it.

    Parameters
    ----------
    config
        What ``config.json`` holds.
    out
        The directory to go on in; the command picks a new one when empty.

    Returns
    -------
    str
        Such as ``"thrifty run ssd --selection 10.0 --seed 0"``; empty when the configuration names no command.
    """
    verb = config.get("command")
    subject = next((config[name] for name in _SUBJECTS if config.get(name)), None)
    if not isinstance(verb, str) or subject is None:
        return ""
    words = ["thrifty", verb, str(subject)]
    for name, value in config.items():
        if name in _GROUPS and isinstance(value, Mapping):
            words += _options(value)
        # The seed of a measurement is not an option of its command: it takes several.
        elif name not in _NO_OPTIONS and not (name == "seed" and verb != "run"):
            words += _options({name: value})
    return shlex.join(words + (["--out", out] if out else []))


def _options(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    words: list[str] = []
    for name, value in values.items():
        flag = f"{prefix}{name}".replace("_", "-")
        if isinstance(value, Mapping):
            words += _options(value, f"{flag}.")
        elif isinstance(value, bool):
            group, dot, own = flag.rpartition(".")
            words.append(f"--{group}{dot}{'' if value else 'no-'}{own}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return words
