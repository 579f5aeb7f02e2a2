from __future__ import annotations

import pytest
import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.nets.chain import ChainNet, Layer, parameters, shapes
from thrifty.nets.chain_reading import read_chain
from thrifty.nets.vision import ResNet, ResNetConfig


def test_a_chain_is_read_from_what_the_code_does():
    class LeNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.conv2 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 8, 3, stride=2, bias=False)
            self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
            self.fc1, self.fc2 = nn.Linear(72, 20), nn.Linear(20, 3)

        def forward(self, x):
            x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
            x = nn.functional.relu(self.norm(self.conv2(x)), inplace=True)
            return self.fc2(self.drop(self.fc1(torch.flatten(x, 1)).relu()))

    net, x = LeNet().train(), torch.randn(2, 1, 20, 20)
    config = read_chain(net, x)
    assert net.training
    assert config.layers == (
        Layer("conv", 5, 1, 6, 0, True), Layer("relu"), Layer("max-pool", 2, 2), Layer("conv", 3, 2, 8, 0),
        Layer("norm"), Layer("relu"), Layer("linear", channels=20, bias=True), Layer("relu"),
        Layer("linear", channels=3, bias=True),
    )  # fmt: skip
    assert shapes(config)[-3:] == [(20, 1, 1), (20, 1, 1), (3, 1, 1)]
    same_function(net, config, x)


def same_function(net, config, x):
    twin = ChainNet(config).eval()
    with torch.no_grad():
        for ours, theirs in zip(twin.parameters(), net.parameters(), strict=True):
            ours.copy_(theirs)
    torch.testing.assert_close(twin(x), net.eval()(x))


def test_residual_blocks_are_read_and_made_again():
    torch.manual_seed(0)
    net, x = ResNet(ResNetConfig(3, width=12, blocks=(2, 1), stem_stride=2)), torch.randn(2, 1, 16, 16)
    config = read_chain(net, x)
    assert [max(layer.block for layer in config.layers), config.layers[0].stride] == [3, 2]
    same_function(net, config, x)
    assert read_chain(ChainNet(config), x) == config


def test_a_hugging_face_classifier_is_read():
    from transformers import ResNetConfig as Config
    from transformers import ResNetForImageClassification

    sizes = {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    net = ResNetForImageClassification(Config(**sizes, num_labels=3)).eval()
    config = read_chain(net, torch.randn(2, 1, 32, 32))
    assert parameters(config) == sum(p.numel() for p in net.parameters())
    assert {layer.kind for layer in config.layers} == {"conv", "norm", "relu", "max-pool", "global-pool", "linear"}


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Conv2d(4, 4, 3, groups=4, padding=1), "1: convolutions with groups"),
        (nn.Conv2d(4, 4, (3, 1), padding=(1, 0)), "1: its .* must be square"),
        (nn.Sigmoid(), "1: sigmoid is none of the layers"),
    ],
)
def test_a_layer_that_is_not_known_is_named(layer, said):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), layer, nn.Flatten(), nn.Linear(144, 3))
    with pytest.raises(InputError, match=said):
        read_chain(net, torch.zeros(2, 1, 8, 8))
