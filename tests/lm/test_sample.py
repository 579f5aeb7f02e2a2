"""Samples: the same tokens as transformers' generate, honest probabilities, the same for every batch size."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from tests.lm.conftest import MODELS, VOCABULARY, make_model, make_tokenizer

from thrifty.core.errors import InputError
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample, stop_tokens
from thrifty.lm.sequences import Sequences

STOP = [5, 6, 7]


def prompts(lengths: tuple[int, ...] = (3, 11, 6, 1, 8)) -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(8, VOCABULARY) for _ in range(length)] for length in lengths]


def rows(sequences: Sequences) -> list[list[int]]:
    return [ids[mask].tolist() for ids, mask in zip(sequences.input_ids, sequences.attention_mask, strict=True)]


def by_generate(model: Any, prompt: list[int], **settings: Any) -> list[int]:
    output = model.generate(torch.tensor([prompt]), do_sample=False, eos_token_id=STOP, pad_token_id=0, **settings)
    return output[0].tolist()


@pytest.mark.parametrize("name", MODELS)
def test_greedy_gives_the_tokens_of_generate(name: str) -> None:
    model = make_model(name)
    ours = sample(model, None, prompts(), max_new_tokens=20, greedy=True, stop_ids=STOP, batch_size=4)
    assert rows(ours) == [by_generate(model, prompt, max_new_tokens=20) for prompt in prompts()]


@pytest.mark.parametrize("name", MODELS)
def test_behaviour_logps_are_the_models_at_temperature_one(name: str) -> None:
    model = make_model(name)
    drawn = sample(model, None, prompts(), 3, max_new_tokens=20, stop_ids=STOP, generator=3)
    with torch.no_grad():
        expected = token_logps(model, drawn)
    torch.testing.assert_close(drawn["behaviour_logps"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "bloom"])
def test_temperature_is_in_the_behaviour_logps(name: str) -> None:
    model = make_model(name)
    drawn = sample(model, None, prompts(), 2, max_new_tokens=9, temperature=0.6, stop_ids=STOP)
    with torch.no_grad():
        expected = token_logps(model, drawn, temperature=0.6)
    torch.testing.assert_close(drawn["behaviour_logps"], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba"])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_samples_depend_on_the_seed_and_not_on_the_batch(name: str, batch_size: int) -> None:
    model = make_model(name)
    whole = sample(model, None, prompts(), 3, max_new_tokens=12, stop_ids=STOP, generator=5)
    cut = sample(model, None, prompts(), 3, max_new_tokens=12, stop_ids=STOP, generator=5, batch_size=batch_size)
    assert rows(cut) == rows(whole)
    other = sample(model, None, prompts(), 3, max_new_tokens=12, stop_ids=STOP, generator=6)
    assert rows(other) != rows(whole)


def test_a_generator_gives_the_seed_and_moves_on(llama: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    first = sample(llama, None, prompts(), max_new_tokens=8, generator=generator)
    second = sample(llama, None, prompts(), max_new_tokens=8, generator=generator)
    again = sample(llama, None, prompts(), max_new_tokens=8, generator=torch.Generator().manual_seed(0))
    assert rows(first) == rows(again) != rows(second)


def test_rows_come_in_the_order_of_the_prompts(llama: Any) -> None:
    drawn = sample(llama, None, prompts(), 3, max_new_tokens=5, batch_size=4)
    assert drawn["group"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    for row, group in zip(rows(drawn), drawn["group"].tolist(), strict=True):
        assert row[: len(prompts()[group])] == prompts()[group]
    assert drawn.response_mask.sum(1).tolist() == [
        len(row) - len(prompts()[group]) for row, group in zip(rows(drawn), drawn["group"].tolist(), strict=True)
    ]


def test_finished_rows_end_with_a_stop_token_and_only_they(llama: Any) -> None:
    drawn = sample(llama, None, prompts(), 8, max_new_tokens=20, stop_ids=STOP)
    finished = drawn["finished"]
    assert finished.any()
    assert not finished.all()
    for row, ended, length in zip(rows(drawn), finished.tolist(), drawn.response_lengths.tolist(), strict=True):
        assert (row[-1] in STOP) == ended
        assert not set(row[len(row) - length : -1]) & set(STOP)
        assert ended or length == 20


def test_more_tokens_than_the_cache_first_holds(llama: Any) -> None:
    long = sample(llama, None, prompts(), 2, max_new_tokens=50, greedy=True, stop_ids=[], batch_size=3)
    assert rows(long)[::2] == rows(long)[1::2]
    assert (
        rows(long)[2]
        == llama.generate(
            torch.tensor([prompts()[1]]), do_sample=False, max_new_tokens=50, eos_token_id=None, pad_token_id=0
        )[0].tolist()
    )


def test_top_k_and_top_p_are_those_of_generate(llama: Any) -> None:
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    drawn = sample(llama, None, prompts(), 6, max_new_tokens=6, temperature=1.4, top_k=12, top_p=0.7, stop_ids=[])
    with torch.no_grad():
        logits = llama(drawn.input_ids, attention_mask=drawn.attention_mask.long()).logits
    warp = LogitsProcessorList([TemperatureLogitsWarper(1.4), TopKLogitsWarper(12), TopPLogitsWarper(0.7)])
    flat = warp(None, logits[:, :-1].reshape(-1, VOCABULARY)).log_softmax(-1).view(*logits[:, :-1].shape[:2], -1)
    expected = flat.gather(-1, drawn.input_ids[:, 1:, None]).squeeze(-1)
    mask = drawn.response_mask[:, 1:]
    torch.testing.assert_close(drawn["behaviour_logps"][:, 1:][mask], expected[mask], rtol=0, atol=1e-4)


def test_frequencies_of_first_tokens_are_the_models(llama: Any) -> None:
    prompt = prompts()[0]
    count = 4000
    drawn = sample(llama, None, [prompt], count, max_new_tokens=1, stop_ids=[], generator=11)
    tokens = drawn.input_ids[:, len(prompt)]
    with torch.no_grad():
        expected = llama(torch.tensor([prompt])).logits[0, -1].softmax(0) * count
    often = expected > 8
    observed = torch.bincount(tokens, minlength=VOCABULARY).float()
    rare = [counts[~often].sum()[None] for counts in (expected, observed)] if (~often).any() else [expected[:0]] * 2
    groups_expected = torch.cat([expected[often], rare[0]])
    groups_observed = torch.cat([observed[often], rare[1]])
    statistic = float(((groups_observed - groups_expected) ** 2 / groups_expected).sum())
    freedom = len(groups_expected) - 1
    assert freedom > 10
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5


def test_the_training_flags_are_given_back(llama: Any) -> None:
    llama.train()
    llama.model.layers[0].eval()
    flags = [module.training for module in llama.modules()]
    sample(llama, None, prompts(), max_new_tokens=3)
    assert [module.training for module in llama.modules()] == flags


def test_dropout_is_off_while_sampling() -> None:
    model = make_model("gpt2").train()
    first = sample(model, None, prompts(), max_new_tokens=10, greedy=True, stop_ids=STOP)
    second = sample(model.eval(), None, prompts(), max_new_tokens=10, greedy=True, stop_ids=STOP)
    assert rows(first) == rows(second)


def test_samples_can_be_learned_from(llama: Any) -> None:
    drawn = sample(llama, None, prompts(), 2, max_new_tokens=6)
    logps = token_logps(llama, drawn)
    ((logps - drawn["behaviour_logps"]).exp() * drawn.response_mask).sum().backward()
    assert llama.lm_head.weight.grad.abs().sum() > 0


def test_bfloat16(llama: Any) -> None:
    drawn = sample(llama.bfloat16(), None, prompts(), 2, max_new_tokens=6)
    with torch.no_grad():
        expected = token_logps(llama, drawn)
    torch.testing.assert_close(drawn["behaviour_logps"], expected, rtol=0.05, atol=0.15)


def test_adapters_by_peft_are_sampled_from() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model("qwen2"), peft.LoraConfig(target_modules=["q_proj", "lm_head"], r=2, init_lora_weights=False)
    ).eval()
    ours = sample(model, None, prompts(), max_new_tokens=8, greedy=True, stop_ids=STOP)
    assert rows(ours) == [
        model.generate(
            input_ids=torch.tensor([p]), do_sample=False, max_new_tokens=8, eos_token_id=STOP, pad_token_id=0
        )[0].tolist()
        for p in prompts()
    ]


def test_text_and_messages_are_rendered_by_the_chat_template(llama: Any) -> None:
    tokenizer = make_tokenizer()
    as_text = sample(llama, tokenizer, ["what is one plus two"], max_new_tokens=4, greedy=True)
    as_turns = sample(
        llama, tokenizer, [[{"role": "user", "content": "what is one plus two"}]], max_new_tokens=4, greedy=True
    )
    assert rows(as_text) == rows(as_turns)
    assert tokenizer.decode(rows(as_text)[0][:8]).split()[:2] == ["<|user|>", "what"]


def test_stop_tokens_are_those_of_model_and_tokenizer(llama: Any) -> None:
    llama.generation_config.eos_token_id = [9, 10]
    assert stop_tokens(llama, make_tokenizer()) == {1, 9, 10}


class TestWrongInput:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"temperature": 0.0}, "greedy=True"),
            ({"top_k": 0}, "top_k"),
            ({"top_p": 1.5}, "top_p"),
            ({"n": 0}, "at least 1"),
            ({"batch_size": 0}, "at least 1"),
            ({"max_new_tokens": 125}, "context of 128"),
        ],
    )
    def test_settings_out_of_range(self, llama: Any, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            sample(llama, None, prompts(), **{"max_new_tokens": 4, **settings})

    def test_prompts(self, llama: Any) -> None:
        with pytest.raises(InputError, match="no prompts"):
            sample(llama, None, [], max_new_tokens=4)
        with pytest.raises(InputError, match="need a tokenizer"):
            sample(llama, None, ["hello"], max_new_tokens=4)
        with pytest.raises(InputError, match="must be a list"):
            sample(llama, make_tokenizer(), "hello", max_new_tokens=4)
        with pytest.raises(InputError, match="prompt 0 has a token id outside"):
            sample(llama, None, [[3, 2000]], max_new_tokens=4)
