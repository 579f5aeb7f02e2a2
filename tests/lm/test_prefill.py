"""Reading prompts: the states are the model's own, whatever the prompts share and however they are cut."""

from __future__ import annotations

import random

import pytest
import torch
from tests.lm.conftest import FAST, VOCABULARY, make_model

from thrifty.lm import prefill
from thrifty.lm.backbone import backbone
from thrifty.lm.cache import RowCache
from thrifty.lm.prefill import PromptCache, read_prompts

CPU = torch.device("cpu")


def prompts(shared: int, lengths: tuple[int, ...] = (13, 9, 17, 9, 11)) -> list[list[int]]:
    draw = random.Random(shared)
    beginning = [draw.randrange(3, VOCABULARY) for _ in range(shared)]
    return [beginning + [draw.randrange(3, VOCABULARY) for _ in range(length - shared)] for length in lengths]


@torch.no_grad()
@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("shared", [0, 8])
@pytest.mark.parametrize("at_once", [1, 20, 1000])
def test_states_and_the_next_step_are_the_model_s_own(
    name: str, shared: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(prefill._TOKENS_AT_ONCE, "cpu", at_once)
    model = make_model(name)
    parts = backbone(model)
    assert parts is not None
    assert parts.decodes
    given, following = prompts(shared), torch.tensor([4, 9, 11, 30, 5])
    own = [model(torch.tensor([[*p, int(t)]])).logits[0, -2:] for p, t in zip(given, following, strict=True)]

    states, cache = read_prompts(parts, given, CPU)
    stepped = parts.step(following, RowCache(cache, torch.arange(5), 1))
    torch.testing.assert_close(parts.logits(states), torch.stack([row[0] for row in own]), rtol=0, atol=2e-4)
    torch.testing.assert_close(parts.logits(stepped), torch.stack([row[1] for row in own]), rtol=0, atol=2e-4)


@torch.no_grad()
def test_what_all_prompts_begin_with_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    parts = backbone(make_model("llama"))
    assert parts is not None
    whole = type(parts).read

    def counted(self: object, ids: torch.Tensor, *rest: object) -> torch.Tensor:
        read.append(len(ids))
        return whole(parts, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(type(parts), "read", counted)
    read_prompts(parts, prompts(8), CPU)
    assert read == [8, 59 - 5 * 8]
    read.clear()
    read_prompts(parts, prompts(3), CPU)
    assert read == [59], "too short a beginning is not worth a pass of its own"
    read.clear()
    read_prompts(parts, [[5] * 12] * 3, CPU)
    assert read == [11, 3], "the last token is left to each, whose state is asked for"
    read.clear()
    read_prompts(parts, [[5] * 12], CPU)
    assert read == [12]


def test_padding_in_the_cache_is_zero() -> None:
    parts = backbone(make_model("llama"))
    assert parts is not None
    with torch.no_grad():
        _, cache = read_prompts(parts, prompts(8), CPU)
    assert isinstance(cache, PromptCache)
    assert (cache.longest, sorted(cache.kept)) == (17, [0, 1])
    keys, values = cache.kept[1]
    assert keys.shape == values.shape == (5, 2, 17, 8)
    assert not keys[1, :, 9:].any()
    assert keys[1, :, :9].abs().amax(-1).gt(0).all()
