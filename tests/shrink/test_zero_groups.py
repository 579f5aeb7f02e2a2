from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shrink_nets import Small, perceptron, small
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.shrink.directions import Direction
from thrifty.shrink.group_baselines import _Plain
from thrifty.shrink.ranking import lowest_released, lowest_spared, rank_within
from thrifty.shrink.zero_groups import construct_subnet, output_difference, partition_groups


def test_the_groups_of_the_card_and_what_they_hold() -> None:
    model, groups = small()
    assert len(groups) == 8
    assert groups.layer.tolist() == [0] * 4 + [1] * 4
    # A row of 3 x 9 with its bias and the norm's two; then a row of 4 x 9, one of 3, two biases, and the norm's two.
    assert groups.sizes.tolist() == [27 + 1 + 2] * 4 + [36 + 1 + 3 + 1 + 2] * 4
    squared = groups.squared_norms()
    conv, norm = model.conv1, model.bn1
    by_hand = conv.weight[2].square().sum() + conv.bias[2] ** 2 + norm.weight[2] ** 2 + norm.bias[2] ** 2
    torch.testing.assert_close(squared[2], by_hand.detach())
    by_hand = sum(one[1].square().sum() for one in (*model.conv2.parameters(), *model.bn2.parameters()))
    by_hand = by_hand + sum(one[1].square().sum() for one in model.skip.parameters())
    torch.testing.assert_close(squared[5], by_hand.detach())


def test_two_zero_groups_of_each_leave_without_a_trace() -> None:
    model, groups = small()
    steps_taken = torch.randn(4, 3, 6, 6)
    model(steps_taken)  # running statistics of the norms are no longer those of a new network
    groups.zero_(torch.tensor([True, False, True, False, False, True, True, False]))
    smaller = construct_subnet(model, groups)
    assert smaller.conv1.weight.shape == (2, 3, 3, 3)
    assert smaller.conv2.weight.shape == (2, 2, 3, 3)
    assert smaller.skip.weight.shape == (2, 3, 1, 1)
    assert smaller.fc.in_features == 2 * 36
    assert output_difference(model, smaller, groups) < 1e-5
    x = torch.randn(7, 3, 6, 6)
    torch.testing.assert_close(smaller.eval()(x), model.eval()(x), atol=1e-5, rtol=0)
    assert model.conv1.weight.shape == (4, 3, 3, 3)


def test_the_subnet_of_another_copy_is_that_of_its_own_weights() -> None:
    model, groups = small()
    other = copy.deepcopy(model)
    groups.zero_(torch.arange(8) == 0)
    assert construct_subnet(other, groups).conv1.out_channels == 4
    assert construct_subnet(model, groups).conv1.out_channels == 3


def test_a_layer_of_which_all_is_zero_keeps_one_channel() -> None:
    model, groups = small()
    groups.zero_(groups.layer == 1)
    smaller = construct_subnet(model, groups)
    assert smaller.conv2.out_channels == 1
    assert output_difference(model, smaller, groups) < 1e-5


def test_scaling_is_of_whole_groups() -> None:
    _, groups = small()
    before = groups.squared_norms()
    groups.scale_(torch.tensor([2.0, 1, 1, 1, 1, 1, 0.5, 1]))
    torch.testing.assert_close(
        groups.squared_norms(), before * torch.tensor([4.0, 1, 1, 1, 1, 1, 0.25, 1]), rtol=1e-5, atol=1e-6
    )
    assert len(groups.members) == 10  # all but the classifier's two


def test_channels_that_can_not_be_cut_are_told_why() -> None:
    with pytest.raises(
        InputError, match=r"Linear has no channels that could be cut: .*it is the model's (input|output)"
    ):
        partition_groups(nn.Linear(3, 2), torch.randn(1, 3))
    behind_sigmoid = nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="no channels that could be cut"):
        partition_groups(behind_sigmoid, torch.randn(1, 3))
    with pytest.raises(InputError, match="skip names 'conv9'"):
        partition_groups(Small(), torch.randn(2, 3, 6, 6), skip=["conv9"])
    assert len(partition_groups(Small(), torch.randn(2, 3, 6, 6), skip=["conv1"])) == 4


