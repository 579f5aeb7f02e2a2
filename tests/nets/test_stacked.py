from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.lm.backbone import evaluating
from thrifty.nets.stacked import Stacked, clip_each_


def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_stack_says_what_its_members_say(own, training):
    members = [net(seed).train(training) for seed in range(3)]
    stack = Stacked(members)
    x = torch.randn(3, 5, 1, 4, 4) if own else torch.randn(5, 1, 4, 4)
    found = stack(x, own=own)
    expected = torch.stack([member(x[i] if own else x) for i, member in enumerate(members)])
    torch.testing.assert_close(found, expected)
    for i, member in enumerate(members):
        for name, value in member.state_dict().items():
            torch.testing.assert_close(stack.member(i).state_dict()[name], value)


def test_a_step_is_each_member_s_own():
    members = [net(seed) for seed in range(2)]
    stack, x = Stacked(members), torch.randn(6, 1, 4, 4)
    optimizer = torch.optim.SGD(stack.parameters(), lr=0.1, momentum=0.9)
    stack(x).square().mean((1, 2)).sum().backward()
    optimizer.step()
    for i, member in enumerate(members):
        alone = torch.optim.SGD(member.parameters(), lr=0.1, momentum=0.9)
        member(x).square().mean().backward()
        alone.step()
        for mine, theirs in zip(stack.member(i).parameters(), member.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_gradients_are_clipped_for_each_member():
    members = [net(seed) for seed in range(2)]
    stack, x = Stacked(members), torch.randn(6, 1, 4, 4)
    scale = torch.tensor([100.0, 0.01])
    (stack(x).square().mean((1, 2)) * scale).sum().backward()
    norms = clip_each_(stack, 1.0)
    for i, member in enumerate(members):
        (member(x).square().mean() * scale[i]).backward()
        norm = nn.utils.clip_grad_norm_(member.parameters(), 1.0)
        torch.testing.assert_close(norms[i], norm)
    torch.testing.assert_close(getattr(stack, "4/weight").grad[0], members[0][4].weight.grad)
    torch.testing.assert_close(getattr(stack, "4/weight").grad[1], members[1][4].weight.grad)


def test_evaluation_reaches_the_members_and_a_copy_is_another():
    stack = Stacked([net(seed).train() for seed in range(2)])
    x = torch.randn(5, 1, 4, 4)
    with evaluating(stack):
        before = stack(x)
    stack(x)  # moves the statistics
    other = copy.deepcopy(stack)
    with evaluating(stack), evaluating(other):
        assert not torch.equal(before, stack(x))
        assert torch.equal(stack(x), other(x))
    other(x)
    assert not torch.equal(getattr(stack, "1/running_mean"), getattr(other, "1/running_mean"))
    assert len(stack) == 2


def test_models_that_do_not_stack_are_refused():
    with pytest.raises(InputError, match="can't be stacked"):
        Stacked([nn.Linear(2, 2), nn.ReLU()])
    with pytest.raises(InputError, match="can't be stacked"):
        Stacked([])
