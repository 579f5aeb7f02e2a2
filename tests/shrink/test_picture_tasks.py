from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from thrifty.claims import hesso, otov2
from thrifty.claims.compare import arms
from thrifty.claims.harness import measure
from thrifty.nets.vision import ResNetConfig
from thrifty.shrink.hesso import HESSO
from thrifty.shrink.otov2 import OTOv2
from thrifty.shrink.picture_problem import PictureProblem, fresh, run_method, trained
from thrifty.shrink.picture_tasks import PICTURE_TASKS
from thrifty.shrink.pictures import Pictures, drawn
from thrifty.shrink.tasks import run_method as run_on_text
from thrifty.shrink.tasks import small


@pytest.fixture(scope="module")
def problem() -> PictureProblem:
    train, valid, test = drawn("digits", 0, 160, 40, 40)
    recipe = {"sparsity": 0.5, "epochs": 2.0, "batch_size": 16, "drops": 0, "pruning_epochs": 0.5, "start_epoch": 0.5}
    return PictureProblem(fresh(ResNetConfig(10, width=8), 0), train, valid, test, recipe)


def test_what_is_compared_on_pictures(problem: PictureProblem) -> None:
    found = arms("shrink", PICTURE_TASKS["digits"])
    assert {"otov2", "hesso", "hesso-cric", "magnitude", "random", "group lasso", "trained on", "dense"} <= set(found)
    assert not {"flap", "dsnot"} & set(found)
    for name in ("otov2", "hesso", "magnitude", "group lasso", "trained on", "dense"):
        scored = found[name](problem)
        assert {metric.lstrip("-") for metric in PICTURE_TASKS["digits"].metrics} <= set(scored)
        if name in ("trained on", "dense"):
            assert scored["removed"] == pytest.approx(0, abs=1e-6)
        else:
            assert scored["removed"] > 0.5


def test_pictures_for_training_choosing_and_scores_are_apart(problem: PictureProblem) -> None:
    def keys(pictures: Pictures) -> set[bytes]:
        return {row.numpy().tobytes() for row in pictures.inputs(torch.arange(len(pictures)))}

    train, valid, test = (keys(part) for part in (problem.train, problem.valid, problem.test))
    assert not train & valid
    assert not (train | valid) & test


def test_a_trained_network_is_kept(problem: PictureProblem, tmp_path: Path) -> None:
    config = ResNetConfig(10, width=4)
    first = trained(config, problem.train, 0, tmp_path, 1)
    again = trained(config, problem.train, 1, tmp_path, 1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("claim", [otov2.CLAIM, hesso.CLAIM])
def test_every_condition_can_be_judged_on_what_the_arms_return(
    claim: object, problem: PictureProblem, tmp_path: Path
) -> None:
    given: object = problem
    if claim is hesso.CLAIM:
        whole = hesso._prepare(0, True, tmp_path / "narrow")
        quick = {"sparsity": 0.3, "drops": 0, "batch_size": 8, "epochs": 6.0, "start_epoch": 0.1}
        parts = {"train": problem.train, "valid": problem.valid, "test": problem.test}
        given = hesso.Problem(problem, dataclasses.replace(whole.narrow, **parts, recipe=quick))
    wanted = {one.left for one in claim.conditions} | {str(one.right) for one in claim.conditions}  # type: ignore[attr-defined]
    chosen = {name: arm for name, arm in claim.arms.items() if name in wanted}  # type: ignore[attr-defined]
    found = measure(lambda *_: given, chosen, [0], tmp_path, quick=True).values
    for condition in claim.conditions:  # type: ignore[attr-defined]
        assert condition.metric in found[condition.left]
        assert isinstance(condition.right, float) or condition.metric in found[condition.right]
    for name, values in found.items():
        assert values["output_difference"][0] < 1e-4
        assert values["zero_groups"][0] == pytest.approx(
            0 if name == "full" else 0.3 if "narrow" in name else 0.5, abs=0.03
        )


def test_the_narrow_layer_was_rescaled_and_computes_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = hesso.ChainNet(hesso.vgg(10, size=(8, 8), widths=(6, 4, 6), depth=1))
    x = torch.randn(9, 1, 8, 8)
    for _ in range(3):
        net(torch.randn(32, 1, 8, 8))  # statistics of the norms
    other = hesso.rescaled(net.eval())
    torch.testing.assert_close(other.eval()(x), net(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other.train()(x), net.train()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [OTOv2(), HESSO()])
def test_methods_that_train_take_part_on_text_too(method: OTOv2 | HESSO, tmp_path: Path) -> None:
    problem = small(0, True, tmp_path, sparsity=0.4)
    times = {"epochs": 6.0, "start_epoch": 1.0, "pruning_epochs": 3.0}
    short = dataclasses.replace(problem, test=problem.test[:8], recipe={**problem.recipe, **times})
    scored = run_on_text(method, short)
    assert 0.2 < scored["removed"] < 0.7
    assert scored["perplexity"] < 200


def test_a_search_gets_what_it_needs_beside_the_recipe() -> None:
    @dataclasses.dataclass(frozen=True)
    class Copying:
        sparsity: float = 0.1
        needs = ("train", "valid")

        def shrink(self, model: torch.nn.Module, train: Pictures, valid: Pictures) -> torch.nn.Module:
            assert (self.sparsity, len(train), len(valid)) == (0.5, 8, 4)
            return model

    train, valid, test = drawn("digits", 0, 8, 4, 10)
    model = fresh(ResNetConfig(10, width=4), 0)
    given = PictureProblem(model, train, valid, test, {"sparsity": 0.5, "epochs": 3.0})
    assert run_method(Copying(), given)["removed"] == pytest.approx(0, abs=1e-6)
