"""Sharded parameters: states become whole and are dealt out again. By two processes: test_several_processes.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import LlamaConfig, LlamaForCausalLM

from thrifty.core import sharding
from thrifty.core.errors import InputError
from thrifty.core.loop import fit
from thrifty.core.precision import MasterWeights
from thrifty.core.run import Run
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import from_rows


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process: its shards are whole, and of the kind that shards have."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return nn.Sequential(nn.Embedding(4, 3), nn.ModuleList([nn.Linear(3, 3)]), nn.Linear(3, 4)).to(dtype)


def tiny() -> LlamaForCausalLM:
    sizes = {"vocab_size": 7, "hidden_size": 4, "intermediate_size": 4, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, tie_word_embeddings=True))


def test_a_tree_is_made_whole_and_dealt_out_again(group: None) -> None:
    mesh = init_device_mesh("cpu", (1,))
    full = torch.arange(6.0).view(3, 2)
    part = distribute_tensor(full, mesh)
    tree = {"a": [part, (part, 1, None)], "b": {"c": torch.ones(2), "d": "x"}}
    whole = sharding.whole(tree)
    assert torch.equal(whole["a"][0], full)
    assert type(whole["a"][0]) is torch.Tensor
    assert whole["a"][1][0] is whole["a"][0]  # tied: gathered and kept once
    assert whole["a"][1][1:] == (1, None)
    assert whole["b"] == tree["b"]
    again = sharding.share_of(full, part)
    assert isinstance(again, DTensor)
    assert again.placements == part.placements
    assert torch.equal(again.full_tensor(), full)
    assert sharding.share_of(full, full) is full
    step = torch.tensor(3.0)
    assert sharding.share_of(step, part) is step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_optimizer_s_state_survives_the_way_through_whole_tensors(group: None, dtype: torch.dtype) -> None:
    def trained(steps: int, taken_up: object = None) -> tuple[object, dict[str, torch.Tensor]]:
        torch.manual_seed(0)
        model = net(dtype)
        root = sharding.shard(model, nn.Sequential)
        optimizer = MasterWeights(root.parameters(), lambda p: torch.optim.AdamW(p, lr=0.1))
        state, weights = sharding.Whole(optimizer), sharding.Whole(root)
        if taken_up is not None:
            state.load_state_dict(taken_up[0])  # type: ignore[index]
            weights.load_state_dict(taken_up[1])  # type: ignore[index]
        for _ in range(steps):
            for parameter in root.parameters():
                parameter.grad = parameter.detach().clone()
            optimizer.step()
        assert all(isinstance(parameter, DTensor) for parameter in root.parameters())
        return (state.state_dict(), weights.state_dict()), weights.state_dict()

    half, _ = trained(2)
    _, resumed = trained(2, half)
    _, straight = trained(4)
    assert all(type(tensor) is torch.Tensor for tensor in straight.values())
    assert all(torch.equal(resumed[name], tensor) for name, tensor in straight.items())


def test_the_model_has_its_parameters_when_they_are_gathered_and_at_the_end(group: None) -> None:
    model = tiny()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters, kind = list(model.parameters()), type(model)
    root = sharding.shard(model, nn.Sequential)
    assert not any(parameter.numel() for parameter in parameters)
    with sharding.gathered(model), sharding.gathered(model):
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        model.generate(torch.tensor([[1, 2]]), max_new_tokens=2, pad_token_id=0)
    with sharding.gathered(model.model.norm) as norm:  # a part of it, alone
        assert [parameter.numel() > 0 for parameter in parameters].count(True) == 1
        assert torch.equal(norm.weight, before["model.norm.weight"])
    assert not any(parameter.numel() for parameter in parameters)
    with torch.no_grad():
        for part in root.parameters():
            part.mul_(2)
    sharding.gather(model)
    assert all(torch.equal(tensor, 2 * before[name]) for name, tensor in model.state_dict().items())
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert type(model) is kind
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("activation_bytes", [None, 4000])
def test_gradients_are_those_of_the_whole_model(group: None, activation_bytes: int | None) -> None:
    """Also where layers run again in the backward pass, and of a head whose weight is read directly, and tied."""

    class Loss(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> torch.Tensor:
            rows = [([1, 2, 3, 4, 5], [False, True, True, True, True]), ([6, 5, 1], [False, False, True])] * 3
            return -token_logps(self.model, from_rows(rows, pad_id=0), activation_bytes=activation_bytes).sum()

    model = tiny()
    Loss(model)().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    root = sharding.shard(model, Loss)
    for _ in range(2):  # a second time on top of the first
        root().backward()
    for part, gradient in zip(root.parameters(), gradients, strict=True):
        assert gradient is not None
        assert isinstance(part.grad, DTensor)
        torch.testing.assert_close(part.grad.full_tensor(), 2 * gradient, atol=1e-5, rtol=1e-5)


def test_nothing_happens_where_nothing_is_sharded() -> None:
    model = net()
    with sharding.gathered(model) as whole:
        assert whole is model
        assert all(parameter.numel() for parameter in whole.parameters())
    sharding.gather(model)
    assert sharding.most(model, 3) == 3


def test_decoder_layers_are_the_blocks_and_else_the_longest_list() -> None:
    model = tiny()
    assert sharding.blocks(model) == list(model.model.layers)
    lists = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(1, 1)]), "b": nn.ModuleList([nn.ReLU(), nn.Linear(1, 1)])})
    assert sharding.blocks(lists) == list(lists["b"])
    assert sharding.blocks(nn.Linear(1, 1)) == []


def test_what_asks_for_sharding(asked: pytest.MonkeyPatch) -> None:
    assert sharding.on()
    asked.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="give --fsdp_version 2"):
        sharding.on()
    asked.setenv("WORLD_SIZE", "1")
    assert not sharding.on()


def test_offloading_is_refused(asked: pytest.MonkeyPatch) -> None:
    asked.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(InputError, match="give --fsdp_offload_params false"):
        sharding.on()


def test_adafactor_is_refused(group: None) -> None:
    root = sharding.shard(net(), nn.Sequential)
    with pytest.raises(InputError, match="give --optimizer adamw"):
        MasterWeights(root.parameters(), torch.optim.Adafactor)


def test_a_finished_optimizer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "on", lambda: True)
    model = nn.Linear(2, 1)
    with Run(tmp_path / "run", device="cpu") as run, pytest.raises(InputError, match="give a function that builds it"):
        fit(lambda net, x: net(x).sum(), model, [torch.ones(1, 2)], torch.optim.SGD(model.parameters()), run, 1)
