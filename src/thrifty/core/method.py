"""The registry: a paper's id, the class that implements it, and the room it lives in."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

from thrifty.core import index
from thrifty.core.errors import InputError, nearest

if TYPE_CHECKING:
    from thrifty.core.run import Run

C = TypeVar("C", bound=type)
_REGISTRY: dict[str, type] = {}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how a job runs: what the command asks beside a room's inputs and a method's hyper-parameters.

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


class Method(Protocol):
    """A registered class: a dataclass whose fields are the paper's hyper-parameters."""

    paper_id: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


def register(paper_id: str) -> Callable[[C], C]:
    """Puts a dataclass under its paper's id.

    Raises
    ------
    ValueError
        When the class is no dataclass, a field has the name of an option of the command, or the id is taken by
        another class.
    """

    def enter(cls: C) -> C:
        if not dataclasses.is_dataclass(cls):
            raise ValueError(f"{cls.__name__} must be a dataclass: its fields are the hyper-parameters")
        check_fields(cls, RunOptions)
        other = _REGISTRY.get(paper_id)
        if other is not None and (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"paper id {paper_id!r} is taken by {other.__module__}.{other.__qualname__}")
        cls.paper_id = paper_id  # type: ignore[attr-defined]
        _REGISTRY[paper_id] = cls
        return cls

    return enter


def check_fields(*parts: type) -> None:
    """Checks that dataclasses can share one command line.

    Parameters
    ----------
    parts
        Dataclasses; the class that could be changed comes before those that it must fit.

    Raises
    ------
    ValueError
        When two of them have a field of the same name; it and both classes are named.
    """
    owners: dict[str, type] = {}
    for part in parts:
        for field in dataclasses.fields(part):
            owner = owners.setdefault(field.name, part)
            if owner is not part:
                raise ValueError(
                    f"{owner.__name__} can't have a field {field.name!r}: {part.__name__} has one, and they share one "
                    "command line; rename it"
                )


def load(paper_id: str) -> type:
    """The class that implements a paper.

    Raises
    ------
    NotFoundError
        When no paper has that id; the nearest ids are named.
    InputError
        When the paper is in the index but not implemented yet.
    """
    paper = index.paper(paper_id)
    if not index.implemented(paper):
        raise InputError(f"{paper_id} is in the index but not implemented yet: `thrifty list` shows which are")
    importlib.import_module(index.module_name(paper))
    if paper_id not in _REGISTRY:
        raise RuntimeError(f"{index.module_name(paper)} registers no class under {paper_id!r}")
    return _REGISTRY[paper_id]


@dataclasses.dataclass(frozen=True)
class Argument:
    """One hyper-parameter as people read it: its name, type, default and what the docstring says of it."""

    name: str
    type: str
    default: Any
    help: str


def arguments(cls: type) -> list[Argument]:
    """The hyper-parameters of a method (or the inputs of a room), in the order of its fields.

    Parameters
    ----------
    cls
        A dataclass with a NumPy-style ``Parameters`` section; what it inherits may be described where it comes from.
    """
    helps: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        helps |= _parameter_docs(inspect.cleandoc(owner.__doc__ or ""))
    return [
        Argument(field.name, str(field.type), _default(field), helps.get(field.name, ""))
        for field in dataclasses.fields(cls)
        if field.init
    ]


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _parameter_docs(doc: str) -> dict[str, str]:
    _, _, section = doc.partition("Parameters\n----------\n")
    section = re.split(r"\n\w[\w ]*\n-{3,}\n", section)[0]
    docs: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.partition(":")[0].split(",")]
        elif line.strip():
            for name in names:
                docs[name] = f"{docs.get(name, '')} {line.strip()}".strip()
    return docs


Metrics = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """Data on which every method of a room that can use it is compared, beside its baselines.

    Parameters
    ----------
    summary
        One line for people.
    gives
        What the data holds, in the index's words; a method runs when it needs no more than that.
    prepare
        ``prepare(seed, quick, directory)``: the problem (data, trained model, ...) all arms of that seed share.
    evaluate
        ``evaluate(method, problem)``: runs one method of the room on it and measures.
    baselines
        Name to ``baseline(problem)``: what one would do without the room's methods.
    metrics
        The measured values in the order to show them; a leading ``-`` marks those where less is better.
    variants
        Arms beside each method at its defaults: name to an instance of a registered class.
    axes
        Two of the metrics, of which the report plots the trade-off, along x and y.
    """

    summary: str
    gives: frozenset[str]
    prepare: Callable[..., Any]
    evaluate: Callable[[Any, Any], Metrics]
    baselines: Mapping[str, Callable[[Any], Metrics]]
    metrics: Sequence[str]
    variants: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    axes: tuple[str, str] | None = None


@dataclasses.dataclass(frozen=True)
class Room:
    """What a room tells the command: the user's inputs, how a method runs on them, and its tasks.

    Parameters
    ----------
    inputs
        A dataclass of the room's own options (``model``, ``data``, ...), every field with a default, so that a
        method runs on embedded data when nothing is given.
    run
        ``run(method, inputs, run)``: runs one method on the user's inputs and returns the summary: a dict
        whose ``table`` (list of rows) is shown, and whose other values are kept.
    tasks
        The comparisons that ``thrifty compare`` knows.
    parallel
        Whether several processes (``torchrun``) may share one job of the room.
    """

    inputs: type
    run: Callable[[Any, Any, Run], dict[str, Any]]
    tasks: Mapping[str, Task]
    parallel: bool = False


def load_room(name: str) -> Room:
    """The room of that name.

    Raises
    ------
    InputError
        When there is no such room, or nothing in it is implemented yet.
    """
    if name not in index.ROOMS:
        raise InputError(f"no room {name!r}: {nearest(name, index.ROOMS)}")
    try:
        module = importlib.import_module(f"thrifty.{name}.room")
    except ModuleNotFoundError as error:
        if error.name not in {f"thrifty.{name}", f"thrifty.{name}.room"}:
            raise
        raise InputError(f"the room {name!r} is planned; nothing in it is implemented yet") from error
    room: Room = module.ROOM
    return room
