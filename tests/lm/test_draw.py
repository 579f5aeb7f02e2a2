"""The draw is exact: chi-square over seeds, every uniform number lands where the cumulative sum says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.core.errors import InputError
from thrifty.lm.draw import Draw, RowUniforms, inverse_cdf
from thrifty.lm.head import LogitTransform

IDENTITY = LogitTransform()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1500), st.integers(0, 10_000), st.floats(0, 1, exclude_max=True))
def test_inverts_the_cumulative_sum(outcomes: int, seed: int, uniform: float) -> None:
    p = torch.rand(3, outcomes, generator=torch.Generator().manual_seed(seed)) ** 4
    drawn = inverse_cdf(p, torch.full((3,), uniform, dtype=torch.float64))
    cumulative = p.double().cumsum(1) / p.double().sum(1, keepdim=True)
    for row in range(3):
        token = int(drawn[row])
        below = float(cumulative[row, token - 1]) if token else 0.0
        assert below - 1e-6 <= uniform <= float(cumulative[row, token]) + 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(0, 899), st.sampled_from([0.0, 0.3, 1 - 2**-53]))
def test_an_outcome_of_probability_zero_is_never_drawn(outcomes: int, only: int, uniform: float) -> None:
    p = torch.zeros(1, outcomes)
    p[0, only % outcomes] = 0.7
    assert int(inverse_cdf(p, torch.tensor([uniform], dtype=torch.float64))) == only % outcomes


def test_chi_square_over_a_large_vocabulary() -> None:
    vocabulary, count = 3000, 60_000
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(0)) * 2
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens, logps = Draw()(logits.expand(count, -1), uniforms, IDENTITY)
    expected = logits[0].softmax(0) * count
    observed = torch.bincount(tokens, minlength=vocabulary).float()
    often = expected > 8
    statistic = float(((observed - expected) ** 2 / expected)[often].sum())
    freedom = int(often.sum())
    assert freedom > 500
    assert abs(statistic - freedom) < 4 * (2 * freedom) ** 0.5
    torch.testing.assert_close(logps, logits[0].log_softmax(0)[tokens])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_temperature_scale_and_cap_are_in_the_probabilities(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 700, generator=torch.Generator().manual_seed(0)).to(dtype)
    transform = LogitTransform(scale=2.0, softcap=1.5)
    tokens, logps = Draw(temperature=0.5)(logits, torch.rand(5, dtype=torch.float64), transform)
    expected = (torch.tanh(logits.float() * 2.0 / 1.5) * 1.5 / 0.5).log_softmax(1)
    torch.testing.assert_close(logps, expected.gather(1, tokens[:, None]).squeeze(1))


def test_top_k_keeps_k_and_top_p_the_smallest_set_that_reaches_p() -> None:
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).expand(2000, -1)
    uniforms = torch.rand(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for draw, kept in (
        (Draw(top_k=2), {0: 4 / 7, 1: 3 / 7}),
        (Draw(top_p=0.65), {0: 4 / 7, 1: 3 / 7}),
        (Draw(top_p=0.01), {0: 1.0}),
        (Draw(top_k=3, top_p=0.5), {0: 4 / 7, 1: 3 / 7}),
        (Draw(top_k=10, top_p=1.0), {0: 0.4, 1: 0.3, 2: 0.2, 3: 0.1}),
    ):
        tokens, logps = draw(p.log(), uniforms, IDENTITY)
        assert set(tokens.tolist()) == set(kept)
        for token, probability in kept.items():
            chosen = tokens == token
            assert float(chosen.float().mean()) == pytest.approx(probability, abs=0.04)
            torch.testing.assert_close(logps[chosen].exp(), torch.full((int(chosen.sum()),), probability))


def test_top_p_is_exact_where_the_top_candidates_do_not_reach_it() -> None:
    logits = torch.zeros(4, 5000)
    logits[:, 0] = 1.0
    tokens, logps = Draw(top_p=0.9)(logits, torch.tensor([0.0, 0.5, 0.99, 0.2], dtype=torch.float64), IDENTITY)
    total = 4999 + 2.718281828
    kept = 1
    mass = 2.718281828 / total
    while mass < 0.9:
        mass += 1 / total
        kept += 1
    assert logps[1].exp().item() == pytest.approx(1 / total / mass, rel=1e-3)
    assert int(tokens[0]) == 0
    assert kept > 2048


def test_greedy_takes_the_most_likely_and_gives_the_models_probability() -> None:
    logits = torch.randn(6, 50)
    tokens, logps = Draw(greedy=True, temperature=0.1)(logits, torch.zeros(6, dtype=torch.float64), IDENTITY)
    assert torch.equal(tokens, logits.argmax(1))
    torch.testing.assert_close(logps, logits.log_softmax(1).amax(1))


def test_uniforms_depend_on_seed_row_and_step() -> None:
    uniforms = RowUniforms(3, 10)
    rows = torch.tensor([7, 2])
    assert torch.equal(uniforms(4, rows), RowUniforms(3, 10)(4, torch.arange(10))[rows])
    assert not torch.equal(uniforms(4, rows), uniforms(5, rows))
    assert not torch.equal(uniforms(4, rows), RowUniforms(4, 10)(4, rows))


@pytest.mark.parametrize("settings", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Draw(**settings)  # type: ignore[arg-type]
