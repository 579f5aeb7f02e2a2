from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.forget.attribution.trak import Trak
from thrifty.forget.baselines import Retrain
from thrifty.forget.data import Labelled
from thrifty.forget.dmm import DMM, DirectPrediction, datamodel_targets
from thrifty.forget.klom import margins
from thrifty.forget.matching import match_outputs, matching_loss, pool_order
from thrifty.forget.oracle_matching import OracleMatching, oracle_targets
from thrifty.forget.retraining import outputs
from thrifty.nets.stacked import Stacked
from thrifty.nets.vision import ResNet, ResNetConfig, load_net, save_net


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


@pytest.fixture(scope="module")
def problem():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(30) % 3
    data = Labelled(torch.randn(3, 4, generator=generator)[y] * 2 + torch.randn(30, 4, generator=generator), y)
    model = Retrain(lambda: net(0), epochs=20, batch_size=10).train(data, torch.device("cpu"))
    return model, data.rows(torch.arange(6)), data.rows(torch.arange(6, 30))


def test_worked_example_of_the_targets():
    beta = torch.tensor([[[0.3, -0.1, 0.0]], [[0.2, 0.1, -0.3]]])
    found = datamodel_targets(torch.tensor([[2.0, 0.0, -1.0]]), beta)
    torch.testing.assert_close(found, torch.tensor([[1.5, 0.0, -0.7]]))
    doubled = datamodel_targets(torch.tensor([[2.0, 0.0, -1.0]]), beta, 2.0)
    torch.testing.assert_close(doubled, torch.tensor([[1.0, 0.0, -0.4]]))


def test_the_squares_are_averaged_over_batch_and_classes():
    said, wanted = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[0.0, 2], [3, 2]])
    assert float(matching_loss(said, wanted)) == pytest.approx((1 + 4) / 4)
    stacked = matching_loss(torch.stack([said, wanted]), wanted.expand(2, 2, 2))
    torch.testing.assert_close(stacked, torch.tensor([1.25, 0.0]))


def test_cross_entropy_is_least_at_the_targets_up_to_a_constant():
    wanted = torch.randn(4, 3)
    said = (wanted + 5).requires_grad_()
    value = matching_loss(said, wanted, "ce")
    value.backward()
    torch.testing.assert_close(said.grad, torch.zeros(4, 3), atol=1e-6, rtol=0)
    entropy = -(wanted.softmax(-1) * wanted.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(value.detach(), entropy)


@pytest.mark.parametrize(
    ("multiplier", "expected"),
    [(1.0, [0, 1, 2, 3, 4]), (2.5, [0, 1, 2, 0, 1, 2, 0, 3, 4]), (0.0, [3, 4]), (0.7, [0, 1, 3, 4])],
)
def test_an_epoch_repeats_the_forget_set(multiplier, expected):
    assert pool_order(3, 2, multiplier).tolist() == expected


def test_oracles_are_averaged_as_the_loss_needs():
    logits = torch.randn(5, 4, 3)
    torch.testing.assert_close(oracle_targets(logits), logits.mean(0))
    torch.testing.assert_close(oracle_targets(logits, "ce").exp(), logits.softmax(-1).mean(0))


@pytest.mark.parametrize("shuffle", [None, 3])
def test_each_example_learns_its_own_target(problem, shuffle):
    model, _, data = problem
    wanted = torch.randn(3, 3)[data.y] + outputs(model, data)
    before = copy.deepcopy(model.state_dict())
    first = float((outputs(model, data) - wanted).square().mean())
    found = match_outputs(model, data, wanted, epochs=100, learning_rate=0.03, batch_size=5, shuffle=shuffle)
    assert float((outputs(found, data) - wanted).square().mean()) < 0.3 * first
    assert not found.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_model_that_says_it_already_stays_and_the_penalty_holds_it_back(problem):
    model, _, data = problem
    same = match_outputs(model, data, outputs(model, data), epochs=2)
    for mine, theirs in zip(same.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)
    settings = {"epochs": 40, "learning_rate": 0.01}
    free, held = (
        match_outputs(model, data, outputs(model, data) + 3, **settings, penalty=penalty) for penalty in (0.0, 100.0)
    )

    def moved(other):
        return sum(
            float((a - b).detach().square().sum()) for a, b in zip(other.parameters(), model.parameters(), strict=True)
        )

    assert moved(held) < 0.05 * moved(free)


def test_stacked_models_learn_as_they_would_alone(problem):
    _, _, data = problem
    members = [net(1).eval(), net(2).eval()]
    wanted = torch.randn(2, len(data), 3)
    settings = {"epochs": 4, "learning_rate": 0.01, "batch_size": 7, "shuffle": 1}
    together = outputs(match_outputs(Stacked(members), data, wanted, **settings), data)
    alone = outputs([match_outputs(member, data, wanted[i], **settings) for i, member in enumerate(members)], data)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)


