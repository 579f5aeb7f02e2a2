from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from thrifty.core.errors import InputError
from thrifty.forget.representation import Representation, find_head, representations
from thrifty.nets.vision import ResNet, ResNetConfig


def small(kind: str) -> nn.Module:
    both, two = {"num_labels": 5, "num_channels": 3, "image_size": 32}, {"hidden_sizes": [8, 16], "depths": [1, 1]}
    if kind == "vit":
        vit = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        return ViTForImageClassification(ViTConfig(patch_size=16, **vit, **both))
    if kind == "convnext":
        return ConvNextForImageClassification(ConvNextConfig(num_stages=2, **two, **both))
    if kind == "swin":
        swin = {"patch_size": 4, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
        return SwinForImageClassification(SwinConfig(**swin, **both))
    if kind == "mobilenet":
        return MobileNetV2ForImageClassification(MobileNetV2Config(depth_multiplier=0.1, **both))
    resnet = transformers.ResNetConfig(embedding_size=8, layer_type="basic", **two, **both)
    return transformers.ResNetForImageClassification(resnet)


@pytest.mark.parametrize("kind", ["vit", "convnext", "swin", "mobilenet", "resnet"])
def test_the_representation_of_a_hugging_face_classifier_is_its_head_s_input(kind: str) -> None:
    torch.manual_seed(0)
    model, x = small(kind).eval(), torch.randn(3, 3, 32, 32)
    name = find_head(model, {"pixel_values": x})
    head = model.get_submodule(name)
    e = Representation(model, name)({"pixel_values": x})
    assert e.shape == (3, head.in_features)
    assert head.out_features == 5
    torch.testing.assert_close(functional.linear(e, head.weight, head.bias), model(x).logits)
    assert not head._forward_pre_hooks
    assert not head._forward_hooks


def test_the_representation_of_a_network_of_thrifty_is_its_features() -> None:
    torch.manual_seed(0)
    model, x = ResNet(ResNetConfig(4, width=8)).eval(), torch.randn(2, 1, 8, 8)
    assert find_head(model, x) == "head"
    torch.testing.assert_close(Representation(model, "head")(x), model.features(x))


def test_a_head_that_is_not_found_is_said_and_can_be_named() -> None:
    torch.manual_seed(0)
    config = DeiTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=5
    )
    twofold, x = DeiTForImageClassificationWithTeacher(config).eval(), torch.randn(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"no linear layer of this DeiT.* its 5 logits.*cls_classifier \(16 to 5\)"):
        find_head(twofold, x)
    assert Representation(twofold, "cls_classifier")(x).shape == (2, 16)
    with pytest.raises(InputError, match="has no layer 'clasifier'"):
        Representation(twofold, "clasifier")
    convolutional = nn.Sequential(nn.Conv2d(3, 5, 32), nn.Flatten())
    with pytest.raises(InputError, match="linear layers: none"):
        find_head(convolutional, x)
    assert Representation(convolutional, "1")(x).shape == (2, 5)
    shared = nn.Linear(4, 4)
    twice = Representation(nn.Sequential(shared, shared), "0")
    with pytest.raises(InputError, match="is given 2 tensors"):
        twice(torch.randn(2, 4))


def test_all_representations_are_those_of_the_batches_with_gradients_left_out() -> None:
    torch.manual_seed(0)
    model, x = ResNet(ResNetConfig(4, width=8)).eval(), torch.randn(7, 1, 8, 8)
    e = representations(Representation(model, "head"), (x, torch.arange(7) % 4), batch_size=3)
    torch.testing.assert_close(e, model.features(x))
    assert not e.requires_grad
    x[4] = torch.inf
    with pytest.raises(InputError, match="example 4 holds NaN or infinity"):
        representations(Representation(model, "head"), x, batch_size=3)
