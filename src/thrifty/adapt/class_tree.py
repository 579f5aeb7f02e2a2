"""Classes in a tree: the Fréchet mean over all of them in time linear in the tree, whatever number is observed.

Along the edge from v to its child c of length w, with the observed mass M_c and its first moment
``T_c = Σ p_i d(c, λ_i)`` below c, and ``S(v) = Σ p_i d(v, λ_i)`` over all::

    S(c) = S(v) + w (1 − 2 M_c),        F(c) = F(v) + w² + 2 w (S(v) − 2 (T_c + w M_c))

where F is the objective. M and T of all nodes are differences of prefix sums over the observed classes in the tree's
order, and what is left are sums along paths from the root. Of the leaves at one node and one distance the likeliest is
best, ``F(y) = F(v) + 2 w S(v) + w² (1 − 4 p_y)``, so leaves need no more than a maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.adapt.accumulator import row_chunks
from thrifty.adapt.class_graph import Edges, Which
from thrifty.adapt.class_metric import ClassMetric, Rule
from thrifty.adapt.frechet import first_best, spread, tied
from thrifty.adapt.locus import farthest, reachable
from thrifty.adapt.rooted_tree import rooted
from thrifty.core.errors import InputError

_LEVELS = 64  # trees with more are summed by doubling instead of level by level


def tree_distances(
    edges: Sequence[tuple[int, int]] | Tensor, n_nodes: int, weights: Tensor | None = None
) -> Float[Tensor, "N N"]:
    """All distances between the nodes 0 ... N-1 of a tree.

    Parameters
    ----------
    edges
        Pairs of nodes.
    n_nodes
        N.
    weights
        Lengths of the edges; 1 by default.
    """
    tree = Tree(np.asarray(edges), None if weights is None else np.asarray(weights))
    if tree.labels.tolist() != list(range(n_nodes)):
        raise InputError(f"the edges join {len(tree)} nodes, not 0 ... {n_nodes - 1}")
    return tree.rows(torch.arange(n_nodes))


class Tree(ClassMetric):
    """Classes are nodes of a tree; their distance is the length of the path between them.

    Parameters
    ----------
    edges
        ``[E, 2]`` node names, integers or strings.
    weights
        Lengths ``[E]``, not negative; 1 by default, then a distance is a number of edges.
    labels
        Which nodes are classes: ``all``, ``leaves`` (a phylogenetic tree), or their names.

    Raises
    ------
    InputError
        When the edges are no tree, a length is negative, or a class is no node.
    """

    def __init__(self, edges: Any, weights: Any = None, labels: Which | Sequence[Any] = "all") -> None:
        self.edges = Edges(edges, weights)
        self.label_nodes = self.edges.classes(labels)
        self.tree = rooted(self.edges)
        super().__init__(self.edges.nodes[self.label_nodes])

    @property
    def all_nodes(self) -> bool:
        """Whether every node is a class."""
        return len(self) == len(self.edges.nodes)

    def rows(self, classes: Int[Tensor, " K"]) -> Float[Tensor, "K N"]:
        rule, one_hot = self.rule(classes), torch.eye(len(classes), dtype=torch.float64)
        return torch.cat([rule.first_moments(one_hot[part]) for part in row_chunks(len(classes), rule.width)])

    def rule(self, observed: Int[Tensor, " K"], device: torch.device | str = "cpu") -> TreeRule:
        return TreeRule(self, observed, torch.device(device))

    def spanned(self, observed: Int[Tensor, " K"]) -> Bool[Tensor, " V"]:
        """The nodes on paths between observed classes."""
        tree, nodes = self.tree, self.label_nodes[observed.numpy()]
        places = np.sort(tree.start[nodes])
        below = np.searchsorted(places, tree.start + tree.size) - np.searchsorted(places, tree.start)
        branches = np.bincount(tree.parent[tree.order[1:]], below[tree.order[1:]] > 0, minlength=len(below))
        found = (below > 0) & ((below < len(nodes)) | (branches > 1))
        found[nodes] = True
        return torch.from_numpy(found)

    def locus(self, observed: Int[Tensor, " K"]) -> Bool[Tensor, " N"]:
        """The classes on paths between observed ones; where not all nodes are classes, those off the paths that are
        nearest to something too (by linear programs, for some hundred classes)."""
        between = self.spanned(observed)[torch.from_numpy(self.label_nodes)]
        return between if self.all_nodes else reachable(self.rows(observed).square(), between)

    def identifying_set(self) -> Int[Tensor, " M"]:
        """The leaves where every node is a class: no path between others leads through them, and theirs through all."""
        if not self.all_nodes:
            return super().identifying_set()
        return torch.from_numpy(np.flatnonzero(np.isin(self.label_nodes, self.edges.classes("leaves"))))

    def next_class(self, observed: Int[Tensor, " K"], candidates: Sequence[int] | None = None) -> int:
        """The class farthest from the locus, which adds a whole path to it.

        Where not all nodes are classes, it is the farthest from the paths between observed classes: the count of newly
        reached classes, which the paper asks for, takes linear programs (``largest_locus``).
        """
        from scipy.sparse.csgraph import dijkstra

        allowed = torch.zeros(len(self), dtype=torch.bool)
        allowed[self._candidates(observed, candidates)] = True
        inside = self.spanned(observed).nonzero()[:, 0].numpy()
        away = dijkstra(self.edges.matrix, directed=False, indices=inside, min_only=True)
        return farthest(torch.from_numpy(away[self.label_nodes]), allowed)


class TreeRule(Rule):
    """The Fréchet mean over a tree's classes.

    Parameters
    ----------
    tree
        The tree.
    observed
        Which of its classes the probabilities are of.
    device
        Where to compute.
    """

    def __init__(self, tree: Tree, observed: Int[Tensor, " K"], device: torch.device) -> None:
        super().__init__(observed.to(device), len(tree))
        t = tree.tree

        def there(array: Any) -> Tensor:
            return torch.as_tensor(array, device=device)

        inner = t.order[(t.size[t.order] > 1) | (t.level[t.order] == 0)]
        place = np.full(len(t.order), -1)
        place[inner] = np.arange(len(inner))
        self.parent, self.length = there(place[t.parent[inner]]), there(t.length[inner])
        self.depth = there(t.depth[inner])
        self.levels = np.searchsorted(t.level[inner], np.arange(t.level[inner].max() + 2)).tolist()

        nodes = tree.label_nodes[observed.cpu().numpy()]
        sorting = np.argsort(t.start[nodes], kind="stable")
        places = t.start[nodes][sorting]
        self.sorting, self.depths = there(sorting), there(t.depth[nodes][sorting])
        # S and F of the root are sums over the observed classes.
        self.root = there(t.depth[nodes]), there(t.depth[nodes] ** 2)
        self.first = there(np.searchsorted(places, t.start[inner]))
        self.last = there(np.searchsorted(places, t.start[inner] + t.size[inner]))

        inside = place[tree.label_nodes]
        self.inner_labels = there(np.flatnonzero(inside >= 0))
        self.inner_places = there(inside[inside >= 0])
        leaves = np.flatnonzero(inside < 0)
        leaf_nodes = tree.label_nodes[leaves]
        keys = np.stack([place[t.parent[leaf_nodes]], t.length[leaf_nodes]], axis=1)
        kinds, group = np.unique(keys, axis=0, return_inverse=True) if len(keys) else (keys, np.zeros(0, np.int64))
        together = np.argsort(group.reshape(-1), kind="stable")
        self.leaves, self.group = there(leaves[together]), there(group.reshape(-1)[together])
        self.group_parent, self.group_length = there(kinds[:, 0].astype(np.int64)), there(kinds[:, 1])
        self.group_start = there(np.searchsorted(group.reshape(-1)[together], np.arange(len(kinds) + 1)))
        # The column of each class's probability; of those that are not observed the one behind the last, a zero.
        column = np.full(len(tree), len(nodes))
        column[observed.cpu().numpy()] = np.arange(len(nodes))
        self.inner_columns = there(column[inside >= 0])
        self.leaf_columns = there(column[leaves[together]])
        self.all_observed = len(nodes) == len(tree)

    @property
    def width(self) -> int:
        # A few rows at a time: what is computed on the way then stays in the processor's cache.
        return 8 * (len(self.parent) + self.classes)

    def _inner(self, probs: Float[Tensor, "B K"]) -> Tensor:
        """S and F of the nodes that have children, as real and imaginary part: what is gathered together."""
        p, w = probs[:, self.sorting], self.length
        sums = torch.nn.functional.pad(torch.complex(p, p * self.depths).cumsum(1), (1, 0))
        below = sums[:, self.last].sub_(sums[:, self.first])
        m = below.real
        # The first moment below a node about its parent: T + w M.
        t = torch.addcmul(below.imag, m, w - self.depth)
        gain_s = torch.addcmul(w, m, -2 * w)
        gain_f = torch.addcmul(w.square(), t, -4 * w)
        root_s, root_f = (probs @ part for part in self.root)
        if len(self.levels) - 1 > _LEVELS:
            s = root_s[:, None] + self._summed(gain_s)
            return torch.complex(s, root_f[:, None] + self._summed(torch.addcmul(gain_f, s[:, self.parent], 2 * w)))
        found = sums.new_empty(m.shape)
        found[:, 0] = torch.complex(root_s, root_f)
        for start, end in zip(self.levels[1:-1], self.levels[2:], strict=True):
            above, here = found[:, self.parent[start:end]], found[:, start:end]
            torch.add(above.real, gain_s[:, start:end], out=here.real)
            torch.addcmul(gain_f[:, start:end], above.real, 2 * w[start:end], out=here.imag).add_(above.imag)
        return found

    def _summed(self, x: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """The sums along the paths from the root, whose own is 0, over 1, 2, 4, ... nodes."""
        jump = self.parent
        while jump.any():
            x = x + x[:, jump]
            jump = jump[jump]
        return x

    def _of(self, probs: Float[Tensor, "B K"], columns: Int[Tensor, " C"]) -> Float[Tensor, "B C"]:
        """Probabilities by column, 0 for the one behind the last."""
        return (probs if self.all_observed else torch.nn.functional.pad(probs, (0, 1)))[:, columns]

    def costs(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        state, w = self._inner(probs), self.group_length[self.group]
        above, p = state[:, self.group_parent[self.group]], self._of(probs, self.leaf_columns)
        found = probs.new_empty(len(probs), self.classes)
        found[:, self.inner_labels] = state[:, self.inner_places].imag
        found[:, self.leaves] = above.imag + 2 * w * above.real + w.square() * (1 - 4 * p)
        return found

    def first_moments(self, probs: Float[Tensor, "B K"]) -> Float[Tensor, "B N"]:
        """``S(y) = Σ p_i d(y, λ_i)``: of a one-hot row the distances themselves."""
        state, w = self._inner(probs).real, self.group_length[self.group]
        p = self._of(probs, self.leaf_columns)
        found = probs.new_empty(len(probs), self.classes)
        found[:, self.inner_labels] = state[:, self.inner_places]
        found[:, self.leaves] = state[:, self.group_parent[self.group]] + w * (1 - 2 * p)
        return found

    def _nearest(self, probs: Float[Tensor, "B K"]) -> Int[Tensor, " B"]:
        state, w = self._inner(probs), self.group_length
        ours, above = self._of(probs, self.leaf_columns), state[:, self.group_parent]
        best = probs.new_zeros(len(probs), len(w)).scatter_reduce_(1, self.group.expand(len(probs), -1), ours, "amax")
        scores = torch.addcmul(w.square(), best, -4 * w.square()).add_(above.imag).addcmul_(above.real, 2 * w)
        inner = len(self.inner_labels)
        if inner:
            scores = torch.cat([state[:, self.inner_places].imag, scores], 1)
            best = torch.cat([self._of(probs, self.inner_columns), best], 1)
        likely = torch.where(tied(scores), best, -1.0)
        top, winner = likely.max(1, keepdim=True)
        found = self.inner_labels[winner[:, 0].clamp(max=inner - 1)] if inner else winner[:, 0]
        in_leaves = winner[:, 0] >= inner
        if in_leaves.any():
            found[in_leaves] = self._leaf(winner[in_leaves] - inner, ours[in_leaves], top[in_leaves])
        # Where several places are equally good and likely, the first class counts: that takes all scores.
        several = (likely == top).sum(1) > 1
        if several.any():
            found[several] = first_best(self.costs(probs[several]), spread(probs[several], self.observed, self.classes))
        return found

    def _leaf(self, group: Int[Tensor, "B 1"], p: Float[Tensor, "B L"], top: Float[Tensor, "B 1"]) -> Int[Tensor, " B"]:
        """The first leaf of a group that has the group's largest probability."""
        start, end = self.group_start[group], self.group_start[group + 1]
        place = start + torch.arange(int((end - start).max()), device=p.device)
        mine = (place < end) & (p.gather(1, place.clamp(max=p.shape[1] - 1)) == top)
        return self.leaves[(start + mine.byte().argmax(1, keepdim=True))[:, 0]]
