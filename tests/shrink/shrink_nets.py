"""Networks and groups that the tests of training once share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from thrifty.shrink.group_sparse import GroupSparse
from thrifty.shrink.zero_groups import GroupSet, partition_groups


class Small(nn.Module):
    """The residual network of the card: two groups of four channels, one of which three layers make together."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.skip, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(y + self.skip(x)).flatten(1))


def small() -> tuple[nn.Module, GroupSet]:
    torch.manual_seed(0)
    model = Small()
    return model, partition_groups(model, torch.randn(2, 3, 6, 6))


def perceptron(width: int = 8) -> tuple[nn.Module, GroupSet]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))
    return model, partition_groups(model, torch.randn(2, 5))


def batch(seed: int, shape: tuple[int, ...] = (16, 5)) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draw), torch.randint(3, (shape[0],), generator=draw)


def steps(
    model: nn.Module,
    optimizer: GroupSparse | torch.optim.Optimizer,
    seeds: range,
    shape: tuple[int, ...] = (16, 5),
    after: Callable[[], None] | None = None,
) -> None:
    """Trains on random batches, one a seed; gives the loss to those who take it."""
    for seed in seeds:
        x, y = batch(seed, shape)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        if isinstance(optimizer, GroupSparse):
            optimizer.step(loss.detach())
        else:
            optimizer.step()
        if after is not None:
            after()
