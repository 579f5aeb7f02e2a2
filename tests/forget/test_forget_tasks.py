"""What methods of the room get from those who call them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from thrifty.core.loop import fit
from thrifty.core.run import Run
from thrifty.forget.base import forget_with
from thrifty.forget.data import Labelled
from thrifty.forget.problems import Problem, choose, run_method
from thrifty.forget.room import Inputs
from thrifty.forget.room import run as run_room


@dataclass(frozen=True)
class Trains:
    """Learns what is kept anew, with checkpoints, and notes what it was given."""

    steps: int = 3
    given: list[dict[str, Any]] = field(default_factory=list)

    needs: ClassVar[tuple[str, ...]] = ("retain_set",)
    needs_labels: ClassVar[bool] = True

    def forget(self, model: nn.Module, retain_set: Any, run: Run) -> nn.Module:
        found = run.latest()
        drawn = float(torch.rand(()))
        self.given.append({"run": run, "set": retain_set, "drawn": drawn, "from": None if found is None else found[0]})
        tuned = copy.deepcopy(model)
        optimizer = torch.optim.SGD(tuned.parameters(), lr=0.1)
        fit(lambda m, _: m(torch.ones(1, 4)).square().sum(), tuned, lambda i: i, optimizer, run, self.steps)
        return tuned


@pytest.fixture
def problem(tmp_path: Path) -> Problem:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    data = Labelled(torch.randn(3, 4)[y] + torch.randn(60, 4), y)
    gone, kept = data.rows((y == 0).nonzero()[:, 0]), data.rows((y != 0).nonzero()[:, 0])
    model = nn.Linear(4, 3)
    parts = {"forget": gone, "retain": kept}
    sets = {"forget_set": gone, "retain_set": kept, "full_set": data}
    return Problem(model, sets, parts, parts | {"test": data}, model, 1.0, 0.5, tmp_path / "seed7", 7)


def test_a_method_with_a_run_trains_in_the_problem_s_directory(problem: Problem) -> None:
    method = Trains()
    assert run_method(method, problem)["seconds"] > 0
    (given,) = method.given
    assert given["run"].directory == problem.directory / "run"
    assert (given["run"].seed, given["run"].device) == (7, torch.device("cpu"))
    assert given["set"] is problem.sets["retain_set"]
    assert (problem.directory / "run" / "checkpoints").is_dir()


def test_a_measured_method_never_goes_on_with_what_another_has_done(problem: Problem) -> None:
    method = Trains()
    scores = [run_method(method, problem)["retain_accuracy"] for _ in range(2)]
    assert choose([method, Trains(1, method.given)], problem) is method
    assert [given["from"] for given in method.given] == [None] * 4
    assert len({given["drawn"] for given in method.given}) == 1, "each begins with the same random numbers"
    assert scores[0] == scores[1]


def test_a_stored_set_takes_the_place_of_the_problem_s(problem: Problem) -> None:
    method, stored = Trains(), problem.sets["forget_set"]
    choose([method], problem, retain_set=stored)
    assert method.given[0]["set"] is stored


def test_a_method_without_a_run_gets_its_sets_alone(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Plain:
        needs: ClassVar[tuple[str, ...]] = ("forget_set", "full_set")
        needs_labels: ClassVar[bool] = False

        def forget(self, model: nn.Module, **given: Any) -> nn.Module:
            assert given == {"forget_set": 1, "full_set": 3}
            return model

    model = nn.Linear(1, 1)
    with Run(tmp_path / "run") as run:
        assert forget_with(Plain(), model, {"forget_set": 1, "retain_set": 2, "full_set": 3}, run) is model
        with pytest.raises(KeyError, match="full_set"):
            forget_with(Plain(), model, {"forget_set": 1}, run)


def test_the_command_s_run_is_the_method_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.forget.baselines.Retrain.train", lambda recipe, *_: recipe.fresh())
    method = Trains(given=[])

    def forget(self: Trains, model: nn.Module, retain_set: Any, run: Run) -> nn.Module:
        self.given.append({"run": run})
        return model

    monkeypatch.setattr(Trains, "forget", forget)
    with Run(tmp_path / "job") as run:
        run_room(method, Inputs(evaluate=50), run)
    assert method.given == [{"run": run}]
