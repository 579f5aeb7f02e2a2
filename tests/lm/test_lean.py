"""Layers run by hand: the model's own logits, gradients and samples, and a step aside where something is hooked on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.lm.conftest import VOCABULARY, _sizes, make_model

from thrifty.lm import lean
from thrifty.lm.attention import Packed
from thrifty.lm.backbone import Backbone, backbone
from thrifty.lm.lean import LeanBody, lean_body
from thrifty.lm.logps import token_logps
from thrifty.lm.memory import activation_tokens
from thrifty.lm.sequences import Sequences


def _qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(**_sizes(head_dim=8, attention_bias=True))).eval()


def _biased() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**_sizes(attention_bias=True, mlp_bias=True)))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model.eval()


def model_of(name: str) -> Any:
    return {"qwen3": _qwen3, "biased": _biased}.get(name, lambda: make_model(name))()


def sequences() -> Sequences:
    ids = torch.randint(3, VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(11) < torch.tensor([[11], [7], [4]])
    spoken = mask & (torch.arange(11) >= 2)
    return Sequences(ids, mask, spoken)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "biased"])
@pytest.mark.parametrize("block", [32, 2**18])
def test_gradients_are_the_model_s_own(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean, "_BLOCK_ELEMENTS", block)
    model, batch = model_of(name).double(), sequences()
    parts = backbone(model)
    assert parts is not None
    assert parts.lean is not None
    token_logps(model, batch, activation_bytes=1).square().sum().backward()
    ours = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()

    logits = model(batch.input_ids, attention_mask=batch.attention_mask.long()).logits[:, :-1].log_softmax(-1)
    logps = logits.gather(-1, batch.input_ids[:, 1:, None]).squeeze(-1)
    (logps * batch.response_mask[:, 1:]).square().sum().backward()
    for key, parameter in model.named_parameters():
        apart = (ours[key] - parameter.grad).abs().max() / parameter.grad.abs().max()
        assert apart < 1e-5, f"{key}: {apart}"  # transformers normalises in float32


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "biased"])
def test_joined_products_are_the_single_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = backbone(model_of(name).double())
    assert parts is not None
    assert parts.lean is not None
    apart = _states(parts)
    with parts.lean.joined(steps=100):
        assert parts.lean._joined is not None
        torch.testing.assert_close(_states(parts), apart, rtol=0, atol=1e-6)  # transformers normalises in float32
    assert parts.lean._joined is None
    with parts.lean.joined(steps=3):  # the copy would not be paid for
        assert parts.lean._joined is None
    monkeypatch.setattr(lean, "_MOST_JOINED", 10)
    with parts.lean.joined(steps=100):
        assert parts.lean._joined is None


def test_adapters_are_not_joined_away(llama: Any) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(llama, peft.LoraConfig(target_modules=["v_proj"], init_lora_weights=False))
    parts = backbone(wrapped)
    assert parts is not None
    assert parts.lean is not None
    with torch.no_grad(), parts.lean.joined(steps=100):
        assert parts.lean._joined is None


def test_other_families_and_changed_layers_are_left_alone() -> None:
    assert {name: backbone(make_model(name)).lean for name in ("gemma2", "cohere", "granite", "gpt2")} == dict.fromkeys(
        ("gemma2", "cohere", "granite", "gpt2")
    )
    model = make_model("llama")
    model.model.layers[1].mlp = torch.nn.Identity()
    assert lean_body(model.model) is None


def test_hooks_and_patched_forwards_are_obeyed(llama: Any) -> None:
    parts = backbone(llama)
    assert parts is not None
    assert isinstance(parts.lean, LeanBody)
    assert parts.lean.usable()
    mlp = llama.model.layers[0].mlp
    before = _states(parts)
    handle = mlp.register_forward_hook(lambda module, given, out: out * 0)
    assert not parts.lean.usable()
    assert (_states(parts) - before).abs().max() > 1e-3
    handle.remove()
    assert parts.lean.usable()
    mlp.forward = lambda x: x * 0
    assert not parts.lean.usable()
    del mlp.forward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not parts.lean.usable()
    torch.testing.assert_close(_states(parts), before)


def test_adapters_are_run(llama: Any) -> None:
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(llama, peft.LoraConfig(target_modules="all-linear", init_lora_weights=False))
    parts = backbone(wrapped)
    assert parts is not None
    assert parts.lean is not None
    batch = sequences()
    token_logps(wrapped, batch).sum().backward()
    learnt = [parameter.grad for parameter in wrapped.parameters() if parameter.requires_grad]
    assert learnt
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in learnt)
    own = wrapped(batch.input_ids[:1]).logits[0, :-1].log_softmax(-1)
    expected = own.gather(1, batch.input_ids[0, 1:, None]).squeeze(1)[1:]
    torch.testing.assert_close(token_logps(wrapped, batch)[0, 2:], expected, rtol=0, atol=1e-4)


@torch.no_grad()
def _states(parts: Backbone) -> torch.Tensor:
    plan = Packed([4, 3], torch.device("cpu"))
    return parts.states_packed(torch.tensor([4, 9, 30, 5, 8, 8, 20]), plan)


def test_more_tokens_fit_into_the_same_memory(llama: Any) -> None:
    cpu = torch.device("cpu")
    assert activation_tokens(llama, 2**24, cpu, lean=True) > 1.5 * activation_tokens(llama, 2**24, cpu)
