"""A real job with everything that can break exact resumption; run as a child process and killed.

Dropout draws from PyTorch's generator, the batch noise from NumPy's, the augmentation from Python's; Adam has
moments, the schedule a position, and a second stage follows the first.
"""

import random
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from thrifty.core.errors import ThriftyError
from thrifty.core.loop import Loss, Shuffled, fit, loop
from thrifty.core.run import Run
from thrifty.core.schedules import warmup_cosine


class Average:
    """A state of its own kind: a running mean of the weights' norm."""

    def __init__(self) -> None:
        self.total, self.count = torch.zeros(()), 0

    def state_dict(self) -> dict[str, object]:
        return {"total": self.total, "count": self.count}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.total, self.count = state["total"], state["count"]


def main(directory: Path, steps: int) -> None:
    torch.set_num_threads(1)
    run = Run(directory, seed=7, device="cpu", config={"steps": steps})
    x = torch.randn(64, 8, generator=run.generator("x"))
    y = (x.sum(1) > 0).long()

    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.3), nn.ReLU(), nn.Linear(16, 2))
    order = Shuffled(len(x), 10, seed=run.seed)

    def loss(net: nn.Module, step_indices: torch.Tensor) -> Loss:
        batch = x[step_indices] + 0.01 * torch.from_numpy(np.random.randn(len(step_indices), 8)).float()  # noqa: NPY002 (the global one is under test)
        value = nn.functional.cross_entropy(net(batch * random.uniform(0.9, 1.1)), y[step_indices])
        return Loss(value, {"twice": 2 * value.detach()})

    first = run.stage("first")
    fit(
        loss, model, order, torch.optim.AdamW(model.parameters(), lr=1e-2), first, steps,
        schedule=warmup_cosine(steps, 3), save_every=3, accumulate=2,
    )  # fmt: skip

    second, average = run.stage("second"), Average()

    def update(step: int) -> dict[str, float]:
        average.total = average.total + model[0].weight.detach().norm() * torch.rand(())
        average.count += 1
        return {"mean": float(average.total) / average.count}

    loop(update, second, steps, {"average": average}, save_every=4)
    save_file(model.state_dict() | {"average": average.total}, run.directory / "final.safetensors")
    run.finish({"count": average.count})


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except ThriftyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
