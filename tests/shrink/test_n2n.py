from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.claims import n2n
from thrifty.claims.harness import measure
from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.loop import loop
from thrifty.core.run import Run
from thrifty.nets.chain import ChainNet, parameters, vgg
from thrifty.nets.chain_reading import read_chain
from thrifty.nets.vision import ResNet, ResNetConfig, load_net, save_net
from thrifty.shrink.architecture_search import Scores
from thrifty.shrink.children import (
    Limits,
)
from thrifty.shrink.classifiers import load_classifier
from thrifty.shrink.n2n import N2N, compression_reward, relaxation
from thrifty.shrink.n2n_stages import removal_search, shrinkage_search
from thrifty.shrink.students import Students

CHAIN = vgg(3, size=(8, 8), widths=(16, 24), depth=2)


RESIDUAL = read_chain(ResNet(ResNetConfig(3, width=12, blocks=(1, 1))), torch.zeros(2, 1, 8, 8))


ANY = Limits(10**9)


def of(*numbers):
    return torch.tensor(numbers)


def test_worked_example():
    accuracy, size = of(0.9, 0.9), of(2e6, 1e7)
    found = compression_reward(accuracy, size, 0.92, 2e7)
    torch.testing.assert_close(found, of(0.968478, 0.733696), atol=1e-6, rtol=0)
    assert [relaxation(t) for t in (0, 5, 10, 15, 30)] == pytest.approx([1, 0.197531, 0.0123457, 0, 0], abs=1e-6)
    broken = compression_reward(accuracy, size, 0.92, 2e7, max_parameters=5e6, relaxation=relaxation(5))
    torch.testing.assert_close(broken, of(0.968478, -0.657542), atol=1e-6, rtol=0)
    hard = compression_reward(accuracy, size, 0.92, 2e7, min_accuracy=0.95)
    assert hard.tolist() == [-1, -1]


def test_the_released_constraint_is_relaxed_again_after_its_end():
    assert relaxation(30, "released") == 1
    assert relaxation(20, "released") == pytest.approx(3**-4)
    assert relaxation(0, "hard") == 0


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(0.05, 1))
def test_of_two_equally_accurate_students_the_smaller_one_is_worth_more(one, other, accuracy):
    rewards = compression_reward(of(accuracy, accuracy), of(one, other), 1.0, 1.0)
    assert (rewards[0] >= rewards[1]) == (one <= other) or abs(one - other) < 1e-4
    assert (rewards <= accuracy).all()


class NoStudents:
    accuracy, parameters = 1.0, parameters(CHAIN)


@pytest.mark.parametrize("critic", [False, True])
def test_a_policy_finds_that_smaller_is_better(critic):
    torch.manual_seed(0)
    method = N2N(removal_rate=0.02, scale="log2", critic=critic)
    search = removal_search(method, CHAIN, NoStudents(), Scores(lambda _: 1.0))
    for iteration in range(60):
        search.update(iteration)
    means = search.history.means()
    assert sum(means[-10:]) / 10 > sum(means[:10]) / 10 + 0.02


def test_a_search_that_was_interrupted_ends_with_the_same_rewards(tmp_path):
    method = N2N(rollouts=3)

    def searched(directory, steps):
        with Run(directory, seed=1, device="cpu", config={}) as run:
            stage = run.stage("shrinkage")
            search = shrinkage_search(method, CHAIN, NoStudents(), Scores(lambda config: len(config.layers) / 20))
            loop(search.update, stage, steps, search.state())
            return search

    whole = searched(tmp_path / "whole", 4)
    searched(tmp_path / "parts", 2)
    again = searched(tmp_path / "parts", 4)
    assert again.history.rewards == whole.history.rewards
    assert again.scores.known == whole.scores.known


def test_a_network_is_trained_once():
    asked = []
    scores = Scores(lambda config: asked.append(config) or 0.5)
    assert [scores(CHAIN), scores(CHAIN), scores(RESIDUAL)] == [0.5, 0.5, 0.5]
    assert asked == [CHAIN, RESIDUAL]
    assert scores.networks(CHAIN)[0] == (CHAIN, 0.5)


@pytest.fixture(scope="module")
def bars():
    """Three kinds of picture that a small network tells apart: a bar at the top, in the middle, at the bottom."""
    draw = np.random.default_rng(0)
    y = np.arange(150) % 3
    x = draw.integers(0, 90, (150, 8, 8))
    for row, label in enumerate(y):
        x[row, 3 * label : 3 * label + 2] += 160
    return x.astype(np.uint8), y


@pytest.fixture(scope="module")
def teacher(bars):
    torch.manual_seed(0)
    net = ChainNet(vgg(3, size=(8, 8), widths=(12, 16), depth=1))
    x, y = torch.tensor(bars[0], dtype=torch.float32)[:, None] / 127.5 - 1, torch.tensor(bars[1])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net.eval()


_SMALL = ("--iterations", "2", "--rollouts", "2", "--child-epochs", "1", "--student-epochs", "3", "--batch-size", "16")