def test_frozen_layers_stay_whole_unless_an_adapter_beside_them_is_trained() -> None:
    class Adapted(nn.Module):
        """A frozen linear layer with a low-rank adapter."""

        def __init__(self) -> None:
            super().__init__()
            self.base, self.down, self.up = nn.Linear(5, 6), nn.Linear(5, 2, bias=False), nn.Linear(2, 6, bias=False)
            self.base.requires_grad_(False)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.base(x) + self.up(self.down(x))))

    model, x = Adapted(), torch.randn(4, 5)
    assert [layer.name for layer in partition_groups(model, x).layers] == ["down"]
    groups = partition_groups(model, x, frozen=True)
    assert {layer.units for layer in groups.layers} == {2, 6}
    wide = groups.units[groups.layer] == 6
    groups.zero_(wide & (torch.arange(len(groups)) % 2 == 0))
    smaller = construct_subnet(model, groups)
    assert smaller.base.weight.shape == (3, 5)
    assert smaller.up.weight.shape == (3, 2)
    assert output_difference(model, smaller, groups) < 1e-5


@pytest.mark.parametrize(
    ("direction", "twin"),
    [
        (Direction(weight_decay=0.1), lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.1)),
        (
            Direction(momentum=0.9, dampening=0.1, weight_decay=0.01),
            lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, dampening=0.1, weight_decay=0.01),
        ),
        (Direction("adam", weight_decay=0.1), lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1)),
        (Direction("adamw"), lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.01)),
    ],
)
def test_without_groups_going_it_is_pytorchs_own_optimizer(direction: Direction, twin: object) -> None:
    from shrink_nets import steps

    model, groups = perceptron()
    other = copy.deepcopy(model)
    steps(model, _Plain(groups, 0.05, direction, target=0.5), range(6))
    steps(other, twin(other.parameters()), range(6))  # type: ignore[operator]
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


LAYERS = torch.tensor([0, 0, 0, 0, 1, 1, 1])
UNITS = torch.tensor([4, 3])
SCORES = torch.tensor([0.4, 0.1, 0.2, 0.3, 0.01, 0.03, 0.02])
NONE = torch.zeros(7, dtype=torch.bool)


def test_places_within_layers() -> None:
    assert rank_within(LAYERS, SCORES, UNITS).tolist() == [3, 0, 1, 2, 0, 2, 1]


def test_the_best_of_a_layer_is_spared_and_others_go_for_it() -> None:
    # The three lowest are all of the second layer.
    chosen = lowest_spared(SCORES, 3, NONE, LAYERS, UNITS)
    assert chosen.tolist() == [False, True, False, False, True, False, True]
    # The released code gives one back: the last by number, though that is not the best.
    released = lowest_released(SCORES, 3, NONE, LAYERS, UNITS)
    assert released.tolist() == [False] * 4 + [True, True, False]


def test_what_stays_is_a_multiple() -> None:
    # Four of 4 and 3 are to go; both layers keep a multiple of two.
    chosen = lowest_spared(SCORES, 4, NONE, LAYERS, UNITS, divisible=2)
    assert chosen.tolist() == [False, True, True, False, True, False, False]


def test_what_is_gone_is_not_chosen_again() -> None:
    gone = torch.tensor([False, True, False, False, True, False, False])
    assert lowest_spared(SCORES, 2, gone, LAYERS, UNITS).tolist() == [False, False, True, False, False, False, True]
    # A group that is gone with a high score takes no place among the lowest: the first candidates by number go.
    scores = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.9, 0.03, 0.02])
    released = lowest_released(scores, 2, gone, LAYERS, UNITS)
    assert released.tolist() == [True, False, True, False, False, False, False]
    assert lowest_spared(scores, 2, gone, LAYERS, UNITS).tolist() == [True, False, False, False, False, False, True]


@settings(max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 3))
def test_layers_keep_a_multiple_of_what_they_must_and_no_more_go_than_asked(
    seed: int, count: int, divisible: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    units = torch.tensor([6, 3, 9])
    layer = torch.arange(3).repeat_interleave(units)
    scores = torch.rand(18, generator=draw)
    for among in (lowest_spared, lowest_released):
        chosen = among(scores, count, torch.zeros(18, dtype=torch.bool), layer, units, divisible)
        assert chosen.sum() <= count
        stay = torch.bincount(layer[~chosen], minlength=3)
        assert (((stay % divisible == 0) & (stay >= divisible)) | (stay == units)).all()
    if divisible == 1:
        exact = lowest_spared(scores, count, torch.zeros(18, dtype=torch.bool), layer, units)
        assert int(exact.sum()) == count
