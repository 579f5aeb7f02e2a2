"""Few-shot episodes the plain way, one at a time, and the released scripts where someone has them at hand.

The plain functions are written anew, step by step as the released code does it: SLK as ``src/SLK.py`` and
``src/bound_update.py`` of imtiazziko/SLK-few-shot (without their pool of processes for five classes), PADDLE as
``src/methods/paddle.py`` of SegoleneMartin/PADDLE, UNEM as ``UNEM_Gaussian/src/methods/U_Paddle_embt.py`` of
ZhouLong0/UNEM-Transductive (which as released runs on CUDA only).

Where the environment variable ``THRIFTY_PEERS`` names a folder with checkouts ``SLK-few-shot`` and ``PADDLE``, these
run as they are in the place of the plain functions.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Array = NDArray[np.float64]
Solve = Callable[[Tensor, Tensor, Tensor], Any]
"""Support ``[S, D]``, labels ``[S]`` and query ``[Q, D]`` to labels ``[Q]``."""


def graph(points: Array, neighbours: int = 3) -> Any:
    """The released script's sparse graph of nearest neighbours."""
    from scipy import sparse
    from sklearn.neighbors import NearestNeighbors

    near = NearestNeighbors(n_neighbors=neighbours).fit(points).kneighbors(points)[1]
    rows = np.repeat(np.arange(len(points)), neighbours - 1)
    ones = np.ones(len(points) * (neighbours - 1))
    return sparse.csc_matrix((ones, (rows, near[:, 1:].flatten())), shape=(len(points), len(points)))


def ready(support: Tensor, query: Tensor) -> tuple[Array, Array]:
    """Features scaled to length one, queries moved to the support's mean."""
    s, q = (functional.normalize(part, dim=1).double().numpy() for part in (support, query))
    return s, q + (s.mean(0) - q.mean(0))


def plain_slk(support: Tensor, labels: Tensor, query: Tensor, weight: float = 0.7) -> NDArray[np.int64]:
    """SLK-MS of one episode."""
    from sklearn.metrics.pairwise import euclidean_distances

    s, q = ready(support, query)
    given = labels.numpy()
    x, classes = np.concatenate([s, q]), int(given.max()) + 1
    w = graph(x)
    modes = np.stack([s[given == k].mean(0) for k in range(classes)])
    sigma = float(np.sqrt(w.multiply(euclidean_distances(x, squared=True)).sum() / (5 * len(x))))
    label = euclidean_distances(x, modes).argmin(1)
    label[: len(s)] = given
    before = np.inf
    for outer in range(100):
        kept = label
        modes = np.stack([_mode(x[label == k], modes[k], sigma) for k in range(classes)])
        cost = -np.exp(-euclidean_distances(x, modes, squared=True) / (2 * sigma**2))
        share = _bound(cost, w, given, weight)
        label = share.argmax(1)
        if len(np.unique(label)) < classes:
            return kept[len(s) :]
        energy = (share * cost).sum() - weight * (share * w.dot(share)).sum()
        if outer > 1 and abs(energy - before) <= 1e-4 * abs(before):
            break
        before = energy
    return label[len(s) :]


def _mode(points: Array, mode: Array, sigma: float) -> Array:
    for _ in range(1000):
        kernel = np.exp(-((points - mode) ** 2).sum(1) / (2 * sigma**2))
        moved = kernel @ points / kernel.sum()
        if np.abs(moved - mode).max() < 1e-5 * np.abs(mode).max():
            return moved
        mode = moved
    return mode


def _bound(cost: Array, w: Any, given: NDArray[np.int64], weight: float) -> Array:
    share = _softmax(-cost)
    share[: len(given)] = np.eye(cost.shape[1])[given]
    before = np.inf
    for step in range(600):
        share = _softmax(weight * w.dot(share) - cost)
        pairwise = w.dot(share)
        energy = (share * np.log(np.maximum(share, 1e-20)) + share * cost - weight * pairwise * share).sum()
        if step > 1 and abs(energy - before) <= 1e-7 * abs(before):
            break
        before = energy
    return share