def test_the_command_on_the_users_own_teacher(tmp_path, bars, teacher, capsys):
    np.savez(tmp_path / "bars.npz", x=bars[0], y=bars[1])
    save_net(teacher, tmp_path / "teacher")
    own = ["--model", str(tmp_path / "teacher"), "--data", str(tmp_path / "bars.npz"), "--json", *_SMALL]
    assert main(["run", "n2n", *own, "--out", str(tmp_path / "run")]) == 0
    found = json.loads(capsys.readouterr().out)
    before, after = found["table"]
    assert after["parameters"] < before["parameters"]
    assert after["gflops"] < before["gflops"]
    student = load_net(tmp_path / "run" / "model")
    assert isinstance(student, ChainNet)
    assert sum(p.numel() for p in student.parameters()) / 1e6 == pytest.approx(after["parameters"])
    told = json.loads((tmp_path / "run" / "search.json").read_text())
    assert len(told["removal"]["mean_rewards"]) == len(told["shrinkage"]["mean_rewards"]) == 2
    assert told["shrinkage"]["reward"] >= told["removal"]["reward"]
    # Another search, of a deeper teacher, begins with these policies.
    save_net(ChainNet(vgg(3, size=(8, 8), widths=(12, 16), depth=2)), tmp_path / "deep")
    deep = ["--model", str(tmp_path / "deep"), "--start-from", str(tmp_path / "run"), "--stages", "remove"]
    assert main(["run", "n2n", *own, *deep, "--out", str(tmp_path / "second")]) == 0
    other = [*own, *deep, "--hidden", "7", "--out", str(tmp_path / "third")]
    assert main(["run", "n2n", *other]) == 2
    assert "is a policy of another shape" in capsys.readouterr().err


def test_wrong_input_is_told_in_one_line(tmp_path, bars, teacher, capsys):
    assert main(["run", "n2n", "--data", "somewhere", "--out", str(tmp_path / "a")]) == 2
    assert "pictures without a model: give --model" in capsys.readouterr().err
    save_net(teacher, tmp_path / "teacher")
    np.savez(tmp_path / "wrong.npz", x=bars[0], y=bars[1] + 1)
    wrong = ["--model", str(tmp_path / "teacher"), "--data", str(tmp_path / "wrong.npz")]
    assert main(["run", "n2n", *wrong, "--out", str(tmp_path / "b")]) == 2
    assert "the model has no class '3'" in capsys.readouterr().err
    assert main(["run", "n2n", *wrong, "--max-parameters", "0", "--out", str(tmp_path / "c")]) == 2
    assert "max_parameters must be at least 1" in capsys.readouterr().err


def test_labels_and_inputs_are_checked(tmp_path, bars, teacher):
    x, y = torch.rand(12, 1, 8, 8), torch.arange(12) % 3
    with Run(tmp_path / "run", device="cpu") as run:
        for given_x, given_y, said in (
            (x, y + 3, "training pictures: class 3 of picture 0 is none of the model's 3"),
            (x.masked_fill(x > 0.9, float("nan")), y, "training pictures: x has NaN"),
            (x[:0], y[:0], "there are no training pictures"),
            (torch.rand(12, 2, 8, 8), y, "the model can't take pictures"),
        ):
            with pytest.raises(InputError, match=said):
                N2N().shrink(teacher, (given_x, given_y), (x, y), run)


def test_a_constraint_that_nothing_keeps_to_is_said(tmp_path, bars, teacher, caplog):
    x = torch.tensor(bars[0], dtype=torch.float32)[:, None] / 127.5 - 1
    data = (x, torch.tensor(bars[1]))
    method = N2N("remove", 1, 2, child_epochs=1, student_epochs=1, max_parameters=5)
    with Run(tmp_path / "run", device="cpu") as run:
        student = method.shrink(teacher, data, data, run)
    assert "keeps to the constraint" in caplog.text
    assert isinstance(student, ChainNet)
    both = dataclasses.replace(method, stages="both")
    with Run(tmp_path / "both", device="cpu") as run:
        both.shrink(teacher, data, data, run)
    found = json.loads((tmp_path / "both" / "search.json").read_text())
    assert found["shrinkage"]["mean_rewards"] == [-1]
    assert found["removal"]["mean_rewards"] > [-1]


def test_every_condition_of_the_claim_can_be_judged_on_what_the_arms_return(tmp_path, monkeypatch):
    # Nothing is trained: what counts is what is compared.
    monkeypatch.setattr(n2n, "learn", lambda *_, **__: None)
    monkeypatch.setattr(Students, "score", lambda self, config: 0.5 + len(config.layers) / 100)
    monkeypatch.setattr(Students, "taught", lambda self, config, run: self.fresh(config).eval())
    found = measure(n2n.CLAIM.prepare, n2n.CLAIM.arms, [0], tmp_path, quick=True)
    for condition in n2n.CLAIM.conditions:
        for arm in (condition.left, condition.right):
            assert not isinstance(arm, str) or condition.metric in found.values[arm]
    for arm in ("n2n", "random search", "uniform width"):
        assert found.values[arm]["times_smaller"][0] > 1
        assert 0 <= found.values[arm]["test_accuracy"][0] <= 1
    # The search that learns nothing draws as many children.
    assert found.values["random search"]["removal_late"] != found.values["n2n"]["removal_late"]


def test_a_hugging_face_teacher_and_its_student_read_the_same_pictures(tmp_path, bars, capsys):
    from transformers import ResNetConfig as Config
    from transformers import ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    sizes = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    ResNetForImageClassification(Config(**sizes, num_labels=3)).save_pretrained(tmp_path / "teacher")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "teacher")
    np.savez(tmp_path / "bars.npz", x=bars[0][:60], y=bars[1][:60])
    own = ["--model", str(tmp_path / "teacher"), "--data", str(tmp_path / "bars.npz"), "--stages", "remove", *_SMALL]
    assert main(["run", "n2n", *own, "--json", "--fewest-channels", "4", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    with Run(tmp_path / "other", device="cpu") as run:
        student = load_classifier(str(tmp_path / "run" / "model"), run)
        teacher = load_classifier(str(tmp_path / "teacher"), run)
    assert isinstance(student.model, ChainNet)
    one, other = (found.transform(bars[0][:2]) for found in (student, teacher))
    assert one.shape == (2, 1, 16, 16)
    assert torch.equal(one, other)
