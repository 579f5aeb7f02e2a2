from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shrink_nets import Small, batch, perceptron, small, steps
from torch import nn

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.shrink.directions import Direction
from thrifty.shrink.hesso import HESSO
from thrifty.shrink.hesso_optimizer import HESSOOptimizer, fading, quotas
from thrifty.shrink.saliency import combined, criteria_of, group_saliency
from thrifty.shrink.zero_groups import construct_subnet, output_difference

SHAPE = (8, 3, 6, 6)


def test_groups_fade_as_the_card_says() -> None:
    # A period of HESSO counts its steps from 1, hybrid training of CRIC from 0.
    period = [fading(t, 5) for t in range(1, 5)]
    assert period == pytest.approx([0.75, 2 / 3, 0.5, 0])
    left = [0.75, 0.5, 0.25, 0]
    assert torch.tensor(period).cumprod(0).tolist() == pytest.approx(left)
    assert [fading(t, 5) for t in range(5)] == pytest.approx([0.8, 0.75, 2 / 3, 0.5, 0])
    assert fading(0, 1) == 0
    assert quotas(11, 3) == [3, 3, 5]


def test_the_criteria_of_the_card() -> None:
    # x = [3, 4], d = [-1, 0], and a second group of norm 4.
    found = criteria_of(
        torch.tensor([25.0, 16.0]), torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([2.0, 2.0])
    )
    assert found["cosine"][0].item() == pytest.approx(0.4)
    assert found["taylor_first"][0].item() == pytest.approx(3.0)
    assert found["taylor_second"][0].item() == pytest.approx(4.5)
    assert found["average_magnitude"][0].item() == pytest.approx(2.5, rel=1e-5)
    flipped = criteria_of(torch.tensor([25.0]), torch.tensor([-3.0]), torch.ones(1), torch.ones(1), "first_order")
    assert flipped["cosine"].item() == pytest.approx(1.6)
    shares = combined({"magnitude": torch.tensor([3.0, 4.0])}, {"magnitude": 0.2})
    assert shares.tolist() == pytest.approx([0.12, 0.16])


def test_saliency_is_of_the_groups_own_numbers() -> None:
    model, groups = small()
    directions = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    found = group_saliency(groups, directions, {"taylor_first": 1.0})
    makers = [("conv1.weight", model.conv1.weight), ("conv1.bias", model.conv1.bias)]
    makers += [("bn1.weight", model.bn1.weight), ("bn1.bias", model.bn1.bias)]
    inner = sum((value[3] * directions[name][3]).sum() for name, value in makers)
    every = group_saliency(groups, directions, {"taylor_first": 1.0})
    assert torch.equal(found, every)
    assert found.square().sum().item() == pytest.approx(1, rel=1e-4)
    ratio = found[3] / found[0]
    other = sum((value[0] * directions[name][0]).sum() for name, value in makers)
    torch.testing.assert_close(ratio, (inner / other).abs().detach(), rtol=1e-4, atol=1e-5)


def test_a_redundant_group_is_moved_first_and_multiplied_then() -> None:
    model, groups = perceptron(4)
    optimizer = HESSOOptimizer(groups, 0.1, target=0.25, start_step=0, pruning_steps=5, criteria={"magnitude": 1})
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    gone = optimizer.redundant
    assert int(gone.sum()) == 2
    for at, weight in ((slice(0, 4), 0), (slice(4, 8), 2)):
        first, factor = before[weight], torch.where(gone[at], 0.75, 1.0)
        torch.testing.assert_close(model[weight].weight, (first - 0.1) * factor[:, None])
    torch.testing.assert_close(model[4].weight, before[4] - 0.1)


@pytest.mark.parametrize("periods", [1, 3])
@pytest.mark.parametrize("duration", [1, 4])
@pytest.mark.parametrize("direction", [Direction(momentum=0.9), Direction("adamw")])
def test_the_target_is_met_exactly_and_on_schedule(periods: int, duration: int, direction: Direction) -> None:
    model, groups = perceptron()  # 16 groups
    optimizer = HESSOOptimizer(
        groups, 0.01, direction, target=0.6, start_step=3, pruning_steps=periods * duration, periods=periods
    )
    counts = []
    steps(model, optimizer, range(20), after=lambda: counts.append(int((groups.squared_norms() == 0).sum())))
    quota = 9 // periods
    end = [3 + p * duration + max(duration - 1, 1) for p in range(1, periods)]
    assert counts[2] == 0
    for period, step in enumerate([3 + max(duration - 1, 1), *end]):
        wanted = 9 if period == periods - 1 else (period + 1) * quota
        assert counts[step - 1] == wanted
    assert counts[-1] == 9
    assert optimizer.sparsity == 9 / 16


def test_random_choice_is_a_criterion_and_an_unknown_one_is_named() -> None:
    chosen = []
    for seed in (0, 0, 1):
        model, groups = perceptron()
        optimizer = HESSOOptimizer(groups, 0.01, target=0.5, start_step=0, pruning_steps=1, criteria={"random": 1})
        torch.manual_seed(seed)
        steps(model, optimizer, range(1))
        chosen.append(optimizer.zero.tolist())
    assert chosen[0] == chosen[1] != chosen[2]
    with pytest.raises(InputError, match="no criterion 'magnitud': did you mean 'magnitude'"):
        HESSOOptimizer(groups, 0.01, start_step=0, pruning_steps=1, criteria={"magnitud": 1})
    with pytest.raises(InputError, match="3 periods need at least as many pruning steps, not 2"):
        HESSOOptimizer(groups, 0.01, start_step=0, pruning_steps=2, periods=3)


