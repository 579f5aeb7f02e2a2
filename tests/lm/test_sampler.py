"""Both samplers keep one contract; vLLM's is tested against an engine that answers as vLLM does."""

from __future__ import annotations

import builtins
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.lm.conftest import make_model, make_tokenizer

from thrifty.core.errors import InputError
from thrifty.lm.draw import Draw
from thrifty.lm.sample import sample
from thrifty.lm.sampler import ModelSampler, Request, Sampler, VLLMSampler


class FakeEngine:
    """Answers each prompt with its first token repeated, as often as the number of the sample."""

    def __init__(self, spare: int = 0) -> None:
        self.params: Any = None
        self.spare = spare

    def generate(self, prompts: list[dict[str, list[int]]], params: Any, use_tqdm: bool) -> list[Any]:
        self.params = params
        return [
            SimpleNamespace(outputs=[self._answer(p["prompt_token_ids"][0], i) for i in range(params.n - self.spare)])
            for p in prompts
        ]

    def _answer(self, token: int, number: int) -> Any:
        tokens = [token] * (number + 1)
        logprobs = [{token: SimpleNamespace(logprob=-0.5 - place)} for place in range(len(tokens))]
        return SimpleNamespace(
            token_ids=tuple(tokens), logprobs=logprobs, finish_reason="stop" if number == 0 else "length"
        )


def test_vllm_answers_become_sequences() -> None:
    engine = FakeEngine()
    sampler: Sampler = VLLMSampler(engine, make_tokenizer(), stop_ids=[4])
    drawn = sampler.sample([[20, 21], [30]], Request(2, max_new_tokens=5, draw=Draw(0.7, top_k=9, top_p=0.8), seed=3))
    assert drawn.input_ids.tolist() == [[20, 21, 20, 0], [20, 21, 20, 20], [30, 30, 0, 0], [30, 30, 30, 0]]
    assert drawn.response_mask.sum(1).tolist() == [1, 2, 1, 2]
    assert drawn["behaviour_logps"].tolist() == [
        [0, 0, -0.5, 0],
        [0, 0, -0.5, -1.5],
        [0, -0.5, 0, 0],
        [0, -0.5, -1.5, 0],
    ]
    assert drawn["group"].tolist() == [0, 0, 1, 1]
    assert drawn["finished"].tolist() == [True, False, True, False]
    asked = engine.params
    assert (asked.n, asked.temperature, asked.top_k, asked.top_p, asked.seed) == (2, 0.7, 9, 0.8, 3)
    assert (asked.max_tokens, asked.stop_token_ids) == (5, [4])


def test_greedy_is_temperature_zero_for_vllm() -> None:
    engine = FakeEngine()
    VLLMSampler(engine, make_tokenizer()).sample([[20]], Request(1, max_new_tokens=5, draw=Draw(greedy=True), seed=0))
    assert (engine.params.temperature, engine.params.top_k, engine.params.top_p) == (0.0, -1, 1.0)


def test_an_engine_that_returns_too_few_is_not_believed() -> None:
    with pytest.raises(InputError, match="returned 1 samples of prompt 0, 2 were asked for"):
        VLLMSampler(FakeEngine(spare=1), make_tokenizer()).sample(
            [[20]], Request(2, max_new_tokens=5, draw=Draw(), seed=0)
        )


def test_without_vllm_installed_there_is_a_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "vllm":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="pip install vllm"):
        VLLMSampler("some/model", make_tokenizer())


def test_the_model_sampler_is_sample() -> None:
    model, tokenizer = make_model("llama"), make_tokenizer()
    sampler: Sampler = ModelSampler(model, tokenizer, batch_size=2)
    ours = sampler.sample(["one plus two"], Request(3, max_new_tokens=6, draw=Draw(0.8, top_k=20), seed=4))
    expected = sample(model, tokenizer, ["one plus two"], 3, max_new_tokens=6, temperature=0.8, top_k=20, generator=4)
    assert torch.equal(ours.input_ids, expected.input_ids)


class Receiver:
    """Takes weights as a vLLM engine's model does."""

    def __init__(self) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        self.forgotten = 0

    def load_weights(self, weights: Any) -> None:
        self.weights = {name: tensor.clone() for name, tensor in weights}

    def reset_prefix_cache(self) -> None:
        self.forgotten += 1


@pytest.mark.parametrize("newer", [True, False])
def test_an_engine_takes_over_trained_weights_with_their_adapters(newer: bool) -> None:
    from thrifty.align.adapter import merged, with_lora

    model = with_lora(make_model("llama"), 2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    engine: Any = Receiver()
    if newer:
        engine.apply_model = lambda change: change(engine)
    else:
        runner = SimpleNamespace(model_runner=SimpleNamespace(model=engine))
        engine.llm_engine = SimpleNamespace(model_executor=SimpleNamespace(driver_worker=runner))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    VLLMSampler(engine, make_tokenizer()).refresh(model)
    assert engine.forgotten == 1
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name], atol=1e-6, rtol=1e-6)
    whole = dict(merged(model).named_parameters())
    assert set(engine.weights) == set(whole)
    for name, parameter in whole.items():
        torch.testing.assert_close(engine.weights[name], parameter.data)
