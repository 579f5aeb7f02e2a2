from __future__ import annotations

import copy

import pytest
import torch
from shrink_nets import batch, perceptron, small, steps
from torch import nn

from thrifty.core.errors import InputError
from thrifty.shrink.cric import HESSOCRIC, corrected_saliency
from thrifty.shrink.directions import Direction
from thrifty.shrink.zero_groups import construct_subnet, output_difference, partition_groups

SHAPE = (8, 3, 6, 6)


def cric(groups: object, **given: object) -> HESSOCRIC:
    settings = {"target": 0.5, "start_step": 2, "sampling_steps": 3, "hybrid_steps": 5, "max_cycles": 2, **given}
    return HESSOCRIC(groups, 0.02, Direction(momentum=0.9), **settings)  # type: ignore[arg-type]


def test_the_probe_and_the_cycles_leave_nothing_behind() -> None:
    model, groups = small()
    optimizer = cric(groups, tolerance=0)
    assert optimizer.probe_steps == 2 * 3 * 2
    kept: list[dict[str, torch.Tensor]] = []

    def look() -> None:
        kept.append({name: value.clone() for name, value in model.state_dict().items()})

    look()
    steps(model, optimizer, range(1), SHAPE, look)  # a plain step
    restored = []
    for number in range(1, 40):
        x, y = batch(number, SHAPE)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss.detach())
        if optimizer.decided == optimizer.steps:
            restored.append({name: value.clone() for name, value in model.named_parameters()})
            assert optimizer.decided <= 2 + 12 + 2 * 3
            break
    (found,) = restored
    assert not torch.equal(kept[0]["conv1.weight"], kept[1]["conv1.weight"])
    for name, value in found.items():
        assert torch.equal(value, kept[1][name])
    steps(model, optimizer, range(50, 55), SHAPE)
    assert int((groups.squared_norms() == 0).sum()) == 4
    assert optimizer.sparsity == 0.5
    steps(model, optimizer, range(55, 58), SHAPE)
    smaller = construct_subnet(model, groups)
    assert output_difference(model, smaller, groups) < 1e-5


def test_batch_statistics_are_put_back_but_for_the_released_order() -> None:
    drift = {}
    for released in (False, True):
        model, groups = small()
        optimizer = cric(groups, released=released, max_cycles=2)
        steps(model, optimizer, range(1), SHAPE)
        seen = []
        while optimizer.decided < 0:
            x, y = batch(len(seen) + 1, SHAPE)
            loss = nn.functional.cross_entropy(model(x), y)
            if not seen:
                seen.append(model.bn1.running_mean.clone())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(loss)
            seen.append(model.bn1.running_mean.clone())
        drift[released] = float((seen[-1] - seen[0]).abs().max())
    assert drift[False] == 0 < drift[True]


def test_a_cycle_fades_evenly_and_the_released_one_cuts_at_once() -> None:
    factors: dict[bool, list[float]] = {}
    for released in (False, True):
        model, groups = perceptron(4)
        optimizer = cric(groups, released=released, sampling_steps=5, loss_weight=0, start_step=1, max_cycles=3)
        norms = [groups.squared_norms().sqrt()]
        found = []
        for number in range(5):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step(torch.tensor(1.0))
            norms.append(groups.squared_norms().sqrt())
            if number < 4:
                found.append(float((norms[-1] / norms[0])[optimizer.history].mean()))
        factors[released] = found
    assert factors[False] == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=1e-5)
    assert factors[True] == pytest.approx([0, 0, 0, 0], abs=1e-5)


def test_what_falls_among_the_lowest_meanwhile_is_next_and_nothing_twice() -> None:
    model, groups = perceptron()
    optimizer = cric(groups, loss_weight=0, max_cycles=6, sampling_steps=4, start_step=1)
    cycles = []
    for number in range(60):
        x, y = batch(number)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss)
        if optimizer.decided >= 0:
            break
        if not cycles or not torch.equal(cycles[-1], optimizer.violating):
            cycles.append(optimizer.violating.clone())
    assert int(cycles[0].sum()) == 8
    assert (torch.stack(cycles).sum(0) <= 1).all()
    assert optimizer.decided <= 1 + 6 * 4


def test_the_final_saliency_is_the_mean_and_what_a_layers_loss_did() -> None:
    layer, units = torch.tensor([0, 0, 1]), torch.tensor([2, 1])
    ratios = torch.tensor([3 * 1.5, 3 * 4.0])
    found = corrected_saliency(torch.tensor([2.0, 4.0, 6.0]), 2, ratios, layer, units, 0.5)
    assert found.tolist() == pytest.approx([1 + 0.5 * 1.5 / 2, 2 + 0.5 * 1.5 / 2, 3 + 0.5 * 4.0])


def test_the_probe_keeps_a_narrow_layer_that_looks_small() -> None:
    """A layer of three whose weights are tiny, with the next layer's as large: by magnitude it would go first."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, 3))
    groups = partition_groups(model, torch.randn(2, 5))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    x = torch.randn(256, 5)
    y = (x @ torch.randn(5, 3)).argmax(1)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        for value in model[2].parameters():
            value.mul_(0.01)
        model[4].weight.mul_(100)
    gone = {}
    for weight in (0.0, 1.0):
        trial = copy.deepcopy(model)
        there = type(groups)(trial, groups.graph, groups.layers)
        optimizer = cric(
            there,
            criteria={"magnitude": 0.2},
            loss_weight=weight,
            max_cycles=0,
            target=0.4,
            hybrid_steps=1,
            start_step=1,
        )
        for _ in range(1 + optimizer.probe_steps + 2):
            loss = nn.functional.cross_entropy(trial(x), y)
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.0
            optimizer.step(loss)
        gone[weight] = int((optimizer.zero & (there.layer == 1)).sum())
    assert gone == {0.0: 2, 1.0: 0}


def test_a_state_saved_within_a_cycle_goes_on_with_the_same_numbers() -> None:
    def fresh() -> tuple[nn.Module, HESSOCRIC]:
        model, groups = small()
        return model, cric(groups)

    whole, optimizer = fresh()
    steps(whole, optimizer, range(30), SHAPE)
    assert optimizer.decided > 0
    for cut in (5, 15):  # in the probe and in a cycle
        first, before = fresh()
        steps(first, before, range(cut), SHAPE)
        assert before.cache
        state = copy.deepcopy((first.state_dict(), before.state_dict()))
        again, after = fresh()
        again.load_state_dict(state[0])
        after.load_state_dict(state[1])
        steps(again, after, range(cut, 30), SHAPE)
        for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_cric_says_what_it_needs() -> None:
    model, groups = perceptron()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(InputError, match=r"give it the loss of each step, optimizer\.step\(loss\)"):
        cric(groups, start_step=1).step()
    closed = cric(groups, start_step=1)
    assert closed.step(lambda: torch.tensor(2.0)) == 2
    assert closed.reference == 2
    for name in ("start_step", "sampling_steps", "hybrid_steps"):
        with pytest.raises(InputError, match=f"{name} must be at least 1, not 0"):
            cric(groups, **{name: 0})
