"""Cells for a set of pictures: drawn, scored untrained, trained for a short time, and the best one for longer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.progress import track
from thrifty.core.seeding import derive_seed
from thrifty.data.assets import ASSETS
from thrifty.data.convert_data import stratified_test
from thrifty.data.image_files import read_images
from thrifty.data.images import images
from thrifty.nets.vision import pixels
from thrifty.shrink.candidates import initialised
from thrifty.shrink.cell_space import CellNet, CellNetConfig, draw_cells
from thrifty.shrink.pictures import Pictures, accuracy
from thrifty.shrink.vision import learn
from thrifty.shrink.zero_cost import zero_cost_metrics

BATCH = 64  # pictures that the metrics see


@dataclass(frozen=True, eq=False)
class Parts:
    """Pictures to train candidates on, to validate them on, and to judge the one that was found by.

    Parameters
    ----------
    everything
        All of them, as network inputs.
    train, valid, test
        Rows of each part.
    """

    everything: Pictures
    train: torch.Tensor
    valid: torch.Tensor
    test: torch.Tensor

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return int(self.everything.y.max()) + 1

    def of(self, *rows: torch.Tensor) -> Pictures:
        """Some of the pictures."""
        return self.everything.part(torch.cat(rows))


def parts(name: str, most: int, seed: int, device: torch.device | str = "cpu") -> Parts:
    """A set of pictures in three parts.

    Parameters
    ----------
    name
        ``digits``, ``mnist``, ``fashion-mnist``; a folder with one sub-folder for each class; or an NPZ file with
        ``x`` and ``y``. What comes without a test part gives a fifth of each class to it; a quarter of the rest is
        for validation.
    most
        Pictures to train and to validate on; as many are tested at most. More are left out at random.
    seed
        Of that draw.
    device
        Where they go.

    Raises
    ------
    InputError
        When there are fewer than two classes, or too few pictures.
    """
    asset = ASSETS.get(name)
    if asset is not None and asset.loader.endswith(".images"):
        found = images(name)
        x, y = np.concatenate([found.train_x, found.test_x]), np.concatenate([found.train_y, found.test_y])
        test = np.arange(len(y)) >= len(found.train_y)
    else:
        own = read_images(name)
        x, y = own.x, own.y
        test = stratified_test(y)
    random = np.random.default_rng(derive_seed(seed, "pictures"))
    learnt, tested = (random.permutation(np.flatnonzero(part))[:most] for part in (~test, test))
    held = stratified_test(y[learnt], 0.25)
    if len(np.unique(y[learnt[~held]])) < max(2, int(y.max()) + 1):
        raise InputError(f"{name} has too few pictures of some class to train and to validate on: give more")
    kept = np.concatenate([learnt, tested])
    rows, held_out = torch.arange(len(kept)), torch.from_numpy(held)
    everything = Pictures(pixels(x[kept]).to(device), torch.from_numpy(y[kept]).to(device))
    return Parts(everything, rows[: len(held)][~held_out], rows[: len(held)][held_out], rows[len(held) :])


@dataclass(frozen=True, eq=False)
class Candidates:
    """Cells that were drawn for some pictures.

    Parameters
    ----------
    data
        The pictures.
    names
        The cells.
    epochs
        Passes over the training part with which a candidate is trained.
    seed
        Of initial weights and of the order of the batches.
    """

    data: Parts
    names: tuple[str, ...]
    epochs: int
    seed: int

    @classmethod
    def drawn(cls, data: Parts, count: int, epochs: int, seed: int) -> Candidates:
        """So many different cells, all equally likely."""
        return cls(data, draw_cells(count, seed), epochs, seed)

    def network(self, row: int) -> nn.Module:
        """The untrained network of a cell, always with the same weights."""
        pictures = self.data.everything.images
        config = CellNetConfig(self.names[row], self.data.classes, pictures.shape[1])
        return initialised(lambda: CellNet(config), self.seed, self.names[row]).to(pictures.device)

    def metrics(self, names: Sequence[str]) -> Float[np.ndarray, "cell metric"]:
        """Training-free metrics of all cells on one batch."""
        batch = self.data.of(self.data.train[:BATCH])
        rows = track(range(len(self.names)), "training-free metrics")
        return np.array(
            [list(zero_cost_metrics(self.network(row), batch.images, batch.y, names).values()) for row in rows]
        )

    def trained(self, row: int) -> nn.Module:
        """The network of a cell after the short training."""
        net = self.network(row)
        learn(net, self.data.of(self.data.train), epochs=self.epochs, seed=self.seed)
        return net

    def validation(self, row: int) -> float:
        """Accuracy on the validation part after the short training."""
        return accuracy(self.trained(row), self.data.of(self.data.valid))

    def final(self, row: int, epochs: int) -> tuple[nn.Module, float]:
        """A network that was trained for longer, on the validation part too, and its accuracy on the test part."""
        net = self.network(row)
        learn(net, self.data.of(self.data.train, self.data.valid), epochs=epochs, seed=self.seed)
        return net, accuracy(net, self.data.of(self.data.test))

    def results(self) -> Float[np.ndarray, "cell 2"]:
        """Accuracy of every candidate on the validation and the test part after the short training."""
        found = []
        for row in track(range(len(self.names)), "train every candidate"):
            net = self.trained(row)
            found.append([accuracy(net, self.data.of(part)) for part in (self.data.valid, self.data.test)])
        return np.array(found)
