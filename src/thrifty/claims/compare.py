"""Every method of a room that a task's data allow, beside the task's baselines."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from thrifty.claims.harness import Arm, measure, summarise, versions
from thrifty.core import index
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import Task, load, load_room


def pick_task(room: str, name: str | None) -> tuple[str, Task]:
    """The task of that name, or the room's only one.

    Raises
    ------
    InputError
        When there is no such task, or several to choose from; they are named.
    """
    tasks = load_room(room).tasks
    if name is None and len(tasks) == 1:
        return next(iter(tasks.items()))
    if name is None or name not in tasks:
        said = "give --task" if name is None else f"{room} has no task {name!r}"
        raise InputError(f"{said}: {nearest(name or '', tasks) or 'known: ' + ', '.join(sorted(tasks))}")
    return name, tasks[name]


def arms(room: str, task: Task) -> dict[str, Arm]:
    """Every implemented method that needs no more than the task gives, its variants, and the baselines."""
    found: dict[str, Arm] = {}
    for paper in index.matching(room, sorted(task.gives)):
        if index.implemented(paper):
            found[paper.id] = partial(_run_method, task, load(paper.id))
    for name, make in task.variants.items():
        found[name] = partial(_run_method, task, make)
    return found | dict(task.baselines)


def _run_method(task: Task, make: Callable[[], Any], problem: Any) -> Any:
    return task.evaluate(make(), problem)


def compare(
    room: str, task_name: str | None, directory: Path, *, seeds: int = 3, quick: bool = False
) -> dict[str, Any]:
    """Measures all arms of a task over several seeds.

    Parameters
    ----------
    room
        A room's name.
    task_name
        One of its tasks.
    directory
        Where finished arms are kept, so that an interrupted comparison goes on.
    seeds
        How many seeds.
    quick
        Small sizes and one seed.

    Returns
    -------
    dict
        As :func:`thrifty.claims.harness.reproduce` returns, without a verdict, with the task's ``axes`` and the
        names of its ``baselines``.
    """
    name, task = pick_task(room, task_name)
    count = 1 if quick else seeds
    measured = measure(task.prepare, arms(room, task), range(count), directory, quick=quick)
    return {
        "room": room,
        "task": name,
        "says": task.summary,
        "quick": quick,
        "metric": task.metrics[0].lstrip("-"),
        "metrics": list(task.metrics),
        "axes": None if task.axes is None else list(task.axes),
        "baselines": list(task.baselines),
        "arms": summarise(measured),
        "seeds": list(range(count)),
        "versions": versions(),
    }