def _softmax(scores: Array) -> Array:
    share = np.exp(scores - scores.max(1)[:, None])
    return share / share.sum(1)[:, None]


def plain_paddle(support: Tensor, labels: Tensor, query: Tensor, rounds: int = 100) -> Tensor:
    """PADDLE of one episode with λ = 1, its features scaled to length one."""
    s, q = functional.normalize(support, dim=1), functional.normalize(query, dim=1)
    return _em(s, q, labels, [1.0] * rounds, 1.0)


def plain_unem(support: Tensor, labels: Tensor, query: Tensor, layers: int = 10) -> Tensor:
    """UNEM of one episode at the first values of what it learns."""
    first = float(functional.softplus(torch.tensor(1.0)))
    s, q = first * functional.normalize(support, dim=1), first * functional.normalize(query, dim=1)
    return _em(s, q, labels, [first] * layers, 1 + first)


def _em(support: Tensor, query: Tensor, labels: Tensor, weights: list[float], temperature: float) -> Tensor:
    given = torch.eye(int(labels.max()) + 1)[labels][None]
    s, q = support[None], query[None]
    centres = given.transpose(1, 2).matmul(s) / given.sum(1).view(1, -1, 1)
    v = torch.zeros(1, given.shape[2])
    share = torch.empty(0)
    for weight in weights:
        logits = q.matmul(centres.transpose(1, 2)) - 0.5 * (centres**2).sum(2)[:, None] - 0.5 * (q**2).sum(2)[..., None]
        share = ((logits + weight * v[:, None]) / temperature).softmax(2)
        v = torch.log(share.sum(1) / q.shape[1] + 1e-6) + 1
        total = torch.einsum("bkq,bqd->bkd", share.transpose(1, 2), q)
        total = total + torch.einsum("bks,bsd->bkd", given.transpose(1, 2), s)
        centres = total / (share.sum(1) + given.sum(1))[..., None]
    return share[0].argmax(1)


def released(name: str) -> Solve | None:
    """The released function of ``SLK`` or ``PADDLE`` on one episode, where its checkout is at hand."""
    place = os.environ.get("THRIFTY_PEERS")
    folder = Path(place or ".") / {"SLK": "SLK-few-shot", "PADDLE": "PADDLE"}[name]
    if not place or not folder.is_dir():
        return None
    return _released_slk(folder) if name == "SLK" else _released_paddle(folder)


def _released_slk(folder: Path) -> Solve:
    # Imported by the script, for a function that is not called.
    sys.modules.setdefault("numexpr", types.ModuleType("numexpr"))
    sys.path.insert(0, str(folder / "src"))
    slk: Any = importlib.import_module("SLK")

    def solve(support: Tensor, labels: Tensor, query: Tensor) -> Any:
        s, q = ready(support, query)
        x, shots = np.concatenate([s, q]), np.bincount(labels.numpy())
        means = np.stack([s[labels.numpy() == k].mean(0) for k in range(len(shots))])
        return slk.SLK(x, graph(x), means, shots.tolist(), 0.7, method="MS")[1]

    return solve


def _released_paddle(folder: Path) -> Solve:
    sys.path.insert(0, str(folder))
    paddle: Any = importlib.import_module("src.methods.paddle")
    log = Path(tempfile.mkdtemp()) / "log.txt"

    def solve(support: Tensor, labels: Tensor, query: Tensor) -> Any:
        unknown = torch.zeros(1, len(query), 1)
        s, q = (functional.normalize(part, dim=1)[None] for part in (support, query))
        task = {"y_s": labels[None, :, None], "y_q": unknown, "x_s": s, "x_q": q}
        with contextlib.redirect_stderr(io.StringIO()):
            method = paddle.PADDLE(None, "cpu", str(log), types.SimpleNamespace(iter=100, alpha=len(query)))
            method.run_task(task, len(labels))
        return method.u[0].argmax(1)

    return solve
