"""Classes in a graph: distances are lengths of shortest paths, computed for the observed classes only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.class_metric import ClassMetric
from thrifty.core.errors import InputError, nearest

Which = Literal["all", "leaves"]


class Edges:
    """Edges between named nodes, checked.

    Parameters
    ----------
    edges
        ``[E, 2]`` node names, integers or strings.
    weights
        Lengths ``[E]``, not negative; 1 by default.

    Attributes
    ----------
    nodes : ndarray
        The names of the nodes, sorted.
    ends : ndarray
        int64 ``[E, 2]``: which nodes each edge joins.
    matrix : scipy.sparse.csr_array
        The lengths in both directions.

    Raises
    ------
    InputError
        When there is no edge, an edge joins a node with itself, or a length is negative, NaN or infinite.
    """

    def __init__(self, edges: Any, weights: Any = None) -> None:
        from scipy.sparse import csr_array

        names = np.asarray(edges)
        if names.ndim != 2 or names.shape[1:] != (2,) or not len(names):
            raise InputError(f"edges must be pairs of nodes, [E, 2] with at least one, not {list(names.shape)}")
        self.nodes: Labels
        self.nodes, flat = np.unique(as_labels(names.reshape(-1)), return_inverse=True)
        self.ends: NDArray[np.int64] = flat.reshape(-1, 2).astype(np.int64)
        given = np.ones(len(names)) if weights is None else np.asarray(weights, dtype=np.float64)
        if given.shape != (len(names),):
            raise InputError(f"{len(names)} edges came with weights {list(given.shape)}: give one for each")
        self.weights: NDArray[np.float64] = given
        self._check()
        both = np.concatenate([self.ends, self.ends[:, ::-1]])
        # Of edges between the same two nodes the shortest counts: sparse matrices would add them up.
        order = np.lexsort((np.tile(given, 2), both[:, 1], both[:, 0]))
        both, lengths = both[order], np.tile(given, 2)[order]
        first = np.append(True, (both[1:] != both[:-1]).any(1))
        size = len(self.nodes)
        self.matrix = csr_array((lengths[first], (both[first, 0], both[first, 1])), shape=(size, size))

    def _check(self) -> None:
        loops = np.flatnonzero(self.ends[:, 0] == self.ends[:, 1])
        if len(loops):
            raise InputError(f"edge {loops[0]} joins {self.name(self.ends[loops[0], 0])} with itself: leave it out")
        bad = np.flatnonzero(~(np.isfinite(self.weights) & (self.weights >= 0)))
        if len(bad):
            a, b = (self.name(end) for end in self.ends[bad[0]])
            raise InputError(
                f"the edge {a} - {b} has length {self.weights[bad[0]]:g}: lengths are finite and not negative"
            )

    @property
    def uniform(self) -> bool:
        """Whether all edges have length 1."""
        return bool((self.weights == 1).all())

    def name(self, node: int) -> str:
        """How errors call a node."""
        return repr(self.nodes[node].item())

    def classes(self, which: Which | Sequence[Any]) -> NDArray[np.int64]:
        """The nodes that are classes: all of them, the leaves, or those named."""
        if isinstance(which, str) and which in ("all", "leaves"):
            degree = np.diff(self.matrix.indptr)
            return np.flatnonzero(degree >= 0 if which == "all" else degree == 1)
        names = as_labels(which)
        at = np.searchsorted(self.nodes, names).clip(max=len(self.nodes) - 1)
        missing = np.flatnonzero(self.nodes[at] != names)
        if len(missing):
            name = names[missing[0]].item()
            hint = nearest(str(name), map(str, self.nodes.tolist()))
            raise InputError(f"class {name!r} is no node of the edges; {hint}".rstrip("; "))
        return at.astype(np.int64)


class Graph(ClassMetric):
    """Classes are nodes of a graph; their distance is the length of the shortest path.

    Parameters
    ----------
    edges
        ``[E, 2]`` node names, integers or strings.
    weights
        Lengths ``[E]``; 1 by default, then a distance is a number of edges.
    labels
        Which nodes are classes: ``all``, ``leaves`` (with one edge), or their names.

    Raises
    ------
    InputError
        As for :class:`Edges`, or when a class is no node.
    """

    def __init__(self, edges: Any, weights: Any = None, labels: Which | Sequence[Any] = "all") -> None:
        self.edges = Edges(edges, weights)
        self.label_nodes = self.edges.classes(labels)
        super().__init__(self.edges.nodes[self.label_nodes])

    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        """Distances from some classes to all.

        Raises
        ------
        InputError
            When nothing connects two of them: both are named.
        """
        from scipy.sparse.csgraph import dijkstra

        sources = self.label_nodes[classes.cpu().numpy()]
        edges = self.edges
        found = dijkstra(edges.matrix, directed=False, indices=sources, unweighted=edges.uniform)[:, self.label_nodes]
        apart = np.argwhere(~np.isfinite(found))
        if len(apart):
            a, b = sources[apart[0, 0]], self.label_nodes[apart[0, 1]]
            raise InputError(
                f"nothing connects {edges.name(a)} and {edges.name(b)}: distances must be finite; add an edge or leave "
                "one out"
            )
        return torch.from_numpy(found)
