"""DyCE: a memory of embeddings in clusters, which lends each embedding of a batch its nearest ones as company.

The memory part of BECLR (see :mod:`thrifty.adapt.beclr`): a ring of the latest embeddings, cut into clusters of equal
inflow by optimal transport, and looked up within the cluster that an embedding belongs to.
"""

from __future__ import annotations

import warnings
from typing import Literal, NamedTuple, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError, nearest
from thrifty.nets.transport import sinkhorn, squared_distances

Metric = Literal["euclidean", "cosine"]
Toward = Literal["near", "far"]


class Neighbours(NamedTuple):
    """What the memory holds near each of n embeddings.

    Parameters
    ----------
    rows
        Places in the bank, the nearest first.
    nearest
        The prototype that is nearest to each embedding.
    """

    rows: Int[Tensor, "n k"]
    nearest: Int[Tensor, " n"]


def prototype_costs(
    z: Float[Tensor, "n D"], prototypes: Float[Tensor, "P D"], metric: Metric = "euclidean"
) -> Float[Tensor, "P n"]:
    """What it costs to give an embedding to a prototype, both at length one: their distance, or 1 − their cosine."""
    z, prototypes = functional.normalize(z, dim=1), functional.normalize(prototypes, dim=1)
    return 1 - prototypes @ z.T if metric == "cosine" else squared_distances(prototypes, z).sqrt()


def equipartition(
    costs: Float[Tensor, "P n"], epsilon: float = 0.05, iterations: int = 10, toward: Toward = "near"
) -> Int[Tensor, " n"]:
    r"""The prototype of each embedding, ``ν(z_j) = argmax_k π_kj``, where every prototype gets equal mass.

    .. math::
        \pi = \arg\min_{\pi 1 = 1/P,\ \pi^\top 1 = 1/n} \langle \pi, C \rangle - \varepsilon H(\pi)

    Parameters
    ----------
    costs
        C, of prototypes and embeddings.
    epsilon
        ε > 0, in the unit of the costs.
    iterations
        Of Sinkhorn's algorithm; the last one ends with the embeddings' masses.
    toward
        near: the paper's least cost. far: the released code's sign, whose mass goes to distant prototypes; for parity
        only.
    """
    signed = costs if toward == "near" else -costs
    return sinkhorn(signed, epsilon, max_iterations=iterations, tolerance=0.0).plan.argmax(0)


def cluster_means(
    bank: Float[Tensor, "M D"], labels: Int[Tensor, " M"], before: Float[Tensor, "P D"], momentum: float = 0.0
) -> Float[Tensor, "P D"]:
    """``γ_k ← (1 − m) mean of the members of k + m γ_k``; a prototype without a member keeps its value.

    The released code lists the counts of present clusters first, so that after an empty one every sum is divided by
    another cluster's count; here each has its own.
    """
    counts = torch.bincount(labels, minlength=len(before))
    means = torch.zeros_like(before).index_add_(0, labels, bank) / counts.clamp(min=1).unsqueeze(1)
    return torch.where((counts > 0).unsqueeze(1), (1 - momentum) * means + momentum * before, before)


def cluster_neighbours(
    z: Float[Tensor, "n D"],
    bank: Float[Tensor, "M D"],
    labels: Int[Tensor, " M"],
    prototypes: Float[Tensor, "P D"],
    k: int,
) -> Neighbours:
    """The k members of the nearest prototype's cluster that are nearest to each embedding, by cosine.

    Where that cluster has k members or fewer, the k nearest of the whole bank. With a single prototype this is a
    plain memory of nearest neighbours.
    """
    z = functional.normalize(z, dim=1)
    closest = (z @ functional.normalize(prototypes, dim=1).T).argmax(1)
    inside = labels == closest.unsqueeze(1)
    whole = inside.sum(1, keepdim=True) <= k
    similarity = (z @ functional.normalize(bank, dim=1).T).masked_fill(~(inside | whole), -torch.inf)
    return Neighbours(similarity.topk(k, dim=1).indices, closest)