def test_a_saved_state_goes_on_with_the_same_numbers() -> None:
    def fresh() -> tuple[nn.Module, HESSOOptimizer]:
        model, groups = small()
        return model, HESSOOptimizer(
            groups, 0.05, Direction("adam"), target=0.5, start_step=2, pruning_steps=8, periods=2
        )

    whole, optimizer = fresh()
    steps(whole, optimizer, range(14), SHAPE)
    first, before = fresh()
    steps(first, before, range(4), SHAPE)
    assert before.redundant.any()
    state = copy.deepcopy((first.state_dict(), before.state_dict()))
    again, after = fresh()
    again.load_state_dict(state[0])
    after.load_state_dict(state[1])
    steps(again, after, range(4, 14), SHAPE)
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert after.sparsity == 0.5


@pytest.mark.parametrize("with_cric", [False, True])
def test_a_killed_run_goes_on_and_ends_with_the_same_model(
    with_cric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, data = Small(), batch(0, (40, 3, 6, 6))
    method = HESSO(
        epochs=8, batch_size=8, learning_rate=0.02, periods=2, cric=with_cric, max_cycles=1, sampling_steps=4
    )
    with Run(tmp_path / "whole") as run:
        whole = method.shrink(model, data, run)
    assert whole.conv1.out_channels + whole.skip.out_channels == 4
    stop = {"after": 14 if with_cric else 7}
    original = HESSOOptimizer.directions

    def failing(self: HESSOOptimizer) -> dict[str, torch.Tensor]:
        stop["after"] -= 1
        if stop["after"] == 0:
            raise RuntimeError("killed")
        return original(self)

    import thrifty.shrink.train_once as module

    plain_fit = module.fit
    monkeypatch.setattr(module, "fit", lambda *args, **kwargs: plain_fit(*args, **kwargs, save_every=3))
    monkeypatch.setattr("thrifty.shrink.group_sparse.GroupSparse.directions", failing)
    with pytest.raises(RuntimeError, match="killed"), Run(tmp_path / "killed") as run:
        method.shrink(model, data, run)
    with Run(tmp_path / "killed") as run:
        again = method.shrink(model, data, run)
    for ours, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.1, 0.85), st.integers(1, 4), st.integers(0, 1000))
def test_whatever_the_target_the_smaller_model_computes_the_same(target: float, periods: int, seed: int) -> None:
    model, groups = perceptron()
    optimizer = HESSOOptimizer(groups, 0.05, target=target, start_step=1, pruning_steps=4, periods=periods)
    steps(model, optimizer, range(seed, seed + 6))
    assert int(optimizer.zero.sum()) == int(16 * target)
    assert output_difference(model, construct_subnet(model, groups), groups) < 1e-5


def test_stages_that_do_not_fit_are_told_so(tmp_path: Path) -> None:
    with Run(tmp_path) as run:
        with pytest.raises(InputError, match=r"pruning would end at step 6 \(5 periods\), and the training has 4: "):
            HESSO(epochs=2, batch_size=8, pruning_epochs=2).shrink(perceptron()[0], batch(0), run)
        with pytest.raises(InputError, match=r"of CRIC among them"):
            HESSO(epochs=2, batch_size=8, cric=True).shrink(perceptron()[0], batch(0), run)


def test_the_command_on_a_language_model(tmp_path: Path, stored: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given_inputs = ["--model", str(stored / "model"), "--data", str(stored / "text.txt"), "--window-length", "16"]
    more = ["--windows", "8", "--evaluate", "4", "--problems", "0", "--variant", "adamw", "--learning-rate", "0.001"]
    train = ["--epochs", "4", "--batch-size", "4", "--sparsity", "0.4", "--out", str(tmp_path / "run"), "--json"]
    assert main(["run", "hesso", *given_inputs, *more, *train]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = found["table"]
    assert after["parameters"] < before["parameters"]
    assert 0.1 < found["removed"] < 0.7
    from thrifty.shrink.decoder_storing import load_decoder

    assert load_decoder(tmp_path / "run" / "model")[0].num_parameters() == round(1e6 * after["parameters"])


def test_heads_of_a_hugging_face_classifier_go_and_it_stays_one(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    from thrifty.shrink.storing import load_shrunk, save_shrunk

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=3, **sizes))
    x, y = batch(0, (32, 3, 8, 8))
    method = HESSO(epochs=4, batch_size=8, variant="adamw", learning_rate=1e-3, periods=2, criterion="random")
    with Run(tmp_path / "run") as run:
        trained, groups = method.train(model, (x, y), run)
        assert {layer.units for layer in groups.layers} == {4, 24}
        smaller = construct_subnet(trained, groups).eval()
    assert int((groups.squared_norms() == 0).sum()) == 28
    # Layer norms make rounding larger while weights are as small as new ones.
    assert output_difference(trained, smaller, groups) < 1e-4
    save_shrunk(smaller, tmp_path / "model")
    again = load_shrunk(tmp_path / "model")
    assert type(again) is ViTForImageClassification
    torch.testing.assert_close(again(x).logits, smaller(x).logits, rtol=1e-4, atol=1e-5)
