from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.represent.conftest import bars
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.represent.classifier_baselines import DataAugmentation, IndependentEnsemble, MultiTask, Plain, Shared
from thrifty.represent.classifier_method import accuracies, logits_of
from thrifty.represent.sla import SLA, LabelAugmentation, aggregated, distillation, joint_labels
from thrifty.represent.transformations import TRANSFORMATIONS, transformed

# One picture, two classes, two transformations: columns are (class 0, t0), (class 0, t1), (class 1, t0), (class 1, t1).
Z = torch.tensor([[2.0, 0.0, 1.0, 1.0], [0.0, 3.0, 1.0, 0.0]])
U = torch.tensor([[1.0, 0.0]])


def test_worked_example_of_labels_loss_and_inference() -> None:
    assert joint_labels(torch.tensor([0]), 2).tolist() == [0, 1]
    assert joint_labels(torch.tensor([3, 1]), 4).tolist() == [12, 13, 14, 15, 4, 5, 6, 7]
    assert float(functional.cross_entropy(Z, joint_labels(torch.tensor([0]), 2))) == pytest.approx(0.418761, abs=2e-6)
    single = Z[:1, ::2].softmax(1)
    torch.testing.assert_close(single, torch.tensor([[0.731059, 0.268941]]), atol=2e-6, rtol=0)
    torch.testing.assert_close(aggregated(Z, 2), torch.tensor([[2.5, 0.5]]))
    torch.testing.assert_close(aggregated(Z, 2).softmax(1), torch.tensor([[0.880797, 0.119203]]), atol=2e-6, rtol=0)


def test_worked_example_of_the_distillation() -> None:
    assert float(functional.cross_entropy(U, torch.tensor([0]))) == pytest.approx(0.313262, abs=2e-6)
    assert float(distillation(U, aggregated(Z, 2), 1.0)) == pytest.approx(0.067131, abs=2e-6)


