"""Streams beyond disjoint and domain-wise sessions: classes dealt over sessions, a base session and few shots, and
sessions as they were recorded."""

from __future__ import annotations

from typing import Any

import numpy as np

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.stream import Stream, by_arrival, shared_classes
from thrifty.core.errors import InputError
from thrifty.core.seeding import derive_seed


def mixed(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    tasks: int,
    *,
    concentration: float = 0.5,
    seed: int = 0,
) -> Stream:
    """Generalised class-incremental sessions with any mixture of classes: each class is dealt over all sessions.

    The share of a class's examples that each session gets is drawn from a Dirichlet distribution, class by class, so
    that sessions differ in their classes, in how many there are, and in how many examples each has.

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`thrifty.adapt.stream.Stream`.
    tasks
        T.
    concentration
        Above 0: near 0 each class comes in one session, far above 1 all sessions are alike.
    seed
        Draws the shares and the order.

    Returns
    -------
    Stream
        A class's test examples belong to the first session that brings the class.

    Raises
    ------
    InputError
        When the concentration is not positive, a class has no train or no test example, or a session stays empty.
    """
    if not 0 < concentration < float("inf"):
        raise InputError(f"concentration must be above 0, not {concentration}")
    if tasks < 1:
        raise InputError(f"a stream must have at least one session, not {tasks}")
    train, test = as_labels(train_y), as_labels(test_y)
    random = np.random.default_rng(derive_seed(seed, "mixed"))
    home = np.empty(len(train), dtype=np.int64)
    for name in shared_classes(train, test).tolist():
        rows = np.flatnonzero(train == name)
        home[rows] = random.choice(tasks, size=len(rows), p=random.dirichlet([concentration] * tasks))
    return by_arrival(train_x, train, test_x, test, home, tasks, random)


def few_shot_incremental(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    base_classes: int | Labels,
    *,
    way: int = 5,
    shots: int = 5,
    sessions: int | None = None,
    seed: int = 0,
) -> Stream:
    """A base session with all its examples, then sessions of ``way`` new classes with ``shots`` examples each.

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`thrifty.adapt.stream.Stream`.
    base_classes
        How many classes the base session has, drawn at random; or which.
    way
        New classes in each later session.
    shots
        Examples of each new class, drawn from the training examples.
    sessions
        How many sessions follow; as many as the classes allow when ``None``. Classes beyond them are left out.
    seed
        Draws the classes and the shots.

    Raises
    ------
    InputError
        When there are too few classes, a new class has fewer than ``shots`` training examples, or a class has no train
        or no test example.
    """
    train, test = as_labels(train_y), as_labels(test_y)
    classes = shared_classes(train, test)
    random = np.random.default_rng(derive_seed(seed, "few-shot"))
    order = random.permutation(classes)
    if isinstance(base_classes, int):
        base, new = order[:base_classes], order[base_classes:]
    else:
        wanted = as_labels(base_classes)
        unknown = np.setdiff1d(wanted, classes).tolist()
        if unknown:
            raise InputError(f"base class {unknown[0]!r} has no example")
        base, new = order[np.isin(order, wanted)], order[~np.isin(order, wanted)]
    if way < 1 or shots < 1:
        raise InputError(f"way and shots must be at least 1, not {way} and {shots}")
    count = len(new) // way if sessions is None else sessions
    if not len(base) or count < 1 or len(new) < count * way:
        raise InputError(
            f"{len(classes)} classes don't make a base session of {len(base)} and {max(count, 1)} of {way} new ones: "
            "give fewer base classes, a smaller way or fewer sessions"
        )
    groups = [base, *np.split(new[: count * way], count)]
    brought = [random.permutation(np.flatnonzero(np.isin(train, base)))]
    for group in groups[1:]:
        rows = [_shots(train, name, shots, random) for name in group]
        brought.append(random.permutation(np.concatenate(rows)))
    tests = tuple(np.flatnonzero(np.isin(test, group)) for group in groups)
    return Stream(train_x, train, test_x, test, tuple(brought), tests, base_classes=np.sort(base))


def _shots(train: Labels, name: Any, shots: int, random: np.random.Generator) -> Labels:
    rows = np.flatnonzero(train == name)
    if len(rows) < shots:
        raise InputError(f"class {name!s} has {len(rows)} training examples, fewer than the {shots} shots")
    return random.choice(rows, shots, replace=False)


def recorded(
    train_x: Any, train_y: Any, train_session: Any, test_x: Any, test_y: Any, *, disjoint: bool = False
) -> Stream:
    """Sessions as they were recorded: each training example says in which one it came.

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`thrifty.adapt.stream.Stream`.
    train_session
        ``[N]`` numbers or names of sessions, which come in sorted order.
    disjoint
        Whether each class must come in one session only, as class-incremental protocols have it.

    Returns
    -------
    Stream
        A class's test examples belong to the first session that brings the class.

    Raises
    ------
    InputError
        When the numbers of labels and sessions differ, a class has no train or no test example, or comes twice although
        ``disjoint``.
    """
    train, test, sessions = as_labels(train_y), as_labels(test_y), as_labels(train_session)
    if len(sessions) != len(train):
        raise InputError(f"{len(train)} training labels came with {len(sessions)} sessions")
    names, home = np.unique(sessions, return_inverse=True)
    if disjoint:
        for name in shared_classes(train, test).tolist():
            where = names[np.unique(home[train == name])].tolist()
            if len(where) > 1:
                raise InputError(
                    f"class {name!r} comes in the sessions {where[0]!r} and {where[1]!r}: a disjoint protocol allows "
                    "one; leave disjoint=False for a generalised stream"
                )
    return by_arrival(train_x, train, test_x, test, home, len(names))
