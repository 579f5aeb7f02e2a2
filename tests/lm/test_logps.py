"""token_logps gives what the plain way gives, value and gradient, for every kind of model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lm.conftest import FAST, MODELS, VOCABULARY, make_model
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.lm.backbone import backbone
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.memory import activation_tokens, split_rows
from thrifty.lm.sequences import Sequences


def ragged(lengths: tuple[int, ...] = (17, 9, 13, 2), starts: tuple[int, ...] = (5, 3, 1, 1)) -> Sequences:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, VOCABULARY, (len(lengths), max(lengths)), generator=generator)
    position = torch.arange(max(lengths))
    real = position < torch.tensor(lengths)[:, None]
    return Sequences(ids, real, real & (position >= torch.tensor(starts)[:, None]))


def plain(model: Any, sequences: Sequences, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The textbook way: all logits, all in float32."""
    logits = model(sequences.input_ids, attention_mask=sequences.attention_mask.long()).logits.float() / temperature
    log_p = logits.log_softmax(-1)[:, :-1]
    picked = log_p.gather(-1, sequences.input_ids[:, 1:, None]).squeeze(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    mask = sequences.response_mask[:, 1:]
    pad = nn.functional.pad
    return pad(picked * mask, (1, 0)), pad(entropy * mask, (1, 0))


def gradients(model: Any, loss: Tensor) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [g if g is not None else torch.zeros_like(p) for g, p in zip(found, parameters, strict=True)]


def assert_same_gradients(model: Any, ours: Tensor, plainly: Tensor) -> None:
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    for a, b in zip(gradients(model, (ours * weights).sum()), gradients(model, (plainly * weights).sum()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_plain_way_in_value_and_gradient(name: str) -> None:
    model, sequences = make_model(name), ragged()
    ours, entropy = token_logps(model, sequences, temperature=0.7, entropy=True, chunk=7)
    plainly, plain_entropy = plain(model, sequences, 0.7)
    torch.testing.assert_close(ours, plainly, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, plain_entropy, rtol=1e-4, atol=1e-5)
    assert_same_gradients(model, entropy, plain_entropy)
    assert_same_gradients(model, token_logps(model, sequences, temperature=0.7), plain(model, sequences, 0.7)[0])


@pytest.mark.parametrize("name", FAST)
def test_models_with_the_attention_interface_are_packed(name: str) -> None:
    parts = backbone(make_model(name))
    assert parts is not None
    assert parts.packed
    assert parts.decodes


def test_the_models_config_is_as_it_was(llama: Any) -> None:
    before = llama.config._attn_implementation
    token_logps(llama, ragged())
    assert llama.config._attn_implementation == before


def test_positions_outside_the_response_are_zero(llama: Any) -> None:
    sequences = ragged()
    assert (token_logps(llama, sequences)[~sequences.response_mask] == 0).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(2, 12), min_size=1, max_size=5), st.integers(0, 5), st.integers(0, 3))
def test_padding_and_order_of_rows_do_not_matter(lengths: list[int], padding: int, turn: int) -> None:
    model = _cached_llama()
    sequences = ragged(tuple(lengths), tuple(1 for _ in lengths))
    order = [(row + turn) % len(lengths) for row in range(len(lengths))]
    with torch.no_grad():
        expected = token_logps(model, sequences)
        padded = token_logps(model, sequences.pad_to(max(lengths) + padding, pad_id=5))
        permuted = token_logps(model, sequences.select(order))
    torch.testing.assert_close(padded[:, : max(lengths)], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(permuted, expected[order], rtol=1e-4, atol=1e-5)


_llama: list[Any] = []


def _cached_llama() -> Any:
    if not _llama:
        _llama.append(make_model("llama"))
    return _llama[0]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_the_chunk_size_changes_nothing(llama: Any, chunk: int) -> None:
    torch.testing.assert_close(token_logps(llama, ragged(), chunk=chunk), token_logps(llama, ragged()))


def test_recomputing_in_segments_changes_nothing(llama: Any) -> None:
    whole, cut = token_logps(llama, ragged()), token_logps(llama, ragged(), activation_bytes=1)
    torch.testing.assert_close(cut, whole)
    assert_same_gradients(llama, cut, whole)


def test_dropout_is_the_same_when_recomputed() -> None:
    model = make_model("gpt2").train()
    torch.manual_seed(3)
    cut = token_logps(model, ragged(), activation_bytes=1)
    first = gradients(model, cut.sum())
    torch.manual_seed(3)
    again = token_logps(model, ragged(), activation_bytes=1)
    assert (cut - token_logps(model.eval(), ragged())).abs().max() > 1e-3
    for a, b in zip(first, gradients(model.train(), again.sum()), strict=True):
        torch.testing.assert_close(a, b)


def test_the_models_own_checkpointing_is_left_to_it(llama: Any) -> None:
    plainly = token_logps(llama, ragged())
    llama.train().gradient_checkpointing_enable()
    ours = token_logps(llama, ragged(), activation_bytes=1)
    torch.testing.assert_close(ours, plainly)
    ours.sum().backward()
    assert llama.model.layers[0].mlp.up_proj.weight.grad is not None


def test_without_gradients_nothing_is_kept(llama: Any) -> None:
    with torch.no_grad():
        assert token_logps(llama, ragged()).grad_fn is None


def test_a_frozen_head_gets_no_gradient_and_the_body_its_own() -> None:
    model = make_model("qwen2")
    model.lm_head.weight.requires_grad_(False)
    sequences = ragged()
    assert_same_gradients(model, token_logps(model, sequences), plain(model, sequences)[0])
    token_logps(model, sequences).sum().backward()
    assert model.lm_head.weight.grad is None


def test_a_head_with_a_bias() -> None:
    model = make_model("qwen2")
    model.lm_head = nn.Linear(32, VOCABULARY, bias=True)
    sequences = ragged()
    ours, entropy = token_logps(model, sequences, entropy=True)
    plainly, plain_entropy = plain(model, sequences)
    torch.testing.assert_close(ours, plainly, rtol=1e-4, atol=1e-5)
    assert_same_gradients(model, ours + entropy, plainly + plain_entropy)


def test_a_head_that_is_no_matrix_goes_in_checkpointed_chunks() -> None:
    model = make_model("qwen2")
    model.lm_head = nn.Sequential(nn.Linear(32, 8), nn.Linear(8, VOCABULARY))
    sequences = ragged()
    ours, entropy = token_logps(model, sequences, entropy=True, chunk=5)
    plainly, plain_entropy = plain(model, sequences)
    torch.testing.assert_close(ours, plainly, rtol=1e-4, atol=1e-5)
    assert_same_gradients(model, ours + entropy, plainly + plain_entropy)


def test_a_model_that_changes_its_logits_falls_back_to_its_own_forward_pass() -> None:
    class Shifted(type(make_model("llama"))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.logits = output.logits * torch.linspace(0.5, 2.0, VOCABULARY)
            return output

    model = make_model("llama")
    model.__class__ = Shifted
    sequences = ragged()
    assert backbone(model) is None
    ours, entropy = token_logps(model, sequences, entropy=True, temperature=1.3)
    plainly, plain_entropy = plain(model, sequences, 1.3)
    torch.testing.assert_close(ours, plainly, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(entropy, plain_entropy, rtol=1e-4, atol=1e-5)
    assert_same_gradients(model, ours, plainly)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_adapters_by_peft(targets: list[str]) -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model("qwen2"), peft.LoraConfig(target_modules=targets, r=2, init_lora_weights=False, lora_dropout=0.0)
    ).eval()
    sequences = ragged()
    ours, plainly = token_logps(model, sequences), plain(model, sequences)[0]
    torch.testing.assert_close(ours, plainly, rtol=1e-4, atol=1e-5)
    assert_same_gradients(model, ours, plainly)
    with model.disable_adapter():
        reference = token_logps(model, sequences)
    assert (reference - ours).abs().max() > 1e-3


def test_prompt_tuning_by_peft_is_not_misread() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(
        make_model("llama"), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    ).eval()
    sequences = ragged((9, 9), (2, 4))
    logits = model(sequences.input_ids, attention_mask=sequences.attention_mask.long()).logits[:, -9:]
    expected = logits.log_softmax(-1)[:, :-1].gather(-1, sequences.input_ids[:, 1:, None]).squeeze(-1)
    ours = token_logps(model, sequences)[:, 1:]
    torch.testing.assert_close(ours, expected * sequences.response_mask[:, 1:], rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_near_as_its_logits_are(llama: Any) -> None:
    sequences = ragged()
    exact = token_logps(llama, sequences)
    half = token_logps(llama.bfloat16(), sequences)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.08)


def test_under_autocast_products_run_in_its_dtype(llama: Any) -> None:
    sequences = ragged()
    exact = token_logps(llama, sequences)
    with torch.autocast("cpu", torch.bfloat16):
        half = token_logps(llama, sequences)
    half.sum().backward()
    assert 0 < (half - exact).abs().max() < 0.2
    assert llama.lm_head.weight.grad.dtype == torch.float32


def test_no_response_at_all_gives_zeros(llama: Any) -> None:
    sequences = ragged()
    silent = Sequences(sequences.input_ids, sequences.attention_mask, torch.zeros_like(sequences.response_mask))
    logps, entropy = token_logps(llama, silent, entropy=True)
    assert not logps.any()
    assert not entropy.any()
    assert not token_logps(llama, silent).any()


def test_a_row_without_response_stays_zero_beside_others(llama: Any) -> None:
    sequences = ragged((6, 9, 4), (1, 9, 2))
    logps = token_logps(llama, sequences)
    assert not logps[1].any()
    torch.testing.assert_close(logps, plain(llama, sequences)[0], rtol=1e-4, atol=1e-5)


class TestWrongInput:
    def test_response_at_the_first_token(self, llama: Any) -> None:
        with pytest.raises(InputError, match="sequence 1: the response starts at token 0"):
            token_logps(llama, ragged((5, 5), (1, 0)))

    def test_left_padding(self, llama: Any) -> None:
        left = torch.tensor([[False, True, True]])
        with pytest.raises(InputError, match="right-padded"):
            token_logps(llama, Sequences(torch.ones(1, 3, dtype=torch.long), left, torch.zeros(1, 3, dtype=torch.bool)))

    def test_ids_of_another_tokenizer(self, llama: Any) -> None:
        sequences = ragged()
        with pytest.raises(InputError, match=f"vocabulary of {VOCABULARY}"):
            token_logps(llama, Sequences(sequences.input_ids + 90, sequences.attention_mask, sequences.response_mask))

    @pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
    def test_temperature(self, llama: Any, temperature: float) -> None:
        with pytest.raises(InputError, match="temperature"):
            token_logps(llama, ragged(), temperature=temperature)

    def test_another_device(self, llama: Any) -> None:
        with pytest.raises(InputError, match="are on meta, the model on cpu"):
            token_logps(llama, _MetaSequences.of(ragged()))

    def test_something_that_is_no_model(self) -> None:
        with pytest.raises(InputError, match="a causal language model"):
            backbone(nn.Linear(2, 2))

    def test_a_body_without_head(self, llama: Any) -> None:
        with pytest.raises(InputError, match="no language-model head"):
            backbone(llama.model)

    def test_an_encoder_decoder(self) -> None:
        from transformers import T5Config, T5ForConditionalGeneration

        model = T5ForConditionalGeneration(
            T5Config(vocab_size=20, d_model=8, d_ff=8, num_layers=1, num_heads=2, d_kv=4)
        )
        with pytest.raises(InputError, match="encoder-decoder"):
            backbone(model)


class _MetaSequences(Sequences):
    @classmethod
    def of(cls, sequences: Sequences) -> Sequences:
        ids = sequences.input_ids.to("meta")
        return cls(ids, sequences.attention_mask, sequences.response_mask)


def test_sequence_logps_sums_or_averages_over_the_mask() -> None:
    logps = torch.tensor([[0.0, -1.0, -3.0], [0.0, -2.0, 9.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    assert sequence_logps(logps, mask, "sum").tolist() == [-4.0, -2.0, 0.0]
    assert sequence_logps(logps, mask, "mean").tolist() == [-2.0, -2.0, 0.0]
    with pytest.raises(InputError, match="'sum' or 'mean'"):
        sequence_logps(logps, mask, "max")  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=12), st.integers(1, 40))
def test_segments_cover_all_rows_within_the_limit(lengths: list[int], most: int) -> None:
    groups = split_rows(lengths, most)
    assert [row for first, end in groups for row in range(first, end)] == list(range(len(lengths)))
    for first, end in groups:
        assert sum(lengths[first:end]) <= most or end - first == 1


def test_half_the_bytes_hold_half_the_tokens(llama: Any) -> None:
    cpu = torch.device("cpu")
    assert activation_tokens(llama, 2**24, cpu) == pytest.approx(2 * activation_tokens(llama, 2**23, cpu), abs=2)
    assert activation_tokens(llama, 1, cpu) == 1
    assert activation_tokens(llama, None, cpu) > 1000
