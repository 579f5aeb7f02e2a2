"""Heads on a stream the plain way, after released code that is a set of scripts and can't be installed.

LAMDA-PILOT (MIT) computes a session's features in batches and then sets up its head; what it does with the features is
written down here anew, step by step as its ``models/simplecil.py`` and ``models/ranpac.py`` do it, without its data
loaders and backbones. The recursion is ``analytic/AnalyticLinear.py`` of ZHUANGHP/Analytic-continual-learning (MIT).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BATCH = 128


class PlainSimpleCIL:
    """Class means of raw features, compared by the cosine."""

    def __init__(self, dimension: int) -> None:
        self.weight = torch.zeros(0, dimension)
        self.sigma = torch.ones(1)

    def session(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Learns a session from its batches of features and labels."""
        features = torch.cat([batch for batch, _ in batches], dim=0)
        labels = torch.cat([batch for _, batch in batches], dim=0)
        grown = torch.zeros(int(labels.max()) + 1 - len(self.weight), self.weight.shape[1])
        self.weight = torch.cat([self.weight, grown])
        for index in torch.unique(labels):
            rows = (labels == index).nonzero().squeeze(-1)
            self.weight[index] = features[rows].mean(0)

    def predict(self, batches: list[Tensor]) -> Tensor:
        """The class of each row; LAMDA-PILOT sorts out the best five."""
        found = []
        for batch in batches:
            scores = self.sigma * functional.linear(functional.normalize(batch), functional.normalize(self.weight))
            found.append(scores.topk(min(5, scores.shape[1]), dim=1)[1][:, 0])
        return torch.cat(found)


class PlainRanPAC:
    """Sums of randomly projected features, solved anew after each session with a ridge chosen on a fifth of it."""

    def __init__(self, dimension: int, size: int, classes: int) -> None:
        self.random = torch.randn(dimension, size)
        self.moment = torch.zeros(size, classes)
        self.gram = torch.zeros(size, size)
        self.weight = torch.zeros(classes, size)

    def session(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        """Learns a session from its batches of features and labels."""
        features = torch.cat([batch for batch, _ in batches], dim=0)
        labels = torch.cat([batch for _, batch in batches], dim=0)
        targets = functional.one_hot(labels, self.moment.shape[1]).float()
        hidden = functional.relu(features @ self.random)
        self.moment = self.moment + hidden.T @ targets
        self.gram = self.gram + hidden.T @ hidden
        ridge = self._ridge(hidden, targets)
        identity = torch.eye(len(self.gram))
        self.weight = torch.linalg.solve(self.gram + ridge * identity, self.moment).T

    def predict(self, batches: list[Tensor]) -> Tensor:
        """The class of each row; LAMDA-PILOT sorts out the best five."""
        found = []
        for batch in batches:
            scores = functional.relu(batch @ self.random) @ self.weight.T
            found.append(scores.topk(min(5, scores.shape[1]), dim=1)[1][:, 0])
        return torch.cat(found)

    def _ridge(self, hidden: Tensor, targets: Tensor) -> float:
        kept = int(len(hidden) * 0.8)
        moment, gram = hidden[:kept].T @ targets[:kept], hidden[:kept].T @ hidden[:kept]
        losses = []
        ridges = [10.0**power for power in range(-8, 9)]
        for ridge in ridges:
            # A ridge lost in float32's rounding leaves a singular system, whose solution is no number and never chosen.
            weight, _ = torch.linalg.solve_ex(gram + ridge * torch.eye(len(gram)), moment)
            loss = functional.mse_loss(hidden[kept:] @ weight, targets[kept:])
            losses.append(float(loss) if torch.isfinite(loss) else float("inf"))
        return ridges[losses.index(min(losses))]


class PlainRecursion:
    """The released step of ACIL and G-ACIL."""

    def __init__(self, size: int, ridge: float) -> None:
        self.weight = torch.zeros(size, 0, dtype=torch.float64)
        self.memory = torch.eye(size, dtype=torch.float64) / ridge

    def fit(self, hidden: Tensor, targets: Tensor) -> None:
        """Learns a batch of expanded features and one-hot labels."""
        x, y = hidden.to(self.weight), targets.to(self.weight)
        if y.shape[1] > self.weight.shape[1]:
            tail = torch.zeros(len(self.weight), y.shape[1] - self.weight.shape[1]).to(self.weight)
            self.weight = torch.cat((self.weight, tail), dim=1)
        inner = torch.inverse(torch.eye(len(x)).to(x) + x @ self.memory @ x.T)
        self.memory -= self.memory @ x.T @ inner @ x @ self.memory
        self.weight += self.memory @ x.T @ (y - x @ self.weight)
