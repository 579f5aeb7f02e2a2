from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.nets.chain import ChainConfig, ChainNet, Layer, parameters, vgg
from thrifty.nets.chain_reading import read_chain
from thrifty.nets.vision import ResNet, ResNetConfig
from thrifty.shrink.children import (
    Limits,
    layer_features,
    narrower,
    removable,
    removal_child,
    scaled,
    shrinkable,
    shrinkage_child,
)

CHAIN = vgg(3, size=(8, 8), widths=(16, 24), depth=2)


RESIDUAL = read_chain(ResNet(ResNetConfig(3, width=12, blocks=(1, 1))), torch.zeros(2, 1, 8, 8))


ANY = Limits(10**9)


def test_layers_as_numbers():
    found = layer_features(CHAIN.layers)
    assert found[:4].tolist() == [[1, 3, 1, 16, 1], [4, 0, 0, 0, 0], [3, 0, 0, 0, 0], [1, 3, 1, 16, 1]]
    assert found[-1].tolist() == [5, 0, 0, 3, 0]
    with_skips = layer_features(RESIDUAL.layers, skips=True)
    # conv norm relu, then a block of five: so many layers lie before it in the block, so many behind it.
    assert with_skips[2:9, 5:].tolist() == [[0, 0], [0, 4], [1, 3], [2, 2], [3, 1], [4, 0], [0, 0]]


def test_what_must_stay():
    free = removable(CHAIN.layers)
    assert [layer.kind for layer, goes in zip(CHAIN.layers, free, strict=True) if not goes] == [
        "conv", "global-pool", "linear",
    ]  # fmt: skip
    strided = [at for at, layer in enumerate(RESIDUAL.layers) if layer.stride == 2]
    assert strided
    assert not removable(RESIDUAL.layers)[strided].any()


def test_attributes_that_may_shrink():
    free = shrinkable(CHAIN.layers)
    assert free[0].tolist() == [False, True, True, True, True]
    assert not free[1:3].any()
    assert not free[-2:].any()
    inside = torch.tensor([layer.block > 0 for layer in RESIDUAL.layers])
    assert not shrinkable(RESIDUAL.layers)[inside][:, [0, 1, 2, 4]].any()
    strided = (Layer("conv", 3, 2, 16, 1), Layer("conv", 3, 1, 16, 1), Layer("linear", channels=3, bias=True))
    assert not shrinkable(strided)[0].any()


def test_multipliers_round_down_and_have_a_floor():
    factors = torch.full((len(CHAIN.layers), 5), 0.5)
    child = scaled(CHAIN, torch.where(shrinkable(CHAIN.layers), factors, 1.0))
    assert child.layers[0] == Layer("conv", 1, 1, 10, 0)  # 3 to 1, 1 to at least 1, 16 to at least 10, 1 to 0
    assert child.layers[10].channels == 12
    assert scaled(CHAIN, factors, fewest_channels=4).layers[0].channels == 8
    narrow = dataclasses.replace(CHAIN, layers=(Layer("conv", 3, 1, 6, 1), *CHAIN.layers[1:]))
    assert scaled(narrow, factors).layers[0].channels == 6  # never wider than before
    ninety = dataclasses.replace(CHAIN, layers=(Layer("conv", 3, 1, 90, 1), *CHAIN.layers[1:]))
    assert narrower(ninety, 0.7).layers[0].channels == 63  # 90 * 0.7 is a little less in floating point


def test_a_block_without_a_convolution_in_its_shortcut_keeps_its_width():
    factors = torch.ones(len(RESIDUAL.layers), 5)
    blocks = [at for at, layer in enumerate(RESIDUAL.layers) if layer.block == 1 and layer.kind == "conv"]
    factors[blocks] = 0.9
    child = shrinkage_child(RESIDUAL, factors, Limits(10**9, fewest_channels=2))
    assert [child.layers[at].channels for at in blocks] == [10, 12]
    second = [at for at, layer in enumerate(RESIDUAL.layers) if layer.block == 2 and layer.kind == "conv"]
    factors[second] = 0.5
    child = shrinkage_child(RESIDUAL, factors, Limits(10**9, fewest_channels=2))
    assert [child.layers[at].channels for at in second] == [12, 12]  # 24 to 12 each: the shortcut follows
    assert ChainNet(child)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@given(st.sampled_from([CHAIN, RESIDUAL]), st.integers(0, 2**31), st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_child_runs_and_is_as_large_as_said(config, seed, shrink):
    draw, whole = torch.Generator().manual_seed(seed), parameters(config)
    if shrink:
        factors = torch.randint(1, 11, (len(config.layers), 5), generator=draw) / 10
        child = shrinkage_child(config, factors, Limits(whole, fewest_channels=3))
    else:
        child = removal_child(config, torch.rand(len(config.layers), generator=draw) < 0.5, Limits(whole))
    if child is None:
        return
    net = ChainNet(child).eval()
    assert net(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert sum(p.numel() for p in net.parameters()) == parameters(child) < whole
    kinds = [layer.kind for layer in child.layers]
    assert kinds[0] == "conv"
    assert kinds[-2:] == ["global-pool", "linear"]
    if not shrink:
        assert [layer for layer in child.layers if layer.stride == 2 and layer.kind == "conv"] == [
            layer for layer in config.layers if layer.stride == 2 and layer.kind == "conv"
        ]


def test_what_can_not_exist_is_no_child():
    keep = torch.ones(len(CHAIN.layers), dtype=torch.bool)
    assert removal_child(CHAIN, keep, Limits(parameters(CHAIN))) is None  # not smaller than its parent
    assert removal_child(CHAIN, keep, ANY) == CHAIN
    large = ChainConfig(
        (Layer("conv", 5, 1, 12, 0), Layer("conv", 5, 1, 12, 2), Layer("linear", channels=3)), 1, (6, 6)
    )
    unpadded = torch.ones(3, 5)
    unpadded[:, 4] = 0.1
    assert shrinkage_child(large, unpadded, ANY) is None  # a kernel of 5 on 2x2 pixels
    assert shrinkage_child(large, torch.ones(3, 5), ANY) == large
    assert removal_child(large, torch.ones(3, dtype=torch.bool), Limits(10**9, linear_inputs=(10, 47))) is None
