"""Examples that are both to be forgotten and to be kept are told of, whatever they are kept in."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from thrifty.core.run import Run
from thrifty.forget.dmm import DMM
from thrifty.forget.laf import LAF
from thrifty.forget.npo import NPO
from thrifty.forget.overlap import warn_of_overlap
from thrifty.forget.skill_unlearning import SkillUnlearning
from thrifty.lm.sequences import from_rows

X = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
TEXTS = from_rows([([5, 6, 7 + n], [False, True, True]) for n in range(9)])
# The same beside a longer row, so that it is padded.
PADDED = from_rows([([5, 6, 9], [False, True, True]), ([1, 2, 3, 4], [False, True, True, True])])
SAID = "1 of the {} examples to forget are in the retain set too (the first is example {})"


@pytest.mark.parametrize(
    ("gone", "kept", "said"),
    [
        (X[:4], X[3:], SAID.format(4, 3)),
        ((X[:4], torch.arange(4)), (X[3:], torch.zeros(6).long()), SAID.format(4, 3)),
        ([{"a": X[:4], "b": X[:4]}], [{"a": X[3:], "b": X[3:]}], SAID.format(4, 3)),
        ([{"a": X[:4], "b": X[:4]}], [{"a": X[3:], "b": X[:6]}], ""),
        (X[:4].bfloat16(), X[3:].bfloat16(), SAID.format(4, 3)),
        (TEXTS, PADDED, SAID.format(9, 2)),
        (X[:3], X[3:], ""),
    ],
)
def test_shared_examples_are_counted(gone: Any, kept: Any, said: str, caplog: pytest.LogCaptureFixture) -> None:
    warn_of_overlap(gone, kept)
    assert said in caplog.text
    assert bool(caplog.text) == bool(said)


class ToldError(Exception):
    """Ends a method where it has looked."""


@pytest.mark.parametrize(
    ("module", "method", "sets"),
    [
        ("laf", LAF(), (X[:4], X[3:])),
        ("matching", DMM(), ((X[:4], torch.arange(4)), (X[3:], torch.arange(6)))),
        ("text_training", NPO(retain="kl"), (TEXTS, PADDED)),
        ("skill_unlearning", SkillUnlearning(abstain=False), (TEXTS, PADDED)),
    ],
)
def test_every_method_that_takes_both_sets_looks(
    module: str, method: Any, sets: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.forget.test_models import llama

    def tell(*_: Any) -> None:
        raise ToldError

    monkeypatch.setattr(f"thrifty.forget.{module}.warn_of_overlap", tell)
    with Run(tmp_path / "run", device="cpu") as run, pytest.raises(ToldError):
        method.forget(llama(), *sets, **({} if module == "skill_unlearning" else {"run": run}))
