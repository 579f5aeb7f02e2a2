from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.forget.evaluate import divergence, entropies, evaluate, membership, predict


class Fixed(nn.Module):
    """Logits are the inputs themselves."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.scale


def test_likelihood_correctness_and_entropy_of_known_predictions():
    p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.9, 0.1, 0.0]])
    said = predict(Fixed(), (p.log().clamp(min=-1e4), torch.tensor([0, 2, 0])), batch_size=2)
    torch.testing.assert_close(said.nll, -torch.tensor([0.5, 0.1, 0.9]).log())
    assert said.correct.tolist() == [1, 0, 1]
    expected = [
        1.5 * math.log(2),
        -0.8 * math.log(0.8) - 0.2 * math.log(0.1),
        -0.9 * math.log(0.9) - 0.1 * math.log(0.1),
    ]
    torch.testing.assert_close(said.entropy, torch.tensor(expected))


def test_a_certain_prediction_has_no_entropy():
    assert entropies(torch.tensor([[0.0, -math.inf]])).tolist() == [0.0]


def test_prediction_is_in_evaluation_mode_and_restores_it():
    model = nn.Sequential(nn.Dropout(0.9), Fixed()).train()
    x, y = torch.eye(3) * 5, torch.arange(3)
    assert predict(model, (x, y)).correct.mean() == 1
    assert model[0].training


def test_membership_follows_the_side_of_the_boundary():
    generator = torch.Generator().manual_seed(0)
    retain, test = torch.rand(300, generator=generator) * 0.2, 0.8 + torch.rand(60, generator=generator)
    assert membership(retain, test, torch.tensor([0.0, 0.1, 1.5])) == pytest.approx(2 / 3)
    assert membership(retain, test, torch.full((4,), 1.7)) == 0
    assert membership(retain, test, torch.zeros(4)) == 1


def test_membership_weights_both_kinds_equally():
    # Ten times as many members of the same entropies must not drag the boundary.
    few, many = torch.linspace(0, 0.5, 20), torch.linspace(0, 0.5, 2000)
    test, asked = torch.linspace(0.5, 1, 20), torch.linspace(0.3, 0.7, 41)
    assert abs(membership(few, test, asked) - membership(many, test, asked)) < 0.15


def test_divergence_of_known_distributions():
    class Halves(Fixed):
        def forward(self, x):
            return torch.zeros(len(x), 2)

    p = torch.tensor([[0.75, 0.25]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(Fixed(), Halves(), p.log().repeat(5, 1), batch_size=2) == pytest.approx(expected, rel=1e-5)
    assert divergence(Fixed(), Fixed(), p.log()) == 0


def test_one_evaluation_for_all_sets():
    torch.manual_seed(0)
    y = torch.arange(30) % 3
    sharp, blunt = torch.eye(3)[y] * 8, torch.eye(3)[y] * 0.5
    wrong = torch.eye(3)[(y + 1) % 3] * 0.5
    scores = evaluate(Fixed(), {"retain": (sharp, y), "test": (blunt, y), "forget": (wrong, y)}, reference=Fixed())
    assert scores == {
        "retain_accuracy": 1.0,
        "test_accuracy": 1.0,
        "forget_accuracy": 0.0,
        "mia": 0.0,
        "forget_kl": 0.0,
    }
    assert "mia" not in evaluate(Fixed(), {"retain": (sharp, y), "forget": (wrong, y)})


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ((torch.eye(3), torch.tensor([0, 1, 3])), "label 3 of example 2"),
        (torch.eye(3), "no labels"),
        ((torch.full((1, 3), float("nan")), torch.tensor([0])), "example 0 holds NaN"),
        ((torch.eye(3)[:0], torch.arange(0)), "the retain set is empty"),
    ],
)
def test_wrong_data_are_named(data, said):
    with pytest.raises(InputError, match=said):
        evaluate(Fixed(), {"retain": data})
