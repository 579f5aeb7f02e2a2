"""A tree as arrays: nodes by level, and subtrees as slices of an order in which each is in one piece."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from thrifty.adapt.class_graph import Edges
from thrifty.core.errors import InputError


@dataclass(frozen=True, eq=False)
class Rooted:
    """A rooted tree as arrays.

    Parameters
    ----------
    order
        Nodes by level, the root first, the children of a node together.
    parent
        Of each node; the root is its own.
    length
        Of the edge to the parent; 0 at the root.
    depth
        Distance to the root.
    level
        Edges to the root.
    start, size
        A node's place in preorder, and how many nodes its subtree has: the subtree is a slice of the preorder.
    """

    order: NDArray[np.int64]
    parent: NDArray[np.int64]
    length: NDArray[np.float64]
    depth: NDArray[np.float64]
    level: NDArray[np.int64]
    start: NDArray[np.int64]
    size: NDArray[np.int64]


def rooted(edges: Edges) -> Rooted:
    """Roots a tree at its middle, so that it has few levels.

    Raises
    ------
    InputError
        When the edges have a circle, or do not connect all nodes.
    """
    from scipy.sparse.csgraph import breadth_first_order

    count = len(edges.nodes)
    one_end = breadth_first_order(edges.matrix, 0, directed=False)[0]
    if len(one_end) < count:
        away = np.setdiff1d(np.arange(count), one_end)[0]
        raise InputError(f"the edges are no tree: nothing connects {edges.name(0)} and {edges.name(away)}")
    if edges.matrix.nnz != 2 * (count - 1):
        raise InputError(
            f"the edges are no tree: {edges.matrix.nnz // 2} of them join {count} nodes, so there is a circle; "
            "give them as a graph"
        )
    other_end, before = breadth_first_order(edges.matrix, one_end[-1], directed=False)
    path = [int(other_end[-1])]
    while path[-1] != one_end[-1]:
        path.append(int(before[path[-1]]))
    root = path[len(path) // 2]
    found, before = breadth_first_order(edges.matrix, root, directed=False)
    order = found.astype(np.int64)
    parent = np.where(before < 0, root, before).astype(np.int64)
    up, steps = parent.tolist(), order.tolist()
    level, size, start, free = [0] * count, [1] * count, [0] * count, [1] * count
    for node in reversed(steps[1:]):
        size[up[node]] += size[node]
    for node in steps[1:]:
        above = up[node]
        level[node] = level[above] + 1
        start[node] = free[above]
        free[above] += size[node]
        free[node] = start[node] + 1
    length = np.zeros(count)
    row = np.repeat(np.arange(count), np.diff(edges.matrix.indptr))
    to_parent = edges.matrix.indices == parent[row]
    length[row[to_parent]] = edges.matrix.data[to_parent]
    length[root] = 0.0
    depth = length.copy().tolist()
    for node in steps[1:]:
        depth[node] += depth[up[node]]
    return Rooted(order, parent, length, np.array(depth), *(np.array(part) for part in (level, start, size)))
