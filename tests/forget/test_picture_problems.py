from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty.core.method import Task
from thrifty.data.images import ImageSet
from thrifty.forget import picture_problems
from thrifty.forget.picture_problems import (
    KINDS,
    class_problem,
    fresh_vit,
    random_problem,
    subclass_problem,
    vit_recipe,
)
from thrifty.forget.problems import scores
from thrifty.forget.relearning import Relearning
from thrifty.forget.tasks import TASKS

SIZES = {"train": 160, "valid": 40, "test": 80, "epochs": 1}


@pytest.fixture(autouse=True)
def clothes(monkeypatch: pytest.MonkeyPatch) -> ImageSet:
    """Ten classes of 8x8 pictures under the names of the real sets."""
    generator = np.random.default_rng(0)

    def some(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = np.arange(count) % 10
        x = generator.integers(0, 90, (count, 8, 8))
        x[np.arange(count), y % 8, y // 8] += 150
        return x.astype(np.uint8), y

    names = tuple(f"class {number}" for number in range(10))
    found = ImageSet(*some(200), *some(100), names)
    monkeypatch.setattr(picture_problems, "images", lambda name: found)
    return found


def whole(problem) -> None:
    """What is true of every problem."""
    gone, kept, full = (problem.sets[name] for name in ("forget_set", "retain_set", "full_set"))
    assert len(gone) + len(kept) == len(full) == 160
    parts = torch.cat([gone.x, kept.x]).flatten(1).sort(0).values
    torch.testing.assert_close(parts, full.x.flatten(1).sort(0).values)
    assert len(problem.judged["test"]) == 80
    assert problem.judged["forget"] is gone
    found = scores(problem, problem.retrained, 1.0)
    assert found["forget_gap"] == found["mia_gap"] == found["forget_kl"] == 0


def test_a_random_subset_is_of_all_classes_and_depends_on_the_seed(tmp_path: Path) -> None:
    first, second = (random_problem("digits", 0.25, seed, tmp_path / str(seed), **SIZES) for seed in (0, 1))
    whole(first)
    assert len(first.sets["forget_set"]) == 40
    assert len(set(first.sets["forget_set"].y.tolist())) > 5
    assert not torch.equal(first.sets["forget_set"].y, second.sets["forget_set"].y)
    again = random_problem("digits", 0.25, 0, tmp_path / "0", **SIZES)
    assert torch.equal(first.sets["forget_set"].x, again.sets["forget_set"].x)
    assert set(first.judged) == {"forget", "retain", "test"}
    assert len(first.valid["retain"]) == 40


def test_a_subclass_is_part_of_a_class_that_stays(tmp_path: Path, clothes: ImageSet) -> None:
    problem = subclass_problem(9, 0, tmp_path, **SIZES)
    whole(problem)
    shoe = KINDS.index("shoe")
    assert set(problem.sets["forget_set"].y.tolist()) == {shoe}
    assert set(problem.sets["retain_set"].y.tolist()) == set(range(5))
    # Sandals and sneakers are kept, boots are not: 16 of each were drawn, more or less.
    assert int((problem.sets["retain_set"].y == shoe).sum()) == pytest.approx(32, abs=9)
    assert len(problem.judged["test_forget"]) == 8
    assert set(problem.judged["test_forget"].y.tolist()) == {shoe}
    assert int((problem.judged["test_retain"].y == shoe).sum()) == 16
    assert problem.model.config.classes == 5
    assert set(problem.valid["forget"].y.tolist()) == {shoe}


def test_a_vit_is_kept_and_loaded_as_it_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = class_problem("digits", 3, 0, tmp_path, **SIZES, recipe=vit_recipe)
    whole(first)
    assert type(first.model).__name__ == "ViTForImageClassification"
    monkeypatch.setattr("thrifty.forget.baselines.Retrain.train", lambda *_: pytest.fail("trained again"))
    again = class_problem("digits", 3, 0, tmp_path, **SIZES, recipe=vit_recipe)
    assert all(torch.equal(a, b) for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True))


def test_the_vit_is_as_small_as_said_and_depends_on_the_seed_only() -> None:
    first, second, other = fresh_vit(10, 28, 1), fresh_vit(10, 28, 1), fresh_vit(10, 28, 2)
    assert sum(parameter.numel() for parameter in first.parameters()) // 1000 == 105
    assert torch.equal(first.classifier.weight, second.classifier.weight)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)
    assert first(torch.zeros(2, 1, 28, 28)).logits.shape == (2, 10)


def test_relearning_is_scored_where_it_is_asked_for(tmp_path: Path) -> None:
    problem = class_problem("digits", 3, 0, tmp_path, **SIZES)
    assert "relearn_steps" not in scores(problem, problem.model, 0.0)
    problem = dataclasses.replace(problem, relearning=Relearning(most_steps=2, learning_rate=1e-9))
    assert scores(problem, problem.model, 0.0)["relearn_steps"] == 0
    blind = dataclasses.replace(problem, retrained=problem.model, model=problem.retrained)
    with torch.no_grad():
        problem.model.head.bias[3] += 100
        blind.model.head.bias[3] -= 100
    assert scores(problem, blind.model, 0.0)["relearn_steps"] == 2


PICTURES = ["digits-class", "fashion-mnist-class", "fashion-mnist-class-vit", "fashion-mnist-subclass"]


@pytest.mark.parametrize("name", [*PICTURES, "fashion-mnist-random"])
def test_the_room_s_picture_tasks_name_metrics_that_they_measure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task: Task = TASKS[name]
    for sizes in ("class_problem", "random_problem", "subclass_problem"):
        made = getattr(picture_problems, sizes)
        monkeypatch.setattr(
            picture_problems, sizes, lambda *given, made=made, **asked: made(*given, **{**asked, **SIZES})
        )
    problem = task.prepare(0, True, tmp_path)
    assert problem.relearning is not None
    problem = dataclasses.replace(problem, relearning=Relearning(most_steps=1))
    found = task.baselines["original"](problem)
    assert {metric.lstrip("-") for metric in task.metrics} <= set(found)
    assert task.axes is not None
    assert set(task.axes) <= set(task.metrics)
