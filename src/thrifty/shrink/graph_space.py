"""The space of NAS-Bench-Graph: four operations on the nodes of a graph, each reading the input or an earlier one.

An architecture is a link of each operation (0 for the input, 1 for the first operation, ...) and its name. What no
other operation reads goes to the output, side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError

LINKS = (
    (0, 0, 0, 0),
    (0, 0, 0, 1),
    (0, 0, 1, 1),
    (0, 0, 1, 2),
    (0, 0, 1, 3),
    (0, 1, 1, 1),
    (0, 1, 1, 2),
    (0, 1, 2, 2),
    (0, 1, 2, 3),
)
OPERATIONS = ("gat", "gcn", "gin", "cheb", "sage", "arma", "graph", "fc", "skip")
_BASE = len(OPERATIONS) + 1


def architecture_of(code: int) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Links and operations of a code of the benchmark: decimal digits, first the link's number, then the operations'.

    Raises
    ------
    InputError
        When it is no code.
    """
    digits = [code // _BASE**place % _BASE for place in range(5)][::-1]
    if not 0 <= code < len(LINKS) * _BASE**4 or max(digits[1:]) >= len(OPERATIONS):
        raise InputError(f"{code} is no architecture of NAS-Bench-Graph")
    return LINKS[digits[0]], tuple(OPERATIONS[digit] for digit in digits[1:])


def graph_encoding(codes: Int[np.ndarray, " architecture"]) -> Float[np.ndarray, "architecture choice"]:
    """Each architecture as 0 and 1: its links, and the operation at each place, [N, 9 + 4 * 9]."""
    digits = np.asarray(codes)[:, None] // _BASE ** np.arange(4, -1, -1) % _BASE
    return np.eye(len(OPERATIONS))[digits].reshape(len(digits), -1)


@dataclass(frozen=True, eq=False)
class Graph:
    """A graph whose nodes have features and classes.

    Parameters
    ----------
    x
        Features of the nodes, [N, D].
    y
        Their classes, int64, [N].
    adjacency
        1 where two nodes are joined, symmetric and 0 on the diagonal, [N, N].
    """

    x: Float[Tensor, "node feature"]
    y: Int[Tensor, " node"]
    adjacency: Float[Tensor, "node node"]


class GraphNet(nn.Module):
    """A graph network of the space for one graph: ``net(x)`` are the logits of all its nodes.

    In front of the cell is a linear map to its width, behind it one to the classes, and behind each operation but
    ``skip`` a rectifier.

    Parameters
    ----------
    code
        The architecture.
    graph
        The graph.
    width
        Of the hidden features, even.
    """

    neighbours: Tensor
    with_loops: Tensor
    mean: Tensor
    normalised: Tensor
    without_loops: Tensor

    def __init__(self, code: int, graph: Graph, width: int = 32) -> None:
        super().__init__()
        self.links, self.names = architecture_of(code)
        a = graph.adjacency
        loops = a + torch.eye(len(a))
        degree = loops.sum(1).rsqrt()
        self.register_buffer("neighbours", a)
        self.register_buffer("with_loops", loops)
        self.register_buffer("mean", a / a.sum(1, keepdim=True).clamp(min=1))
        self.register_buffer("normalised", degree[:, None] * loops * degree[None, :])
        single = a.sum(1).clamp(min=1).rsqrt()
        self.register_buffer("without_loops", single[:, None] * a * single[None, :])
        self.first = nn.Linear(graph.x.shape[1], width)
        self.operations = nn.ModuleList(_OPERATIONS[name](width) for name in self.names)
        leaves = set(range(1, 5)) - set(self.links)
        self.leaves = tuple(sorted(leaves))
        self.last = nn.Linear(width * len(self.leaves), int(graph.y.max()) + 1)

    def forward(self, x: Float[Tensor, "node feature"]) -> Float[Tensor, "node classes"]:
        """The logits of all nodes."""
        states = [self.first(x)]
        for link, name, operation in zip(self.links, self.names, self.operations, strict=True):
            found = operation(states[link], self)
            states.append(found if name == "skip" else functional.relu(found))
        logits: Tensor = self.last(torch.cat([states[leaf] for leaf in self.leaves], dim=1))
        return logits


class _Two(nn.Module):
    """Two linear maps: of the node itself, and of what comes from its neighbours; ``over`` names the matrix."""

    over: str

    def __init__(self, width: int) -> None:
        super().__init__()
        self.own, self.other = nn.Linear(width, width), nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:
        found: Tensor = self.own(x) + getattr(net, self.over) @ self.other(x)
        return found


class _GraphConv(_Two):
    over = "neighbours"


class _Sage(_Two):
    over = "mean"


class _Cheb(_Two):
    """Of order 2: for the largest eigenvalue 2 the scaled Laplacian is minus the normalised adjacency."""

    over = "without_loops"

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:
        found: Tensor = self.own(x) - net.without_loops @ self.other(x)
        return found


class _Arma(_Two):
    """One stack of one layer."""

    over = "without_loops"


class _GCN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:
        found: Tensor = net.normalised @ self.map(x)
        return found


class _GIN(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:
        found: Tensor = self.map(net.with_loops @ x)
        return found


class _GAT(nn.Module):
    """Attention over a node's neighbours and itself, with two heads."""

    heads = 2

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)
        self.attention = nn.Parameter(torch.empty(2, self.heads, width // self.heads))
        nn.init.xavier_uniform_(self.attention)

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:
        values = self.map(x).unflatten(1, (self.heads, -1)).transpose(0, 1)
        target, source = (self.attention[:, :, None] * values).sum(-1)  # [heads, N] each
        weights = functional.leaky_relu(target[:, :, None] + source[:, None, :], 0.2)
        attention = weights.masked_fill(net.with_loops == 0, -torch.inf).softmax(-1)
        return (attention @ values).transpose(0, 1).flatten(1)


class _FC(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:  # noqa: ARG002
        found: Tensor = self.map(x)
        return found


class _Skip(nn.Module):
    def __init__(self, width: int) -> None:  # noqa: ARG002
        super().__init__()

    def forward(self, x: Tensor, net: GraphNet) -> Tensor:  # noqa: ARG002
        return x


_OPERATIONS: dict[str, type[nn.Module]] = {
    "gat": _GAT,
    "gcn": _GCN,
    "gin": _GIN,
    "cheb": _Cheb,
    "sage": _Sage,
    "arma": _Arma,
    "graph": _GraphConv,
    "fc": _FC,
    "skip": _Skip,
}
