"""How much of a forward pass is kept."""

from __future__ import annotations

import pytest
import torch
from tests.lm.conftest import make_model

from thrifty.align.base import Training
from thrifty.core.errors import InputError
from thrifty.lm import memory
from thrifty.lm.memory import activation_tokens, activations_of

CPU = torch.device("cpu")


def test_what_is_said_holds_within_and_bytes_given_come_first() -> None:
    model = make_model("llama")
    usual = activation_tokens(model, None, CPU)
    with activations_of(2**-10):
        inside = activation_tokens(model, None, CPU)
        assert activation_tokens(model, 2**21, CPU) == 2 * inside
        with activations_of(None):
            assert activation_tokens(model, None, CPU) == inside
    assert activation_tokens(model, None, CPU) == usual
    assert inside == pytest.approx(usual * 2**20 / memory._CPU_BYTES, abs=1)


def test_no_room_is_refused() -> None:
    with pytest.raises(InputError, match="activation_gib must be above 0, not 0"):
        Training(activation_gib=0.0)
