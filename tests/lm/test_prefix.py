"""What rows share is computed once, and nothing else changes: values, gradients, segments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.lm.conftest import MODELS, VOCABULARY, make_model
from torch import Tensor

from thrifty.lm import causal
from thrifty.lm.backbone import Backbone, backbone
from thrifty.lm.logps import token_logps
from thrifty.lm.memory import split_rows
from thrifty.lm.prefix import group_rows
from thrifty.lm.sequences import Sequences, from_rows
from thrifty.lm.states import response_states


def batch(groups: list[tuple[int, list[int]]], seed: int = 0) -> Sequences:
    """For each group, the length of its prompt and of its answers."""
    generator = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()

    rows = []
    for length, answers in groups:
        prompt = words(length)
        rows += [(prompt + words(answer), [False] * length + [True] * answer) for answer in answers]
    return from_rows(rows)


UNEVEN = [(9, [3, 1, 7]), (4, [5]), (12, [2, 6]), (6, [1, 1])]
EVEN = [(9, [4, 4, 4]), (9, [4, 4, 4])]


def tokens_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    read: list[int] = []
    whole = Backbone.states_packed

    def counted(self: Backbone, ids: Tensor, plan: Any) -> Tensor:
        read.append(len(ids))
        return whole(self, ids, plan)

    monkeypatch.setattr(Backbone, "states_packed", counted)
    return read


def states_and_gradients(model: Any, sequences: Sequences, share: bool) -> tuple[Tensor, list[Tensor]]:
    parts = backbone(model)
    assert parts is not None
    mask = sequences.response_mask
    found, where = response_states(model, parts, sequences.input_ids, mask, None, share)
    states = found.new_zeros((mask.numel(), found.shape[1])).index_copy(0, where, found)[mask.flatten()]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1), dtype=states.dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((states * weights).sum(), parameters, allow_unused=True)
    return states, [g if g is not None else torch.zeros_like(p) for g, p in zip(gradients, parameters, strict=True)]


@pytest.mark.parametrize("groups", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_changes_but_the_work(name: str, groups: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sequences = make_model(name), batch(groups)
    read = tokens_read(monkeypatch)
    apart = token_logps(model, sequences, entropy=True, share_prefixes=False)
    together = token_logps(model, sequences, entropy=True)
    for ours, expected in zip(together, apart, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    parts = backbone(model)
    if parts is not None and parts.packed:
        everything = int((sequences.lengths - 1).sum())
        saved = sum(length * (len(answers) - 1) for length, answers in groups)
        assert read[-2:] == [everything, everything - saved]


# Where transformers normalises or caps in float32, the last of its digits may differ.
@pytest.mark.parametrize(
    ("name", "tolerance"), [("llama", 1e-9), ("qwen2", 1e-9), ("mistral", 1e-9), ("gemma2", 1e-5), ("gpt2", 1e-5)]
)
@pytest.mark.parametrize("groups", [UNEVEN, EVEN], ids=["uneven", "even"])
@pytest.mark.parametrize("path", ["batched", "chunked", "fused"])
def test_states_and_gradients_in_double(
    name: str, tolerance: float, groups: Any, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path == "chunked":
        monkeypatch.setattr(causal, "_SCORE_ELEMENTS", 1)
    if path == "fused":
        monkeypatch.setattr(causal, "_LONGEST_BATCHED", 0)
    model, sequences = make_model(name).double(), batch(groups)
    together, ours = states_and_gradients(model, sequences, True)
    apart, expected = states_and_gradients(model, sequences, False)
    torch.testing.assert_close(together, apart, rtol=tolerance, atol=tolerance)
    for a, b in zip(ours, expected, strict=True):
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(1, 6), min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    st.randoms(use_true_random=False),
    st.sampled_from([None, 1, 40_000]),
)
def test_any_groups_in_any_order_and_cut_anywhere(groups: Any, random: Any, activation_bytes: int | None) -> None:
    model, sequences = _cached(), batch(groups)
    order = list(range(len(sequences)))
    random.shuffle(order)
    shuffled = sequences.select(order).pad_to(20)
    apart = token_logps(model, shuffled, share_prefixes=False)
    together = token_logps(model, shuffled, activation_bytes=activation_bytes)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    weights = torch.randn(apart.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((apart * weights).sum(), list(model.parameters()))
    for a, b in zip(torch.autograd.grad((together * weights).sum(), list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)


_llama: list[Any] = []


def _cached() -> Any:
    if not _llama:
        _llama.append(make_model("llama"))
    return _llama[0]


def test_without_gradients(llama: Any) -> None:
    with torch.no_grad():
        together, apart = token_logps(llama, batch(UNEVEN)), token_logps(llama, batch(UNEVEN), share_prefixes=False)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)


def test_adapters_and_half_precision(llama: Any) -> None:
    peft = pytest.importorskip("peft")
    sequences = batch(UNEVEN)
    model = peft.get_peft_model(
        make_model("qwen2"), peft.LoraConfig(target_modules=["q_proj", "down_proj"], r=2, init_lora_weights=False)
    ).eval()
    together, apart = token_logps(model, sequences), token_logps(model, sequences, share_prefixes=False)
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-5)
    adapters = [p for p in model.parameters() if p.requires_grad]
    for a, b in zip(
        torch.autograd.grad(together.sum(), adapters), torch.autograd.grad(apart.sum(), adapters), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = token_logps(llama, sequences)
    half.sum().backward()
    torch.testing.assert_close(half, token_logps(llama, sequences), rtol=0.02, atol=0.1)
    torch.testing.assert_close(token_logps(llama.bfloat16(), sequences), half, rtol=0.02, atol=0.1)


def test_what_answers_begin_with_alike_is_shared_too(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sequences = batch([(6, [5]), (6, [5])])
    twice = Sequences.cat([sequences, sequences])
    read = tokens_read(monkeypatch)
    together = token_logps(llama, twice)
    torch.testing.assert_close(together, token_logps(llama, twice, share_prefixes=False), rtol=1e-5, atol=1e-5)
    assert read[-2:] == [20, 40], "of two equal rows the second adds nothing"


def test_little_in_common_is_left_alone() -> None:
    def grouped(groups: list[tuple[int, list[int]]]) -> Any:
        sequences = batch(groups)
        spoken = sequences.response_mask
        return group_rows(sequences.input_ids, spoken, (torch.arange(spoken.shape[1]) * spoken).amax(1))

    assert grouped([(9, [9]), (9, [9])]) is None, "different prompts"
    assert grouped([(2, [19, 19])]) is None, "2 tokens of 40"
    assert grouped([(9, [9])]) is None, "a row alone"
    found = grouped([(8, [3, 3]), (5, [4]), (7, [2, 2, 2])])
    assert found.begun == [8, 8, 0, 7, 7, 7]
    assert found.shared == [0, 8, 0, 0, 7, 7]


def test_prompts_that_begin_alike_are_not_one_group(llama: Any) -> None:
    sequences = batch([(9, [4, 4]), (9, [4, 4])])
    ids = sequences.input_ids.clone()
    ids[:, :8] = ids[0, :8]
    alike = Sequences(ids, sequences.attention_mask, sequences.response_mask)
    apart = token_logps(llama, alike, share_prefixes=False)
    torch.testing.assert_close(token_logps(llama, alike), apart, rtol=1e-5, atol=1e-5)


@given(
    st.lists(st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=5)), min_size=1, max_size=5),
    st.integers(1, 60),
)
def test_groups_stay_together_where_they_fit(groups: list[tuple[int, list[int]]], most: int) -> None:
    lengths = [begun + more for begun, added in groups for more in added]
    shared = [begun if row else 0 for begun, added in groups for row in range(len(added))]
    cuts = split_rows(lengths, most, shared)
    assert [row for first, end in cuts for row in range(first, end)] == list(range(len(lengths)))
    whole, row = {}, 0
    for begun, added in groups:
        whole[row, row + len(added)] = begun + sum(added)
        row += len(added)
    for first, end in cuts:
        assert sum(lengths[first:end]) - sum(shared[first + 1 : end]) <= most or end - first == 1
    for (start, stop), tokens in whole.items():
        if tokens <= most:
            assert any(first <= start and stop <= end for first, end in cuts)