def test_as_many_targets_as_examples(problem):
    model, _, data = problem
    with pytest.raises(InputError, match="5 targets for 24 examples"):
        match_outputs(model, data, torch.zeros(5, 3))


def test_a_direct_prediction_takes_the_effects_off(problem):
    model, _, data = problem
    effects = torch.randn(2, len(data), 3)
    served = DirectPrediction(model, effects, multiplier=0.5)
    index = torch.tensor([4, 0])
    torch.testing.assert_close(served(data.x[index], index), model(data.x[index]) - 0.5 * effects[:, index].sum(0))


def test_known_effects_are_matched(problem, tmp_path):
    model, gone, kept = problem
    beta = torch.zeros(6, 30, 3)
    beta[torch.arange(6), torch.arange(6), gone.y] = 4.0  # each example is all that supports its own class
    save_file({"beta": beta}, tmp_path / "beta.safetensors")
    method = DMM(scores=str(tmp_path / "beta.safetensors"), epochs=60, learning_rate=0.03)
    changed = method.forget(model, gone, kept)
    fell = (outputs(model, gone) - outputs(changed, gone)).gather(1, gone.y[:, None])
    assert 1.5 < float(fell.mean()) < 5.5
    assert float((outputs(model, kept) - outputs(changed, kept)).abs().mean()) < 1.2
    twice = DMM(scores=method.scores, epochs=60, learning_rate=0.03, multiplier=0.0).forget(model, gone, kept)
    assert float((outputs(model, gone) - outputs(twice, gone)).abs().mean()) < 0.2


@pytest.mark.parametrize(
    "method",
    [
        DMM(attribution="trak", models=8, retrain_epochs=30, epochs=30, learning_rate=0.02),
        DMM(models=96, retrain_epochs=30, epochs=30, learning_rate=0.02),
    ],
)
def test_what_was_learnt_by_heart_is_forgotten(problem, method, tmp_path):
    _, gone, kept = problem
    gone = Labelled(gone.x, (gone.y + 1) % 3)  # wrong classes, which no other example supports
    both = Labelled(torch.cat([gone.x, kept.x]), torch.cat([gone.y, kept.y]))
    model = Retrain(lambda: net(0), epochs=60, batch_size=10).train(both, torch.device("cpu"))
    torch.manual_seed(0)
    with Run(tmp_path / "run") as run:
        changed = method.forget(model, gone, kept, run=run)
    before, after = (float(margins(outputs(m, gone), gone.y).mean()) for m in (model, changed))
    assert after < before - 0.1
    assert list((tmp_path / "run" / "models").glob("*.safetensors"))


def test_oracle_matching_says_what_the_oracles_say(problem):
    model, gone, kept = problem
    wanted = torch.randn(3, 3)[torch.cat([gone.y, kept.y])].expand(4, 30, 3)
    method = OracleMatching(epochs=100, learning_rate=0.05)
    changed = method.forget(model, gone, kept, oracles=wanted)
    before, after = (float((outputs(m, gone) - wanted[0, :6]).square().mean()) for m in (model, changed))
    assert after < 0.05 * before
    stacked = method.forget(Stacked([model, net(3).eval()]), gone, kept, oracles=wanted)
    assert outputs(stacked, gone).shape == (2, 6, 3)
    assert float((outputs(stacked, gone) - wanted[0, :6]).square().mean()) < 0.05 * before
    trained = OracleMatching(oracles=3, retrain_epochs=4).forget(model, gone, kept)
    assert not torch.equal(outputs(trained, gone), outputs(model, gone))


