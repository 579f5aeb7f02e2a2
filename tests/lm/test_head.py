"""The chunked head against float64 log_softmax, with every combination of transform, bias and entropy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.lm import head
from thrifty.lm.head import LogitTransform, head_logps


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 10),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, 2.0]),
    st.sampled_from([1.0, 0.4]),
    st.sampled_from([1.0, 0.7]),
    st.sampled_from([40, 2**20]),
)
def test_equals_log_softmax(
    tokens: int,
    chunk: int,
    with_bias: bool,
    entropy: bool,
    softcap: float | None,
    scale: float,
    temperature: float,
    block: int,
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    hidden = torch.randn(tokens, 6, generator=generator, requires_grad=True)
    weight = torch.randn(31, 6, generator=generator, requires_grad=True)
    bias = torch.randn(31, generator=generator, requires_grad=True) if with_bias else None
    targets = torch.randint(31, (tokens,), generator=generator)
    transform = LogitTransform(scale, softcap, temperature)
    before, head._BLOCK_ELEMENTS = head._BLOCK_ELEMENTS, block
    inputs = [hidden, weight] + ([bias] if bias is not None else [])
    up = torch.randn(2, tokens, generator=generator)
    try:
        logps, entropies = head_logps(hidden, weight, bias, targets, transform, chunk=chunk, entropy=entropy)
        loss = (logps * up[0]).sum() + ((entropies * up[1]).sum() if entropies is not None else 0)
        got = torch.autograd.grad(loss, inputs)
    finally:
        head._BLOCK_ELEMENTS = before

    z = hidden.double() @ weight.double().t() + (bias.double() if bias is not None else 0)
    z = z * scale
    z = z if softcap is None else torch.tanh(z / softcap) * softcap
    log_p = (z / temperature).log_softmax(1)
    expected = log_p.gather(1, targets[:, None]).squeeze(1)
    expected_entropy = -(log_p.exp() * log_p).sum(1)
    torch.testing.assert_close(logps.double(), expected, rtol=1e-4, atol=1e-5)
    loss = (expected * up[0]).sum()
    if entropies is not None:
        torch.testing.assert_close(entropies.double(), expected_entropy, rtol=1e-4, atol=1e-5)
        loss = loss + (expected_entropy * up[1]).sum()
    for a, b in zip(got, torch.autograd.grad(loss, inputs), strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("for_hidden", [True, False])
def test_only_the_gradients_asked_for_are_made(for_hidden: bool) -> None:
    hidden = torch.randn(5, 6, requires_grad=for_hidden)
    weight = torch.randn(11, 6, requires_grad=not for_hidden)
    logps, _ = head_logps(hidden, weight, None, torch.arange(5))
    logps.sum().backward()
    assert (hidden.grad is not None) == for_hidden
    assert (weight.grad is not None) != for_hidden


def test_a_certain_token_keeps_its_small_gradient_in_bfloat16() -> None:
    weight = torch.zeros(4, 2, dtype=torch.bfloat16)
    weight[0, 0] = 1.0
    hidden = torch.tensor([[8.0, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    logps, _ = head_logps(hidden, weight, None, torch.tensor([0]))
    logps.sum().backward()
    rest = 3 / (3 + 2.718281828**8)
    assert logps.item() == pytest.approx(-rest, rel=1e-2)
    assert hidden.grad is not None
    assert hidden.grad[0, 0].item() == pytest.approx(rest, rel=1e-2)
