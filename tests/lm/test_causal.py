"""Attention by batched products equals the textbook formula, in value and gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty.lm import causal
from thrifty.lm.attention import Packed
from thrifty.lm.causal import causal_attention


def textbook(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, softcap: float | None, window: int | None
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    distance = torch.arange(query.shape[2])[:, None] - torch.arange(query.shape[2])
    visible = (distance >= 0) & (distance < (window or query.shape[2]))
    return scores.masked_fill(~visible, float("-inf")).softmax(-1) @ value


def _inputs(rows: int, heads: int, kv_heads: int, time: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows + time)
    return [
        torch.randn(rows, count, time, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (heads, kv_heads, kv_heads)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    st.integers(1, 9),
    st.sampled_from([None, 1, 3, 50]),
    st.sampled_from([None, 2.0]),
    st.sampled_from([1, 2**21]),
)
def test_equals_the_textbook(
    rows: int, heads: tuple[int, int], time: int, window: int | None, softcap: float | None, elements: int
) -> None:
    inputs = _inputs(rows, *heads, time)
    before, causal._SCORE_ELEMENTS = causal._SCORE_ELEMENTS, elements
    try:
        ours = causal_attention(*inputs, 0.3, softcap=softcap, window=window)
        weights = torch.randn_like(ours)
        got = torch.autograd.grad((ours * weights).sum(), inputs)
    finally:
        causal._SCORE_ELEMENTS = before
    expected = textbook(*inputs, 0.3, softcap, window)
    tolerance = {"rtol": 1e-5, "atol": 1e-5}  # the capped soft-max accumulates in float32
    torch.testing.assert_close(ours, expected, **tolerance)
    for a, b in zip(got, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("window", [None, 3])
def test_long_sequences_take_the_fused_kernel(monkeypatch: pytest.MonkeyPatch, window: int | None) -> None:
    monkeypatch.setattr(causal, "_LONGEST_BATCHED", 4)
    inputs = _inputs(2, 4, 2, 9)
    torch.testing.assert_close(causal_attention(*inputs, 0.5, window=window), textbook(*inputs, 0.5, None, window))


def test_dropout_drops_weights() -> None:
    inputs = _inputs(2, 4, 2, 9)
    torch.manual_seed(0)
    for softcap in (None, 2.0):
        dropped = causal_attention(*inputs, 0.5, softcap=softcap, dropout=0.5)
        assert not torch.allclose(dropped, causal_attention(*inputs, 0.5, softcap=softcap))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_packed_sequences_do_not_see_each_other(lengths: list[int]) -> None:
    plan = Packed(lengths, torch.device("cpu"))
    inputs = _inputs(1, 4, 2, sum(lengths))
    ours = plan.attend(*inputs, 0.5, None, None, 0.0)
    weights = torch.randn_like(ours)
    got = torch.autograd.grad((ours * weights).sum(), inputs)
    parts = [part.split(lengths, 2) for part in inputs]
    expected = torch.cat([textbook(*row, 0.5, None, None) for row in zip(*parts, strict=True)], 2).transpose(1, 2)
    torch.testing.assert_close(ours, expected)
    for a, b in zip(got, torch.autograd.grad((expected * weights).sum(), inputs), strict=True):
        torch.testing.assert_close(a, b)
    assert plan.positions[0].tolist() == [place for length in lengths for place in range(length)]