def test_any_attribution_will_do(problem):
    model, gone, kept = problem

    class Nothing:
        def attribute(self, model, training, queries, of, **_):
            return torch.zeros(len(of), len(queries), 3)

    changed = DMM(learning_rate=1e-4).forget(model, gone, kept, attributor=Nothing())
    torch.testing.assert_close(outputs(changed, gone), outputs(model, gone), atol=0.1, rtol=0)
    assert isinstance(DMM(attribution="trak", models=0).attributor(), Trak)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "epochs must be above 0"),
        ({"retain_multiplier": -1.0}, "retain_multiplier must be at least 0"),
        ({"retain_multiplier": 0.0, "forget_multiplier": 0.0}, "nothing to learn from"),
        ({"attribution": "datamodels", "models": 1}, "at least 4 models"),
        ({"attribution": "datamodels", "models": 9, "share": 1.5}, "share must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(InputError, match=said):
        DMM(**settings)


def test_wrong_sets_and_scores_are_named(problem, tmp_path):
    model, gone, kept = problem
    method = DMM(attribution="trak", models=0)
    with pytest.raises(InputError, match="the forget set is empty"):
        method.forget(model, gone.rows(torch.arange(0)), kept)
    with pytest.raises(InputError, match="holds NaN"):
        method.forget(model, Labelled(gone.x * math.nan, gone.y), kept)
    with pytest.raises(InputError, match="no labels"):
        method.forget(model, gone.x, kept.x)
    save_file({"beta": torch.zeros(2, 30, 3)}, tmp_path / "wrong.safetensors")
    with pytest.raises(InputError, match=r"\[2, 30, 3\]: expected \[6, 30, classes\]"):
        DMM(scores=str(tmp_path / "wrong.safetensors")).forget(model, gone, kept)
    (tmp_path / "text").write_text("no tensors")
    with pytest.raises(InputError, match="holds no scores"):
        DMM(scores=str(tmp_path / "text")).forget(model, gone, kept)


def test_the_command_runs_it_on_the_user_s_model_and_pictures(tmp_path, capsys):
    generator = np.random.default_rng(0)
    y = np.arange(48) % 4
    x = generator.integers(0, 90, (48, 8, 8))
    x[np.arange(48), y * 2] += 150
    np.savez(tmp_path / "data.npz", x=x.astype(np.uint8), y=y)
    np.savez(tmp_path / "forget.npz", x=x[:4].astype(np.uint8), y=y[:4])
    torch.manual_seed(0)
    save_net(ResNet(ResNetConfig(4, width=4, blocks=(1,), stem_stride=2)), tmp_path / "net")
    given = ["--model", str(tmp_path / "net"), "--data", str(tmp_path / "data.npz"), "--device", "cpu"]
    settings = ["--models", "4", "--retrain-epochs", "1", "--epochs", "2"]
    forget = ["--forget", str(tmp_path / "forget.npz")]
    assert main(["run", "dmm", *given, *forget, *settings, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "model" / "model.safetensors").exists()
    capsys.readouterr()
    wrong = ["--scores", str(tmp_path / "none.safetensors"), "--out", str(tmp_path / "again")]
    assert main(["run", "dmm", *given, *forget, *settings, *wrong]) == 2
    assert "holds no scores" in capsys.readouterr().err


def test_without_arguments_alike_digits_are_forgotten(tmp_path):
    settings = ["--models", "4", "--retrain-epochs", "1", "--epochs", "1"]
    assert main(["run", "dmm", *settings, "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert found["examples"] == {"forget_set": 10, "retain_set": 290, "full_set": 300}
    assert found["table"][0]["forget_accuracy"] > 0.8
    assert load_net(tmp_path / "out" / "model").config == load_net(tmp_path / "out" / "original").config