class Fixed(nn.Module):
    """Features that are logits given beforehand, whatever the pictures."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, images: Tensor) -> Tensor:
        return self.rows[: len(images)]


def test_worked_example_of_the_whole_loss() -> None:
    net = LabelAugmentation(Fixed(Z), 4, 2, TRANSFORMATIONS["rotation2"])
    with torch.no_grad():
        net.joint.weight.copy_(torch.eye(4))
        net.joint.bias.zero_()
        net.distilled.weight.copy_(torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
        net.distilled.bias.zero_()
    terms = net.loss(torch.zeros(1, 1, 2, 2), torch.tensor([0]))
    assert float(terms["total"].detach()) == pytest.approx(0.799154, abs=3e-6)
    assert sorted(terms) == ["distill", "joint", "single", "total"]


def test_pictures_are_turned_counter_clockwise_and_stand_beside_their_own() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[5.0, 6.0], [7.0, 8.0]]]])
    rows = transformed(x, TRANSFORMATIONS["rotation"])
    assert rows.shape == (8, 1, 2, 2)
    assert rows[1, 0].tolist() == [[2.0, 4.0], [1.0, 3.0]]
    assert rows[2, 0].tolist() == [[4.0, 3.0], [2.0, 1.0]]
    assert rows[5, 0].tolist() == [[6.0, 8.0], [5.0, 7.0]]


def test_the_sets_have_the_paper_s_sizes_and_begin_with_the_identity() -> None:
    x = torch.rand(1, 3, 4, 4)
    sizes = {"none": 1, "rotation": 4, "rotation2": 2, "color-perm": 6, "color-perm3": 3}
    sizes |= {"rot-color-perm6": 6, "rot-color-perm12": 12, "rot-color-perm24": 24}
    assert {name: len(each) for name, each in TRANSFORMATIONS.items()} == sizes
    for each in TRANSFORMATIONS.values():
        rows = transformed(x, each)
        assert torch.equal(rows[:1], x)
        assert len({row.numpy().tobytes() for row in rows}) == len(each), "all of them differ"
    assert torch.equal(transformed(x, TRANSFORMATIONS["color-perm3"])[1], x[0, [1, 2, 0]])
    twelve = transformed(x, TRANSFORMATIONS["rot-color-perm12"])
    torch.testing.assert_close(twelve[4], torch.rot90(x[0], 1, (1, 2))[[1, 2, 0]])


counts = st.integers(1, 5)


@given(counts, st.integers(2, 5), st.integers(1, 4), st.integers(0, 99))
def test_the_order_of_transformations_does_not_matter(batch, classes, m, seed) -> None:
    torch.manual_seed(seed)
    z = torch.randn(batch * m, classes * m, dtype=torch.float64)
    y, order = torch.randint(classes, (batch,)), torch.randperm(m)
    shuffled = z.view(batch, m, classes, m)[:, order][..., order].reshape(batch * m, classes * m)
    torch.testing.assert_close(aggregated(shuffled, m), aggregated(z, m))
    losses = [functional.cross_entropy(each, joint_labels(y, m)) for each in (z, shuffled)]
    torch.testing.assert_close(losses[0], losses[1])


@given(counts, st.integers(2, 5), st.integers(1, 4), st.integers(0, 99))
def test_normalising_within_a_transformation_first_gives_the_same_aggregate(batch, classes, m, seed) -> None:
    torch.manual_seed(seed)
    z = torch.randn(batch * m, classes * m, dtype=torch.float64)
    normalised = z.view(-1, classes, m).log_softmax(1).view_as(z)
    torch.testing.assert_close(aggregated(normalised, m).softmax(1), aggregated(z, m).softmax(1))


def net_of(transformations: str, **settings) -> LabelAugmentation:
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    return LabelAugmentation(encoder, 6, 3, TRANSFORMATIONS[transformations], **settings)


IMAGES, LABELS = torch.rand(5, 3, 4, 4), torch.tensor([0, 1, 2, 1, 0])


def test_the_identity_alone_is_an_ordinary_classifier() -> None:
    net = net_of("none", distill=False)
    plain = Shared(net.encoder, 6, 3, TRANSFORMATIONS["none"])
    plain.head = net.joint
    torch.testing.assert_close(net.loss(IMAGES, LABELS)["total"], plain.loss(IMAGES, LABELS)["total"])
    torch.testing.assert_close(net(IMAGES, mode="aggregate"), net(IMAGES, mode="single"))
    torch.testing.assert_close(net(IMAGES), plain(IMAGES))


def test_the_distillation_has_no_gradient_in_the_joint_head_and_one_in_the_encoder() -> None:
    net = net_of("rotation")
    net.loss(IMAGES, LABELS)["distill"].backward()
    assert net.joint.weight.grad is None
    assert net.distilled.weight.grad.abs().sum() > 0
    assert net.encoder[1].weight.grad.abs().sum() > 0


def test_the_sum_over_transformations_is_m_times_the_mean() -> None:
    mean, total = (net_of("rotation", sum_over_transformations=each).loss(IMAGES, LABELS) for each in (False, True))
    torch.testing.assert_close(total["joint"], 4 * mean["joint"])
    torch.testing.assert_close(total["distill"], mean["distill"])


def test_another_loss_of_the_joint_labels_can_be_plugged_in() -> None:
    weight = torch.arange(1.0, 13.0)
    net = net_of("rotation", criterion=nn.CrossEntropyLoss(weight=weight))
    rows = net.joint(net.features(transformed(IMAGES, net.transforms)))
    expected = functional.cross_entropy(rows, joint_labels(LABELS, 4), weight=weight)
    torch.testing.assert_close(net.loss(IMAGES, LABELS)["joint"], expected)


def test_aggregation_reads_each_transformation_s_own_columns() -> None:
    net = net_of("rot-color-perm6").eval()
    by_hand = torch.zeros(5, 3)
    for j, transformation in enumerate(net.transforms):
        by_hand += net.joint(net.features(transformation(IMAGES)))[:, j::6] / 6
    torch.testing.assert_close(net(IMAGES), by_hand)
    torch.testing.assert_close(net(IMAGES, mode="single"), net.joint(net.features(IMAGES))[:, ::6])
    torch.testing.assert_close(net(IMAGES, mode="distilled"), net.distilled(net.features(IMAGES)))
    with pytest.raises(InputError, match="no distilled inference: it has aggregate, single"):
        net_of("rotation", distill=False)(IMAGES, mode="distilled")


@pytest.mark.parametrize("method", [SLA(), Plain(), DataAugmentation(), MultiTask(), IndependentEnsemble()])
def test_all_learn_bars_on_the_shared_loop(method, run: Run) -> None:
    x, y = bars(200)
    torch.manual_seed(3)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
    small = replace(method, epochs=12, batch_size=20, learning_rate=0.05, shift=0.0, transformations=_turn(method))
    net = small.fit(x, y, run, encoder, save_every=None)
    found = accuracies(net, torch.from_numpy(x)[:, None], torch.from_numpy(y))
    assert set(found) == set(net.inferences)
    assert found[net.inferences[0]] > 0.9
    assert logits_of(net, torch.from_numpy(x)[:3, None]).shape == (3, 4)


def _turn(method):
    return "none" if isinstance(method, Plain) else "rotation2"


def test_members_of_the_ensemble_begin_with_other_weights() -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(48, 6))
    net = IndependentEnsemble(transformations="rotation2").classifier(encoder, 6, 3)
    assert not torch.equal(net.others[0][1].weight, encoder[1].weight)
    by_hand = (net.heads[0](encoder(IMAGES)) + net.heads[1](net.others[0](torch.rot90(IMAGES, 2, (2, 3))))) / 2
    torch.testing.assert_close(net(IMAGES), by_hand)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": [0, 1, -1, 0]}, "label -1 of example 2 is no class"),
        ({"labels": [0, 0, 0, 0]}, "all pictures are of one class"),
        ({"labels": [0.5, 1, 0, 1]}, "labels must be integers from 0"),
        ({"labels": [0, 1]}, "labels must be one for each of the 4 pictures"),
        ({"classes": 2, "labels": [0, 1, 2, 0]}, "label 2 of example 2 is no class: there are 2"),
        ({"transformations": "color-perm"}, "color-perm needs colour pictures"),
        ({"side": (4, 6)}, "rotation turns squares, and the pictures are 4x6"),
    ],
)
def test_wrong_input_is_named(change, said, run: Run) -> None:
    x = torch.randint(256, (4, 1, *change.get("side", (4, 4))), dtype=torch.uint8)
    method = SLA(epochs=1, batch_size=2, transformations=change.get("transformations", "rotation"))
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    with pytest.raises(InputError, match=said):
        method.fit(x, change.get("labels", [0, 1, 0, 1]), run, encoder, classes=change.get("classes"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"distill_weight": -1.0}, "distill_weight must be at least 0"),
        ({"transformations": "mirror"}, "no transformations 'mirror'"),
        ({"flip": 1.5}, "flip must be between 0 and 1"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        SLA(**settings)
