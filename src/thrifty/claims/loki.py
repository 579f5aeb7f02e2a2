"""With a metric on the classes, the Fréchet mean of a classifier's probabilities lands nearer to classes never seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from torch import Tensor

from thrifty.adapt.accumulator import Labels
from thrifty.adapt.class_tree import Tree
from thrifty.adapt.frechet import first_best, spread
from thrifty.adapt.loki import squared_distances
from thrifty.adapt.loki_run import european_letters
from thrifty.claims.harness import Claim, Condition
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.nets.encoders import load_encoder
from thrifty.nets.extraction import extract

LETTERS, DRAWINGS, TESTED = 240, 8, 2
OBSERVED, FIRST = 0.25, 3  # share of the letters with examples; how many of them the active selection begins with

Probabilities = Float[Tensor, "B K"]
Decide = Callable[[Tree, Probabilities, Int[Tensor, " K"]], Int[Tensor, " B"]]


@dataclass(frozen=True, eq=False)
class Split:
    """Observed classes, and what a classifier that learnt them thinks of the test drawings."""

    observed: Int[Tensor, " K"]
    probs: Probabilities


@dataclass(frozen=True, eq=False)
class Problem:
    """The tree, the true letters, and a classifier for each way of choosing the observed classes."""

    tree: Tree
    true: Labels
    splits: dict[str, Split]


def prepare(seed: int, quick: bool, directory: Path) -> Problem:
    """Chooses the observed classes at random and actively, and trains the classifiers."""
    del directory
    letters, drawings, encoder = (60, 6, "pixels") if quick else (LETTERS, DRAWINGS, "efficientnet-lite0")
    data, tree = european_letters(letters, drawings)
    features = extract(load_encoder(encoder), data.inputs)
    random = np.random.default_rng(derive_seed(seed, "loki"))
    # The drawings of a letter stand together.
    place = random.permuted(np.tile(np.arange(drawings), (letters, 1)), axis=1).reshape(-1)
    train, test = place >= TESTED, place < TESTED
    order = torch.from_numpy(random.permutation(letters))
    count = round(OBSERVED * letters)
    active = order[:FIRST]
    while len(active) < count:
        active = torch.cat([active, torch.tensor([tree.next_class(active)])])
    splits = {}
    for name, observed in (("random", order[:count]), ("active", active)):
        observed = observed.sort().values
        rows = train & np.isin(data.labels, tree.labels[observed.numpy()])
        splits[name] = _learnt(features[rows], data.labels[rows], features[test], tree)
    return Problem(tree, data.labels[test], splits)


def _learnt(x: NDArray[np.float32], y: Labels, test_x: NDArray[np.float32], tree: Tree) -> Split:
    """The paper's classifier: one-vs-rest logistic regressions on frozen features, of unit variance here."""
    mean, deviation = x.mean(0), x.std(0).clip(min=1e-6)
    with one_thread():
        head = OneVsRestClassifier(LogisticRegression(max_iter=500)).fit((x - mean) / deviation, y)
        probs = head.predict_proba((test_x - mean) / deviation)
    return Split(tree.positions(head.classes_), torch.from_numpy(probs).double())


def _loki(tree: Tree, probs: Probabilities, observed: Int[Tensor, " K"]) -> Int[Tensor, " B"]:
    return tree.rule(observed).nearest(probs)


def _argmax(tree: Tree, probs: Probabilities, observed: Int[Tensor, " K"]) -> Int[Tensor, " B"]:
    del tree
    return observed[probs.argmax(1)]


def _median(tree: Tree, probs: Probabilities, observed: Int[Tensor, " K"]) -> Int[Tensor, " B"]:
    """Distances that are not squared."""
    return first_best(tree.rule(observed).first_moments(probs), spread(probs, observed, len(tree)))


def _measured(decide: Decide, choice: str) -> Callable[[Problem], dict[str, float]]:
    def measure(problem: Problem) -> dict[str, float]:
        split, tree = problem.splits[choice], problem.tree
        predicted = tree.labels[decide(tree, split.probs, split.observed).numpy()]
        new = ~np.isin(problem.true, tree.labels[split.observed.numpy()])
        squares = squared_distances(tree, predicted, problem.true).numpy()
        return {
            "squared distance": float(squares.mean()),
            "squared distance, new letters": float(squares[new].mean()),
            "accuracy": float((predicted == problem.true).mean()),
            "letters predicted": float(len(np.unique(predicted))),
            "locus": float(tree.spanned(split.observed).double().mean()),
        }

    return measure


CLAIM = Claim(
    paper_id="loki",
    says=(
        "Without training, predicting the Fréchet mean of the classes instead of the likeliest class lowers the "
        "expected squared distance to the true class when only some classes were observed; classes chosen for "
        "labelling by their distance to the locus make more classes predictable than random ones."
    ),
    setting=(
        f"{LETTERS} Latin, Greek and Cyrillic letters in {DRAWINGS} fonts each, through a frozen EfficientNet-lite0 "
        "(96 pixels); the metric is the tree of their Unicode names (script, letter, case, marks), of which the "
        "letters are the classes. One-vs-rest logistic regression (500 iterations) on six drawings of a quarter of the "
        "letters; tested on two drawings of every letter. Nothing is tuned in any arm. Locus is the share of the "
        f"tree's nodes between observed ones; the active choice begins with {FIRST} random letters."
    ),
    prepare=prepare,
    arms={
        "loki": _measured(_loki, "random"),
        "argmax": _measured(_argmax, "random"),
        "fréchet median": _measured(_median, "random"),
        "loki, active classes": _measured(_loki, "active"),
        "argmax, active classes": _measured(_argmax, "active"),
    },
    metrics=(
        "-squared distance",
        "-squared distance, new letters",
        "accuracy",
        "letters predicted",
        "locus",
    ),
    conditions=(
        Condition("squared distance", "loki", "argmax", less=True),
        Condition("squared distance", "loki, active classes", "argmax, active classes", less=True),
        Condition("locus", "loki, active classes", "loki"),
    ),
    seeds=10,
)
