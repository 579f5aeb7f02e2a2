from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.augmentations import Augmentation, Views, crop_and_flip
from thrifty.nets.picture_encoders import (
    ResNetEncoder,
    ResNetEncoderConfig,
    ViTEncoder,
    ViTEncoderConfig,
    picture_encoder,
    save_encoder,
)
from thrifty.nets.representations import effective_rank, encoded, feature_size, spread
from thrifty.nets.self_supervised import (
    Teacher,
    ViewTraining,
    byol_loss,
    cosine_momentum,
    mlp_head,
    negative_cosine,
    train_views,
)
from thrifty.nets.two_views import TwoViews


def test_the_loss_is_the_squared_distance_of_unit_vectors_less_four() -> None:
    torch.manual_seed(0)
    p1, p2, t1, t2 = torch.randn(4, 6, 5)
    unit = nn.functional.normalize
    distance = (unit(p1) - unit(t2)).square().sum(1) + (unit(p2) - unit(t1)).square().sum(1)
    torch.testing.assert_close(byol_loss(p1, p2, t1, t2), (distance - 4).mean())
    assert float(byol_loss(p1, p2, p2, p1)) == pytest.approx(-4)


def test_no_gradient_reaches_the_targets() -> None:
    p, z = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    negative_cosine(p, z).sum().backward()
    assert p.grad is not None
    assert z.grad is None


def test_a_teacher_follows_parameters_and_keeps_its_own_statistics() -> None:
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = Teacher(student)
    before = copy.deepcopy(student.state_dict())
    with torch.no_grad():
        student[0].weight.add_(1.0)
        student[1].running_mean.add_(5.0)
    teacher.follow(student, 0.75)
    torch.testing.assert_close(teacher.net[0].weight, before["0.weight"] + 0.25)
    torch.testing.assert_close(teacher.net[1].running_mean, before["1.running_mean"])
    assert not teacher(torch.randn(4, 2)).requires_grad


def test_the_momentum_rises_along_half_a_cosine() -> None:
    momentum = cosine_momentum(0.9, 1.0, 100)
    assert [momentum(step) for step in (0, 50, 100, 200)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    assert momentum(25) == pytest.approx(1 - 0.1 * (1 + math.cos(math.pi / 4)) / 2)


def test_heads_have_norms_between_and_behind_where_asked() -> None:
    kinds = [type(layer).__name__ for layer in mlp_head((4, 8, 2), last_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert mlp_head((4, 2), last_bias=False)[0].bias is None


def test_collapse_is_seen_in_spread_and_rank() -> None:
    torch.manual_seed(0)
    even = torch.randn(4000, 8)
    assert float(spread(even)) == pytest.approx(1, abs=0.05)
    assert float(effective_rank(even)) == pytest.approx(8, abs=0.1)
    same = torch.ones(10, 8)
    assert float(spread(same)) == pytest.approx(0, abs=1e-6)
    line = torch.arange(10.0)[:, None] * torch.ones(8)
    assert float(effective_rank(line)) == pytest.approx(1, abs=1e-4)
    assert float(effective_rank(torch.eye(3)[[0, 0, 1, 1]])) == pytest.approx(1, abs=1e-4), "two points span a line"


def small_learner() -> TwoViews:
    torch.manual_seed(1)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6))
    return TwoViews(encoder, mlp_head((6, 8, 4)), nn.Linear(4, 4), cosine_momentum(0.5, 1.0, 8), predictor_rate=2.0)


PICTURES = torch.arange(32 * 16).remainder(251).view(32, 1, 4, 4).to(torch.uint8)


def noisy(x: torch.Tensor) -> torch.Tensor:
    return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    training = ViewTraining(epochs=2, batch_size=8, learning_rate=0.1)
    with Run(tmp_path / "whole", device="cpu") as run:
        whole = train_views(small_learner(), PICTURES, noisy, run, training, save_every=2)
    left = [5]

    def failing(x: torch.Tensor) -> torch.Tensor:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return noisy(x)

    with pytest.raises(KeyboardInterrupt), Run(tmp_path / "cut", device="cpu") as run:
        train_views(small_learner(), PICTURES, failing, run, training, save_every=2)
    with Run(tmp_path / "cut", device="cpu") as run:
        resumed = train_views(small_learner(), PICTURES, noisy, run, training, save_every=2)
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_views_of_one_pass_and_of_two_differ_only_by_normalisation() -> None:
    each, joint = small_learner(), small_learner()
    joint.passes = 1
    views = torch.rand(8, 1, 4, 4)
    assert not torch.allclose(each.loss(views).value, joint.loss(views).value)
    same = views[:4].repeat(2, 1, 1, 1)
    torch.testing.assert_close(each.loss(same).value, joint.loss(same).value)


def test_low_precision_changes_little_and_leaves_weights_and_predictions_in_float32() -> None:
    full, low = small_learner(), small_learner()
    low.precision = torch.bfloat16
    views = torch.rand(8, 1, 4, 4)
    a, b = full.loss(views), low.loss(views)
    assert float(a.value.detach()) != float(b.value.detach())
    assert float(a.value.detach()) == pytest.approx(float(b.value.detach()), abs=0.05)
    assert {part.dtype for part in low._seen} == {torch.float32}
    b.value.backward()
    assert {weight.grad.dtype for weight in low.online.parameters()} == {torch.float32}


def test_the_predictor_has_a_rate_of_its_own() -> None:
    assert [group["lr"] for group in small_learner().groups(0.1)] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 14)])
