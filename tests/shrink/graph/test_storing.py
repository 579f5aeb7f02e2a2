"""Shrunk models load again: in plain transformers where the config can say their shape, else by load_shrunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from shrink_zoo import ZOO, ResNet18, randomised

from thrifty.core.errors import InputError, NotFoundError
from thrifty.shrink.graph import dependency_graph
from thrifty.shrink.storing import load_shrunk, save_shrunk
from thrifty.shrink.surgery import arguments, cut, largest_difference


def cut_by(name: str, heads: int, width: int, spread: int = 0) -> tuple[Any, Any]:
    """The model of that name with so many units less in all groups, in each layer ``spread`` more of the width."""
    model, inputs = ZOO[name]()
    args, kwargs = arguments(inputs)
    graph = dependency_graph(model, *args, **kwargs)
    keep, layer = {}, 0
    for group in graph.prunable:
        if group.name.endswith(":0"):
            keep[group.name] = range(group.units - heads)
        elif "pooler" not in group.name:
            keep[group.name] = range(group.units - width - layer * spread)
            layer += 1
    return cut(model, keep, graph), inputs


@torch.no_grad()
def outputs_differ(one: Any, other: Any, inputs: Any) -> float:
    args, kwargs = arguments(inputs)
    return largest_difference(one(*args, **kwargs), other(*args, **kwargs))


@pytest.mark.parametrize(
    ("name", "heads", "config"),
    [
        ("llama", 1, {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56}),
        ("qwen2", 1, {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 56}),
        ("gpt2", 0, {"n_inner": 184}),
        ("vit", 0, {"intermediate_size": 88}),
        ("deit", 0, {"intermediate_size": 88}),
        ("bert", 0, {"intermediate_size": 88}),
    ],
)
def test_a_cut_that_is_the_same_in_all_layers_loads_in_plain_transformers(
    name: str, heads: int, config: dict[str, int], tmp_path: Path
) -> None:
    model, inputs = cut_by(name, heads, 8)
    assert {key: getattr(model.config, key) for key in config} == config
    assert save_shrunk(model, tmp_path)
    assert not (tmp_path / "shrunk.json").exists()
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert outputs_differ(loaded, model, inputs) < 1e-6
    assert outputs_differ(load_shrunk(tmp_path), model, inputs) < 1e-6
    if name in ("llama", "qwen2", "gpt2"):
        _generates_with_its_cache(loaded, inputs)


@pytest.mark.parametrize(("name", "heads"), [("llama", 1), ("gpt2", 1), ("qwen2", 0), ("vit", 1), ("bert", 2)])
def test_layers_that_differ_load_through_our_loader(name: str, heads: int, tmp_path: Path) -> None:
    model, inputs = cut_by(name, heads, 8, spread=4)
    assert not save_shrunk(model, tmp_path)
    loaded = load_shrunk(tmp_path)
    assert type(loaded) is type(model)
    assert outputs_differ(loaded, model, inputs) == 0
    with pytest.raises(OSError, match=r"model\.safetensors"):
        type(model).from_pretrained(tmp_path)
    if name in ("llama", "qwen2", "gpt2"):
        _generates_with_its_cache(loaded, inputs)


def _generates_with_its_cache(model: Any, inputs: Any) -> None:
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache = model.generate(**inputs, **settings, use_cache=True)
    assert torch.equal(with_cache, model.generate(**inputs, **settings, use_cache=False))


def test_a_cut_of_a_cut_is_stored_too(tmp_path: Path) -> None:
    model, inputs = cut_by("llama", 1, 8, spread=4)
    graph = dependency_graph(model, **inputs)
    again = cut(model, {graph.prunable[1].name: range(20)}, graph)
    assert not save_shrunk(again, tmp_path)
    assert outputs_differ(load_shrunk(tmp_path), again, inputs) == 0


def test_a_plain_module_loads_into_one_of_its_first_shape(tmp_path: Path) -> None:
    model, inputs = cut_by("resnet-18", 0, 3)
    assert not save_shrunk(model, tmp_path)
    assert outputs_differ(load_shrunk(tmp_path, ResNet18()), model, inputs) == 0
    with pytest.raises(InputError, match="give a ResNet18 of its first shape"):
        load_shrunk(tmp_path)
    with pytest.raises(InputError, match="not a Linear"):
        load_shrunk(tmp_path, torch.nn.Linear(2, 2))


def test_what_cannot_be_stored_or_loaded_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="was not cut by thrifty"):
        save_shrunk(randomised(ResNet18()), tmp_path)
    with pytest.raises(NotFoundError, match="holds no shrunk model"):
        load_shrunk(tmp_path)
    (tmp_path / "shrunk.json").write_text('{"class": "Thing"')
    with pytest.raises(InputError, match="is damaged"):
        load_shrunk(tmp_path)
    (tmp_path / "shrunk.json").write_text(
        '{"class": "AutoTokenizer", "shapes": {}, "attributes": {}, "dtype": "float32", "config": {}}'
    )
    with pytest.raises(InputError, match="transformers has no model 'AutoTokenizer'"):
        load_shrunk(tmp_path)
