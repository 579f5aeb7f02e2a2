"""Streams of sessions as plain data: class-incremental, domain-incremental and overlapping."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.core.errors import InputError
from thrifty.core.seeding import derive_seed

Index = NDArray[np.int64]
StreamKind = Literal["class", "overlapping", "si-blurry", "mixed", "few-shot", "domain", "recorded"]


@dataclass(frozen=True, eq=False)
class Stream:
    """Labelled features, and which of them each session brings.

    After session t a head is tested on the test groups 0 … t; with a single group, on that one after every session.

    Parameters
    ----------
    train_x, test_x
        Features ``[N, D]``, NumPy or torch.
    train_y, test_y
        Labels ``[N]``.
    sessions
        For each of the T sessions the rows of ``train_x`` it brings, in the order they come.
    tests
        For each test group its rows of ``test_x``: T groups, one a session, or a single one. A later one may be empty.
    base_classes
        The classes of a base session that is set apart from the later ones, as few-shot streams have it.

    Raises
    ------
    InputError
        When there is no session, one is empty, or the numbers of features, labels and groups don't fit together.
    """

    train_x: Any
    train_y: Labels
    test_x: Any
    test_y: Labels
    sessions: tuple[Index, ...]
    tests: tuple[Index, ...]
    base_classes: Labels | None = None

    def __post_init__(self) -> None:
        if not self.sessions:
            raise InputError("a stream must have at least one session")
        if len(self.tests) not in (1, len(self.sessions)):
            raise InputError(f"{len(self.sessions)} sessions need as many test groups or one, not {len(self.tests)}")
        for name, groups in (("session", self.sessions), ("test group", self.tests[:1])):
            for number, rows in enumerate(groups):
                if not len(rows):
                    raise InputError(f"{name} {number} has no example: give more data or fewer sessions")
        for part, features, labels in (("train", self.train_x, self.train_y), ("test", self.test_x, self.test_y)):
            if len(features) != len(labels):
                raise InputError(f"{len(features)} {part} features came with {len(labels)} labels")

    def tested(self, session: int) -> range:
        """The test groups on which a head is measured after a session."""
        return range(1) if len(self.tests) == 1 else range(session + 1)

    def reordered(self, order: Sequence[int]) -> Stream:
        """The same sessions in another order."""
        tests = self.tests if len(self.tests) == 1 else tuple(self.tests[i] for i in order)
        sessions = tuple(self.sessions[i] for i in order)
        return replace(self, sessions=sessions, tests=tests)


def class_incremental(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    tasks: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    stochastic: bool = False,
) -> Stream:
    """T tasks of disjoint classes, as even as the number of classes allows ("T-split").

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`Stream`.
    tasks
        T, at most the number of classes.
    seed
        Draws which classes come when (unless not ``shuffle``: then in sorted order) and the order within a task.
    stochastic
        Draw how many classes each task has, at least one, instead of as even numbers as there can be.

    Raises
    ------
    InputError
        When there are more tasks than classes, or a class has no train or no test example.
    """
    train, test = as_labels(train_y), as_labels(test_y)
    classes = shared_classes(train, test)
    if not 1 <= tasks <= len(classes):
        raise InputError(f"{len(classes)} classes can't be split into {tasks} tasks: give 1 to {len(classes)}")
    random = np.random.default_rng(derive_seed(seed, "class-incremental"))
    order = random.permutation(classes) if shuffle else classes
    if stochastic:
        groups = np.split(order, np.sort(random.choice(np.arange(1, len(classes)), tasks - 1, replace=False)))
    else:
        groups = np.array_split(order, tasks)
    sessions = tuple(random.permutation(np.flatnonzero(np.isin(train, group))) for group in groups)
    tests = tuple(np.flatnonzero(np.isin(test, group)) for group in groups)
    return Stream(train_x, train, test_x, test, sessions, tests)


def domain_incremental(
    train_x: Any,
    train_y: Any,
    train_domain: Any,
    test_x: Any,
    test_y: Any,
    test_domain: Any = None,
    *,
    seed: int = 0,
    shuffle: bool = True,
) -> Stream:
    """A session a domain, all with the same classes (CoRe50's protocol).

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`Stream`.
    train_domain
        Domain of each training example, ``[N]`` integers or strings.
    test_domain
        Domain of each test example; after session t the head is tested on the domains so far. ``None``: on all test
        examples after every session, as when they come from domains that are never trained on.
    seed
        Draws the order of the domains (unless not ``shuffle``: then sorted) and the order within a session.

    Raises
    ------
    InputError
        When a domain has no test example, or the numbers of labels and domains differ.
    """
    train, test, domains = as_labels(train_y), as_labels(test_y), as_labels(train_domain)
    if len(domains) != len(train):
        raise InputError(f"{len(train)} training labels came with {len(domains)} domains")
    random = np.random.default_rng(derive_seed(seed, "domain-incremental"))
    names = np.unique(domains)
    order = random.permutation(names) if shuffle else names
    sessions = tuple(random.permutation(np.flatnonzero(domains == name)) for name in order)
    if test_domain is None:
        return Stream(train_x, train, test_x, test, sessions, (np.arange(len(test)),))
    held = as_labels(test_domain)
    if len(held) != len(test):
        raise InputError(f"{len(test)} test labels came with {len(held)} domains")
    untested = np.setdiff1d(names, held).tolist()
    if untested:
        raise InputError(f"domain {untested[0]!r} has no test example: leave the test domains out to test on all")
    return Stream(train_x, train, test_x, test, sessions, tuple(np.flatnonzero(held == name) for name in order))


def overlapping(
    train_x: Any,
    train_y: Any,
    test_x: Any,
    test_y: Any,
    tasks: int,
    *,
    disjoint: float = 0.5,
    blurry: float = 0.1,
    stochastic: bool = False,
    seed: int = 0,
) -> Stream:
    """Generalised class-incremental sessions: some classes belong to one task, the others are mixed ("i-Blurry").

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`Stream`.
    tasks
        T, at most the number of classes.
    disjoint
        Share of the classes, in [0, 1], that come in one session only.
    blurry
        Share of the other classes' training examples, in [0, 1], that come in a session drawn at random instead of
        their class's own.
    stochastic
        Draw how many classes each task has too ("Si-Blurry"), instead of as even numbers as there can be.
    seed
        Draws the classes, the mixing and the order.

    Returns
    -------
    Stream
        A class's test examples belong to the first session that brings the class.

    Raises
    ------
    InputError
        When a share is outside of [0, 1], or as for :func:`class_incremental`.
    """
    for name, share in (("disjoint", disjoint), ("blurry", blurry)):
        if not 0 <= share <= 1:
            raise InputError(f"{name} is a share between 0 and 1, not {share}")
    base = class_incremental(train_x, train_y, test_x, test_y, tasks, seed=seed, stochastic=stochastic)
    random = np.random.default_rng(derive_seed(seed, "overlapping"))
    classes = np.unique(base.train_y)
    pure = random.permutation(classes)[: round(disjoint * len(classes))]
    home = np.empty(len(base.train_y), dtype=np.int64)
    for session, rows in enumerate(base.sessions):
        home[rows] = session
    moved = ~np.isin(base.train_y, pure) & (random.random(len(home)) < blurry)
    home[moved] = random.integers(tasks, size=int(moved.sum()))
    return by_arrival(base.train_x, base.train_y, base.test_x, base.test_y, home, tasks, random)


def by_arrival(
    train_x: Any,
    train_y: Labels,
    test_x: Any,
    test_y: Labels,
    home: Index,
    tasks: int,
    random: np.random.Generator | None = None,
) -> Stream:
    """A stream from the session of each training example; a class is tested from its first session on.

    Parameters
    ----------
    train_x, train_y, test_x, test_y
        As for :class:`Stream`.
    home
        ``[N]``: the session in which each training example comes, from 0 to ``tasks - 1``.
    tasks
        T.
    random
        Draws the order within a session; as given when ``None``.
    """
    classes = shared_classes(train_y, test_y)
    first = np.full(len(classes), tasks, dtype=np.int64)
    np.minimum.at(first, np.searchsorted(classes, train_y), home)
    arrival = first[np.searchsorted(classes, test_y)]
    sessions = [np.flatnonzero(home == session) for session in range(tasks)]
    tests = tuple(np.flatnonzero(arrival == session) for session in range(tasks))
    ordered = tuple(rows if random is None else random.permutation(rows) for rows in sessions)
    return Stream(train_x, train_y, test_x, test_y, ordered, tests)


def shared_classes(train: Labels, test: Labels) -> Labels:
    """The sorted classes of training and test examples.

    Raises
    ------
    InputError
        When there is no example, or a class has none in one of the parts.
    """
    if not len(train) or not len(test):
        raise InputError(f"there are {len(train)} training and {len(test)} test examples: both are needed")
    classes = np.unique(train)
    odd = np.setxor1d(classes, np.unique(test)).tolist()
    if odd:
        part = "test" if odd[0] in classes else "training"
        raise InputError(f"class {odd[0]!r} has no {part} example: every class needs both")
    return classes