@pytest.mark.parametrize("views", ["natural", "drawing", "none", Views(blur=0.5, rotation=5.0)])
def test_views_keep_shape_and_range_and_differ(channels, side, views) -> None:
    torch.manual_seed(0)
    x = torch.rand(6, channels, side, side)
    out = Augmentation(views, (side, side), channels)(x)
    assert out.shape == x.shape
    assert out.min() >= 0
    assert out.max() <= 1
    if views == "none":
        torch.testing.assert_close(out, x)
    else:
        assert not torch.allclose(out, x)


@given(st.integers(0, 3), st.integers(0, 99))
def test_shifted_pictures_are_windows_of_the_padded_ones(padding, seed) -> None:
    torch.manual_seed(seed)
    x = torch.rand(3, 2, 5, 4)
    out = crop_and_flip(x, padding, flip=0.0)
    padded = nn.functional.pad(x, (padding,) * 4, value=float(x.min()))
    for before, after in zip(padded, out, strict=True):
        windows = before.unfold(1, 5, 1).unfold(2, 4, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        assert (windows == after).flatten(1).all(1).any()
    torch.testing.assert_close(crop_and_flip(x, 0, flip=1.0), x.flip(3))


@pytest.mark.parametrize(
    ("settings", "said"), [({"crop": 0.0}, "crop must be above 0"), ({"flip": 2.0}, "flip must be between 0 and 1")]
)
def test_views_out_of_range_are_refused(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        Views(**settings)
    with pytest.raises(InputError, match="1 or 3 channels, not 4"):
        Augmentation("none", (8, 8), 4)


@pytest.mark.parametrize(
    "encoder",
    [
        ResNetEncoder(ResNetEncoderConfig(channels=1, width=4, blocks=(1,))),
        ViTEncoder(ViTEncoderConfig(channels=1, size=8, patch=2, width=16, depth=1, heads=2)),
    ],
)
def test_encoders_are_kept_on_disk(encoder, tmp_path: Path) -> None:
    save_encoder(encoder.eval(), tmp_path / "encoder")
    again = picture_encoder(str(tmp_path / "encoder"), 1, 8)
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(again(x), encoder(x))


@pytest.mark.parametrize(("name", "size"), [("resnet", 8), ("resnet", 14), ("vit", 28), ("vit", 14), ("vit", 7)])
def test_new_encoders_fit_any_side(name, size) -> None:
    assert feature_size(picture_encoder(name, 3, size, 4), torch.zeros(2, 3, size, size)) == 16


def test_features_do_not_change_with_the_batch_or_the_mode() -> None:
    encoder = picture_encoder("resnet", 1, 8, 4).train()
    pictures = torch.randint(256, (7, 1, 8, 8), dtype=torch.uint8)
    torch.testing.assert_close(encoded(encoder, pictures, 3), encoded(encoder, pictures))
    assert encoder.training


def test_what_is_no_encoder_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no encoder of pictures"):
        picture_encoder(str(tmp_path), 1, 8)
    with pytest.raises(InputError, match="finite features"):
        feature_size(nn.Flatten(0), torch.zeros(2, 1, 4, 4))
    with pytest.raises(InputError, match="patches of 3 pixels"):
        ViTEncoderConfig(size=8, patch=3)


def test_a_hub_model_is_trained_and_stays_one(tmp_path: Path) -> None:
    from transformers import AutoModel, ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(tmp_path / "hub")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "hub")
    encoder = picture_encoder(str(tmp_path / "hub"), 1, 14)
    assert encoder(torch.zeros(2, 1, 14, 14)).shape == (2, 8)
    save_encoder(encoder, tmp_path / "saved")
    assert AutoModel.from_pretrained(tmp_path / "saved").config.hidden_size == 8
