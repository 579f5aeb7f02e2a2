"""The bench's plain way makes the same choices, so that times and memory are those of the same work."""

from __future__ import annotations

import pytest
import torch

from thrifty.bench._shrink_plain import plain_dsnot, plain_flap
from thrifty.shrink.decoder import matrices
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_ways_of_flap_cut_the_same(family, decoders, windows):
    method, model = FLAP(sparsity=0.3), decoders[family]
    ours, plain = method.shrink(model, windows), plain_flap(method, model, windows, 3)
    assert all(torch.equal(a, b) for a, b in zip(matrices(ours), matrices(plain), strict=True))
    torch.testing.assert_close(ours(windows).logits, plain(windows).logits, atol=1e-4, rtol=0)


def test_both_ways_of_dsnot_prune_the_same(llama, windows):
    method = DSnoT(sparsity=0.5)
    ours, plain = method.shrink(llama, windows), plain_dsnot(method, llama, windows, 3)
    same = [((a == 0) == (b == 0)).float().mean() for a, b in zip(matrices(ours), matrices(plain), strict=True)]
    assert min(same) > 0.99  # statistics differ by rounding
