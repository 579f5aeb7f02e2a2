"""The claim's arms at their quick size: the same steps on other pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from thrifty.claims import simcore as claim
from thrifty.claims.simcore import CLAIM, prepare
from thrifty.core.errors import InputError


def test_arms_train_as_long_on_what_they_are_named_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kornia")
    trained: list[tuple[int, float]] = []
    pretrained = claim.pretrained

    def noted(pictures: torch.Tensor, run: object, passes: float, **more: int) -> torch.nn.Module:
        trained.append((len(pictures), passes * len(pictures)))
        return pretrained(pictures, run, 1.0 / len(pictures), **more)  # type: ignore[arg-type]

    monkeypatch.setattr(claim, "pretrained", noted)
    try:
        problem = prepare(0, True, tmp_path)
    except InputError:
        pytest.skip("the pictures can't be fetched")
    assert not {row.numpy().tobytes() for row in problem.target} & {row.numpy().tobytes() for row in problem.test}
    measured = {name: arm(problem) for name, arm in CLAIM.arms.items()}
    for values in measured.values():
        assert set(values) == set(CLAIM.metrics)
    chosen, target, pool = len(problem.found.indices), len(problem.target), len(problem.pool)
    sizes = [target, target + chosen, target + chosen, target, target + pool]
    assert [size for size, _ in trained] == sizes
    # Four passes over what they have, or as many pictures as the selection's arm sees.
    seen = [4 * target, *[4 * (target + chosen)] * 4]
    assert [round(pictures) for _, pictures in trained] == seen
    assert measured["target only"]["added"] == 0
    assert measured["simcore"]["added"] == measured["random, as many"]["added"] == chosen
