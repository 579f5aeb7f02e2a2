"""What was found out about a module, kept for as long as the module lives."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import nn

T = TypeVar("T")


class Remembered(Generic[T]):
    """Findings about modules, each kept by its module.

    A finding may refer to its module: in a table of weak keys that alone would keep the module alive for ever. A copy
    of a module is another module, of which nothing is known.

    Parameters
    ----------
    name
        Under which the modules keep it.
    """

    def __init__(self, name: str) -> None:
        self._name = f"_thrifty_{name}"

    def get(self, module: nn.Module) -> T | None:
        """What is known of a module; ``None`` where it was never asked about."""
        kept: _Kept[T] | None = vars(module).get(self._name)
        return None if kept is None else kept.finding

    def put(self, module: nn.Module, finding: T) -> None:
        """Keeps what was found."""
        vars(module)[self._name] = _Kept(finding)


class _Kept(Generic[T]):
    """A finding that stays behind when its module is copied or pickled."""

    def __init__(self, finding: T | None = None) -> None:
        self.finding = finding

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Kept, ()
