"""How good features are: a linear probe and nearest neighbours on labels that the encoder has not seen."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.nets.representations import effective_rank, encoded
from thrifty.represent.pictures import Pictures

NEIGHBOURS = 10


def linear_probe(
    features: Float[Tensor, "count dim"],
    y: Int[Tensor, " count"],
    test_features: Float[Tensor, "tested dim"],
    test_y: Int[Tensor, " tested"],
) -> float:
    """Accuracy of logistic regression on features that are scaled to mean 0 and deviation 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, deviation = features.mean(0), features.std(0).clamp(min=1e-6)
    x, test_x = (((part - mean) / deviation).double().numpy() for part in (features, test_features))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe = LogisticRegression(max_iter=300).fit(x, y.numpy())
    return float((probe.predict(test_x) == test_y.numpy()).mean())


def nearest_neighbours(
    features: Float[Tensor, "count dim"],
    y: Int[Tensor, " count"],
    test_features: Float[Tensor, "tested dim"],
    test_y: Int[Tensor, " tested"],
    neighbours: int = NEIGHBOURS,
) -> float:
    """Accuracy of the majority of the nearest by cosine; ties go to the class with the more similar ones."""
    a, b = (nn.functional.normalize(part, dim=1) for part in (test_features, features))
    found = (a @ b.T).topk(min(neighbours, len(b)), dim=1)
    votes = torch.zeros(len(a), int(y.max()) + 1)
    # A vote is 1 and a little more for the more similar, so that it only breaks ties.
    votes.scatter_add_(1, y[found.indices], 1 + 1e-4 * found.values)
    return float((votes.argmax(1) == test_y).float().mean())


def few(y: Int[Tensor, " count"], per_class: int | None, seed: int) -> Int[Tensor, " chosen"]:
    """Rows of so many examples of each class, drawn at random; all of them for ``None``.

    Raises
    ------
    InputError
        When the number is not positive.
    """
    if per_class is None:
        return torch.arange(len(y))
    if per_class < 1:
        raise InputError(f"labels per class must be at least 1, not {per_class}")
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    rows = [order[y[order] == number][:per_class] for number in y.unique().tolist()]
    return torch.cat(rows).sort().values


def measured(
    encoder: nn.Module, train: Pictures, test: Pictures | None, labelled: Int[Tensor, " chosen"] | None = None
) -> dict[str, float]:
    """What an encoder's features are worth.

    Parameters
    ----------
    encoder
        Maps pictures in [-1, 1] to features.
    train, test
        Pictures; without labels or without test pictures only the effective rank is measured.
    labelled
        Which of the training pictures' labels are used; all when not given.

    Returns
    -------
    dict
        ``probe_accuracy`` and ``knn_accuracy`` on the test pictures, and the features' ``effective_rank``.
    """
    features = encoded(encoder, train.x)
    found: dict[str, float] = {}
    if train.y is not None and test is not None and test.y is not None:
        rows = torch.arange(len(train.y)) if labelled is None else labelled
        given = features[rows], train.y[rows], encoded(encoder, test.x), test.y
        found = {"probe_accuracy": linear_probe(*given), "knn_accuracy": nearest_neighbours(*given)}
    return found | {"effective_rank": float(effective_rank(features))}
