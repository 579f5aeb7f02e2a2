from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shrink_nets import batch, perceptron, small, steps
from torch import nn

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.shrink.dhspg import DHSPG, adjusted_penalty, behind_half_space, penalised_groups, redundancy
from thrifty.shrink.directions import Direction
from thrifty.shrink.group_baselines import CutThenTune, Dense, GroupLasso
from thrifty.shrink.otov2 import OTOv2
from thrifty.shrink.train_once import step_decay
from thrifty.shrink.zero_groups import GroupSet, construct_subnet, output_difference, partition_groups


def one(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_penalty_of_the_card() -> None:
    # x = [3, 4], d = [-1, 0]: the step would make the group larger.
    norm, inner, length = one(5), one(-3), one(1)
    assert adjusted_penalty(norm, inner, length, 1e-3, 2, 10).item() == pytest.approx(0.01)
    assert adjusted_penalty(norm, inner, length, 1e-2, 20, 1e3).item() == pytest.approx((0.6 + 5 / 3) / 2)
    # A step that makes the group smaller by itself gets the least penalty.
    assert adjusted_penalty(norm, one(3), length, 1e-3, 2, 10).item() == pytest.approx(1e-3)


def test_the_trial_point_of_the_card_stays_in_the_half_space() -> None:
    trial = (1 - 0.1 * 0.01 / 5) * 25 - 0.1 * -3
    assert trial == pytest.approx(25.295)
    assert not behind_half_space(one(trial), one(25), 0.95).item()
    assert behind_half_space(one(trial), one(25), 1.02).item()
    assert behind_half_space(one(0), one(0), 0.95).item()


def test_a_step_of_the_optimizer_is_the_cards() -> None:
    """One hidden unit has x = [3, 4] and d = [-1, 0]; it is the one that is penalised."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [30.0, 40.0]]))
    groups = partition_groups(model, torch.randn(1, 2))
    optimizer = DHSPG(groups, 0.1, target=0.5, tolerance=0)
    model[0].weight.grad = torch.tensor([[-1.0, 0.0], [-0.3, -0.4]])
    optimizer.step()
    assert optimizer.penalised.tolist() == [True, False]
    torch.testing.assert_close(model[0].weight, torch.tensor([[3.0994, 3.9992], [30.03, 40.04]]), rtol=1e-6, atol=1e-6)
    assert optimizer.sparsity == 0


def test_small_groups_and_such_as_shrink_are_redundant() -> None:
    ones = torch.ones(2)
    assert redundancy(torch.tensor([0.9, -0.9]), ones, ones).argmax() == 0
    assert redundancy(torch.zeros(2), torch.tensor([1.0, 3.0]), ones).argmax() == 0
    # Half of each hat: cosines [0.6, 0.8] have norm 1, and mean norms 1/4 and 1/3 give inverses 4 and 3 of norm 5.
    found = redundancy(torch.tensor([0.6, 0.8]), torch.tensor([1.0, 1.0]), torch.tensor([4.0, 3.0]))
    torch.testing.assert_close(found, torch.tensor([0.3 + 0.4, 0.4 + 0.3]), rtol=1e-4, atol=1e-4)


def test_what_is_penalised_leaves_a_multiple_in_each_layer() -> None:
    layer, units = torch.tensor([0, 0, 0, 0, 0, 1, 1]), torch.tensor([5, 2])
    score = torch.tensor([5.0, 4, 3, 2, 1, 9, 8])
    assert penalised_groups(score, 4, layer, units).tolist() == [True, True, False, False, False, True, False]
    # Of the first layer three would stay, which is rounded to four; a layer of two stays whole.
    found = penalised_groups(score, 4, layer, units, divisible=2)
    assert found.tolist() == [True, False, False, False, False, False, False]


@settings(max_examples=60)
@given(st.floats(0.1, 9), st.floats(-0.999, -0.01), st.floats(0.1, 9))
def test_within_its_limits_the_step_lowers_both_the_norm_and_the_loss(
    norm: float, cosine: float, length: float
) -> None:
    """To first order: <x, d + lambda x/|x|> > 0 shrinks the group, <d, d + lambda x/|x|> > 0 lowers the loss."""
    inner = cosine * norm * length
    penalty = adjusted_penalty(one(norm), one(inner), one(length), 1e-6, 1.5, 1e12).item()
    assert inner + penalty * norm > 0
    assert length**2 + penalty * inner / norm > 0


@pytest.mark.parametrize("direction", [Direction(), Direction("adam"), Direction("adamw", weight_decay=0.1)])
@pytest.mark.parametrize("surplus", ["none", "released"])
def test_training_meets_the_target_and_zeros_stay(direction: Direction, surplus: str) -> None:
    model, groups = small()
    rate = 0.1 if direction.variant == "sgd" else 0.02
    optimizer = DHSPG(
        groups,
        rate,
        direction,
        target=0.5,
        tolerance=0.25,
        start_step=3,
        penalty=1.0,
        surplus=surplus,  # type: ignore[arg-type]
    )
    seen = []

    def look() -> None:
        zero = groups.squared_norms() == 0
        assert torch.equal(zero & optimizer.zero, optimizer.zero)
        if seen:
            assert (zero | ~seen[-1]).all()
        seen.append(optimizer.zero.clone())

    steps(model, optimizer, range(80), (8, 3, 6, 6), look)
    assert not seen[2].any()
    assert optimizer.sparsity == 0.5 if surplus == "none" else 0.5 <= optimizer.sparsity <= 0.75
    assert not (optimizer.zero & ~optimizer.penalised).any()
    smaller = construct_subnet(model, groups)
    assert smaller.conv1.out_channels + smaller.skip.out_channels == 8 - int(optimizer.zero.sum())
    assert output_difference(model, smaller, groups) < 1e-5


def test_with_epsilon_zero_hardly_anything_goes() -> None:
    counts = []
    for epsilon in (0.0, 0.95):
        model, groups = small()
        optimizer = DHSPG(groups, 0.1, target=0.5, tolerance=0.25, penalty=0.5, epsilon=epsilon)
        steps(model, optimizer, range(12), (8, 3, 6, 6))
        counts.append(int(optimizer.zero.sum()))
    assert counts[0] < counts[1]


def test_in_the_warm_up_nothing_is_projected() -> None:
    model, groups = small()
    optimizer = DHSPG(groups, 0.1, target=0.5, tolerance=0.25, penalty=1.0, warm_up_steps=20)
    steps(model, optimizer, range(19), (8, 3, 6, 6))
    assert optimizer.penalised.any()
    assert optimizer.sparsity == 0
    later = DHSPG(small()[1], 0.1, target=0.5, project_step=5)
    assert (later.project_step, later.start_step) == (5, 0)


def test_adamw_decays_groups_by_a_length_if_told() -> None:
    moved = {}
    for norm in ("l1", "l2"):
        model, groups = perceptron()
        before = groups.squared_norms().sqrt()
        optimizer = DHSPG(groups, 0.1, Direction("adamw", weight_decay=0.5), target=0.5, tolerance=0, decay_norm=norm)  # type: ignore[arg-type]
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        free = ~optimizer.penalised & (before > 0)
        moved[norm] = (before - groups.squared_norms().sqrt())[free], before[free]
    torch.testing.assert_close(moved["l1"][0], torch.full_like(moved["l1"][0], 0.05), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved["l2"][0], 0.05 * moved["l2"][1], rtol=1e-4, atol=1e-5)


def test_a_saved_state_goes_on_with_the_same_numbers() -> None:
    def fresh() -> tuple[nn.Module, GroupSet, DHSPG]:
        model, groups = small()
        direction = Direction(momentum=0.9)
        return model, groups, DHSPG(groups, 0.05, direction, target=0.5, tolerance=0.25, start_step=4, penalty=1.0)

    whole, _, optimizer = fresh()
    steps(whole, optimizer, range(30), (8, 3, 6, 6))
    assert optimizer.sparsity > 0
    first, _, before = fresh()
    steps(first, before, range(11), (8, 3, 6, 6))
    state = copy.deepcopy((first.state_dict(), before.state_dict()))
    again, _, after = fresh()
    again.load_state_dict(state[0])
    after.load_state_dict(state[1])
    steps(again, after, range(11, 30), (8, 3, 6, 6))
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(InputError, match=r"no state of a DHSPG with 16 groups"):
        DHSPG(perceptron()[1], 0.1).load_state_dict(state[1])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"target": 1.0}, "sparsity must lie between 0 and 1"),
        ({"target": 0.9}, r"0\.9 can't be reached: the largest possible is 0\.875, since 1 of the channels"),
        ({"target": 0.7, "divisible": 4}, r"the largest possible is 0\.500"),
        ({"epsilon": 2.0}, "epsilon must lie between 0 and 1"),
        ({"tolerance": -0.1}, "tolerance and start_step"),
    ],
)
def test_settings_that_make_no_sense_are_refused(setting: dict[str, float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        DHSPG(perceptron()[1], 0.1, **setting)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="variant must be"):
        Direction("lamb")  # type: ignore[arg-type]


def test_the_learning_rate_falls_at_even_distances() -> None:
    rates = [step_decay(100, 3)(step) for step in (0, 24, 25, 50, 75, 99)]
    assert rates == pytest.approx([1, 1, 0.1, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    "method", [OTOv2(), CutThenTune(at=0.6), CutThenTune(at=1, by="random"), GroupLasso(), Dense()]
)
def test_methods_and_baselines_give_back_a_model_of_the_same_kind(method: OTOv2, tmp_path: Path) -> None:
    from shrink_nets import Small

    torch.manual_seed(0)
    model, (x, y) = Small(), batch(0, (48, 3, 6, 6))
    before = copy.deepcopy(model.state_dict())
    at = method.__class__(
        **{**method.__dict__, "sparsity": 0.5, "epochs": 12.0, "batch_size": 8, "learning_rate": 0.05}
    )
    if isinstance(at, OTOv2):
        at = OTOv2(**{**at.__dict__, "penalty": 1.0, "tolerance": 0.25})
    with Run(tmp_path) as run:
        smaller = at.shrink(model, (x, y), run)
    assert type(smaller) is Small
    left = smaller.conv1.out_channels + smaller.skip.out_channels
    assert left == 8 if isinstance(method, Dense) else left == 4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert smaller(x).shape == (48, 3)


def test_data_that_can_not_be_trained_on_are_told_so(tmp_path: Path) -> None:
    model = perceptron()[0]
    with Run(tmp_path) as run:
        for data, said in (
            ((torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)), "there are no examples"),
            ((torch.full((4, 5), torch.nan), torch.zeros(4, dtype=torch.long)), "NaN"),
            ((torch.zeros(4, 5), torch.zeros(4)), "classes, integers"),
            (7, "not a int"),
        ):
            with pytest.raises(InputError, match=said):
                OTOv2().shrink(model, data, run)
        with pytest.raises(InputError, match="pruning would begin after 3 epochs, and the training has 2"):
            OTOv2(epochs=2, start_epoch=3).shrink(model, batch(0), run)


def test_the_command_trains_new_weights_and_the_users_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (draw.integers(0, 60, (60, 8, 8)) + 60 * y[:, None, None]).astype(np.uint8)
    np.savez(tmp_path / "pictures.npz", x=x, y=y)
    short = [
        "--epochs",
        "3",
        "--batch-size",
        "8",
        "--penalty",
        "5",
        "--tolerance",
        "0.2",
        "--start-epoch",
        "0.5",
        "--json",
    ]
    arguments = ["run", "otov2", "--data", str(tmp_path / "pictures.npz"), *short]
    assert main([*arguments, "--out", str(tmp_path / "new")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["output_difference"] < 1e-5
    assert found["zero_groups"] == pytest.approx(0.5, abs=0.01)
    assert found["removed"] > 0.3
    # What came out goes in again: the saved network is loaded by what it was before the cut.
    more = ["--model", str(tmp_path / "new" / "model"), "--sparsity", "0.3"]
    assert main([*arguments, *more, "--out", str(tmp_path / "again")]) == 0
    before, after = json.loads(capsys.readouterr().out)["table"]
    assert before["parameters"] == pytest.approx(found["table"][1]["parameters"])
    assert after["parameters"] < before["parameters"]


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "otov2", "--model", str(tmp_path), "--out", str(tmp_path / "run")]) == 2
    assert "holds no model" in capsys.readouterr().err
    np.savez(tmp_path / "one.npz", x=np.zeros((9, 8, 8), np.uint8), y=np.zeros(9, int))
    assert main(["run", "otov2", "--data", str(tmp_path / "one.npz"), "--out", str(tmp_path / "run")]) == 2
    assert "all of one class" in capsys.readouterr().err
    assert main(["run", "otov2", "--sparsity", "1.5", "--out", str(tmp_path / "run")]) == 2
    assert "sparsity must lie between 0 and 1" in capsys.readouterr().err
