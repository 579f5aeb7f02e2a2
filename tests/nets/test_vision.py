from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from thrifty.core.errors import InputError, NotFoundError
from thrifty.nets.vision import ResNet, ResNetConfig, is_net, load_net, pixels, save_net


@pytest.mark.parametrize(("channels", "side", "stride"), [(1, 8, 1), (1, 28, 2), (3, 28, 2), (3, 8, 1)])
def test_any_small_picture_gives_one_row_of_logits(channels, side, stride):
    net = ResNet(ResNetConfig(7, channels=channels, width=4, stem_stride=stride)).eval()
    assert net(torch.zeros(3, channels, side, side)).shape == (3, 7)
    assert net.features(torch.zeros(3, channels, side, side)).shape == (3, 16)


def test_each_stage_doubles_channels_and_halves_resolution():
    net = ResNet(ResNetConfig(5, width=4, blocks=(2, 1)))
    assert [block.conv2.out_channels for block in net.blocks] == [4, 4, 8]
    assert net.blocks(torch.zeros(1, 4, 8, 8)).shape == (1, 8, 4, 4)


def test_it_learns_to_tell_two_textures_apart():
    torch.manual_seed(0)
    x = torch.randn(64, 1, 8, 8) * 0.3
    y = torch.arange(64) % 2
    x[y == 1, :, ::2] += 1.0
    net = ResNet(ResNetConfig(2, width=4, blocks=(1,)))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    assert (net.eval()(x).argmax(1) == y).float().mean() > 0.95


def test_saved_and_loaded_it_says_the_same(tmp_path):
    net = ResNet(ResNetConfig(4, channels=3, width=4, blocks=(1, 2)))
    net(torch.randn(8, 3, 8, 8))  # moves the statistics of batch normalisation
    save_net(net, tmp_path / "net")
    loaded = load_net(tmp_path / "net")
    x = torch.randn(5, 3, 8, 8)
    assert torch.equal(net.eval()(x), loaded(x))
    assert not loaded.training
    assert loaded.config == net.config
    assert {file.name for file in (tmp_path / "net").iterdir()} == {"config.json", "model.safetensors"}
    assert is_net(tmp_path / "net")
    assert not is_net(tmp_path)


def test_pixels_go_from_minus_one_to_one_with_channels_first():
    grey = pixels(np.array([[[0, 255], [51, 204]]], dtype=np.uint8))
    torch.testing.assert_close(grey, torch.tensor([[[[-1.0, 1.0], [-0.6, 0.6]]]]))
    colour = np.zeros((2, 4, 5, 3), dtype=np.uint8)
    colour[..., 2] = 255
    assert pixels(colour).shape == (2, 3, 4, 5)
    assert (pixels(colour)[:, 2] == 1).all()


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8)), np.zeros((2, 8), dtype=np.uint8)])
def test_pixels_of_another_kind_are_refused(images):
    with pytest.raises(InputError, match="uint8"):
        pixels(images)


@pytest.mark.parametrize("wrong", [{"classes": 1}, {"classes": 3, "width": 0}, {"classes": 3, "blocks": ()}])
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(InputError):
        ResNetConfig(**wrong)


def test_only_storable_networks_are_saved(tmp_path):
    with pytest.raises(InputError, match="Linear"):
        save_net(nn.Linear(2, 2), tmp_path)


def test_what_is_no_network_is_not_loaded(tmp_path):
    with pytest.raises(NotFoundError, match="no saved network"):
        load_net(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"net": "ResNot", "classes": 3}))
    with pytest.raises(InputError, match="did you mean 'ResNet'"):
        load_net(tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path):
    save_net(ResNet(ResNetConfig(4, width=4)), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"classes": 5}))
    with pytest.raises(InputError, match="no whole ResNet"):
        load_net(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"depth": 5}))
    with pytest.raises(InputError, match="no whole ResNet"):
        load_net(tmp_path)