class DyCEMemory(nn.Module):
    """A ring of the M latest embeddings in P clusters.

    It fills up first; then k-means makes the clusters, and from there on each batch is dealt out to them by
    :func:`equipartition`, takes the place of the oldest embeddings, and moves the prototypes. All of its state is in
    buffers, so a checkpoint has it.

    Parameters
    ----------
    size
        M, at least the rows of a batch.
    dim
        D, the length of an embedding.
    n_prototypes
        P, at most M.
    topk
        k, how many neighbours each embedding gets; at most M.
    momentum
        m in [0, 1): what a prototype keeps of itself in an update.
    epsilon
        Entropy penalty of the assignment, in the unit of the distance between vectors of length one. Small ones are
        no trouble here (the released configuration's 1e-5 overflows there and ends as about 0.1).
    iterations
        Of the assignment.
    metric
        euclidean: the distance of vectors of length one (not squared), as released. cosine: 1 − cosine.
    toward
        See :func:`equipartition`.

    Attributes
    ----------
    bank : Tensor
        float32 ``[M, D]``.
    labels : Tensor
        int64 ``[M]``: the cluster of each.
    prototypes : Tensor
        float32 ``[P, D]``.

    Raises
    ------
    InputError
        When a size is out of range, or a name unknown.
    """

    bank: Tensor
    labels: Tensor
    prototypes: Tensor
    seen: Tensor
    clustered: Tensor

    def __init__(
        self,
        size: int,
        dim: int,
        n_prototypes: int,
        *,
        topk: int = 5,
        momentum: float = 0.0,
        epsilon: float = 0.05,
        iterations: int = 10,
        metric: Metric = "euclidean",
        toward: Toward = "near",
    ) -> None:
        super().__init__()
        if not (dim >= 1 and 1 <= n_prototypes <= size and 1 <= topk <= size):
            raise InputError(
                f"a memory of {size} embeddings has room for 1 to {size} prototypes and neighbours, "
                f"not {n_prototypes} and {topk}"
            )
        if not 0 <= momentum < 1:
            raise InputError(f"the momentum of the prototypes must be in [0, 1), not {momentum:g}")
        for value, kind in ((metric, Metric), (toward, Toward)):
            if value not in get_args(kind):
                raise InputError(f"{value!r} is unknown: {nearest(str(value), get_args(kind))}")
        self.size, self.topk, self.momentum = size, topk, momentum
        self.epsilon, self.iterations, self.metric, self.toward = epsilon, iterations, metric, toward
        self.register_buffer("bank", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("prototypes", torch.zeros(n_prototypes, dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("clustered", torch.zeros((), dtype=torch.bool))

    @property
    def ready(self) -> bool:
        """Whether it has filled up once, so that it can be looked up."""
        return bool(self.clustered)

    @property
    def filled(self) -> int:
        """How many embeddings it holds."""
        return min(int(self.seen), self.size)

    @property
    def arrivals(self) -> Int[Tensor, " M"]:
        """The number of each embedding in the order of all that ever came; below 0 where none is yet."""
        place = torch.arange(self.size, device=self.bank.device)
        return self.seen - 1 - (self.seen - 1 - place) % self.size

    def neighbours(self, z: Float[Tensor, "n D"]) -> Neighbours:
        """Where the nearest embeddings are; see :func:`cluster_neighbours`.

        Raises
        ------
        InputError
            Before it is :attr:`ready`.
        """
        if not self.ready:
            raise InputError(f"the memory holds {self.filled} of {self.size} embeddings: it can't be looked up yet")
        return cluster_neighbours(z.detach(), self.bank, self.labels, self.prototypes, self.topk)

    def forward(self, z: Float[Tensor, "n D"]) -> tuple[Float[Tensor, "n k D"], Int[Tensor, " n"]]:
        """The nearest embeddings themselves, and the prototype nearest to each of the n."""
        found = self.neighbours(z)
        return self.bank[found.rows], found.nearest

    @torch.no_grad()
    def update(self, z: Float[Tensor, "n D"]) -> None:
        """Takes in a batch in place of the oldest embeddings.

        Parameters
        ----------
        z
            At most M rows; constants from here on.

        Raises
        ------
        InputError
            When there are more rows than the memory has.
        """
        if len(z) > self.size:
            raise InputError(f"a batch of {len(z)} embeddings does not fit a memory of {self.size}: make it larger")
        z = z.detach().to(self.bank)
        there = (self.seen + torch.arange(len(z), device=z.device)) % self.size
        if self.ready:
            costs = prototype_costs(z, self.prototypes, self.metric)
            self.labels[there] = equipartition(costs, self.epsilon, self.iterations, self.toward)
        self.bank[there] = z
        self.seen += len(z)
        if self.ready:
            self.prototypes.copy_(cluster_means(self.bank, self.labels, self.prototypes, self.momentum))
            if (self.labels == self.labels[0]).all() and len(self.prototypes) > 1:
                self.cluster()
        elif self.filled == self.size:
            self.cluster()

    @torch.no_grad()
    def cluster(self) -> None:
        """Makes the clusters anew, by k-means on the bank at length one.

        Raises
        ------
        InputError
            When it has not filled up yet.
        """
        if self.filled < self.size:
            raise InputError(f"the memory holds {self.filled} of {self.size} embeddings: it can't be clustered yet")
        from sklearn.cluster import KMeans

        draw = int(torch.randint(2**31 - 1, ()))  # from the generator that a run seeds and keeps
        points = functional.normalize(self.bank, dim=1).double().cpu().numpy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # fewer distinct points than clusters: told by the labels
            found = KMeans(len(self.prototypes), n_init=1, random_state=draw).fit(points)
        labels = torch.from_numpy(found.labels_).to(self.labels)
        if self.ready and len(labels.unique()) < len(self.prototypes):
            return  # collapsed embeddings: the clusters there are say more
        self.labels.copy_(labels)
        self.prototypes.copy_(torch.from_numpy(found.cluster_centers_))
        self.clustered.fill_(True)
