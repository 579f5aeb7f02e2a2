from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from thrifty.adapt.g_acil import GACIL
from thrifty.adapt.nmc import NMC
from thrifty.bench import _adapt_streams, adapt, load_bench
from thrifty.bench._adapt_plain import PlainRanPAC, PlainRecursion, PlainSimpleCIL


def test_the_plain_recursion_learns_what_the_head_does() -> None:
    x, y = torch.randn(30, 5), torch.randint(3, (30,))
    head, plain = GACIL(ridge=0.5, buffer_size=None), PlainRecursion(5, 0.5)
    for part in torch.arange(30).split(7):
        head.partial_fit(x[part], y[part], classes=range(3))
        plain.fit(x[part], torch.nn.functional.one_hot(y[part], 3))
    np.testing.assert_allclose(head.weights_, plain.weight, atol=1e-9)


def test_the_plain_means_predict_what_the_head_does() -> None:
    x, y = torch.randn(40, 6), torch.arange(40) % 4
    plain = PlainSimpleCIL(6)
    plain.session([(x[:20], y[:20] % 2), (x[20:], y[20:] % 2)])
    plain.session([(x, y % 2 + 2)])
    head = NMC(normalize=False, metric="cosine").fit(torch.cat([x, x]), torch.cat([y % 2, y % 2 + 2]))
    scores = head.decision_function(x).topk(2).values
    clear = (scores[:, 0] - scores[:, 1]) > 1e-5
    assert torch.equal(plain.predict([x])[clear], head.predict(x)[clear])


def test_the_plain_projection_chooses_a_ridge_on_held_out_rows() -> None:
    torch.manual_seed(0)
    centres = torch.randn(3, 8)
    y = torch.arange(60) % 3
    x = centres[y] + 0.1 * torch.randn(60, 8)
    plain = PlainRanPAC(8, 40, 3)
    plain.session([(x[:30], y[:30]), (x[30:], y[30:])])
    assert (plain.predict([x]) == y).float().mean() == 1


def test_rows_of_the_parts_that_exist_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DIMENSION": 8, "CLASSES": 4, "SESSIONS": 2, "EACH": 4, "SIZE": 16, "STEP": 4}.items():
        monkeypatch.setattr(_adapt_streams, name, value)
    monkeypatch.setattr(_adapt_streams, "BEFORE", 40)
    monkeypatch.setattr(adapt, "_PARTS", (("_adapt_streams", "stream_rows"), ("_no_such_part", "rows")))
    rows: list[dict[str, Any]] = load_bench("adapt")(quick=True)
    assert len(rows) == 4
    assert all(row["ratio"] > 0 and {"name", "target", "ok"} <= row.keys() for row in rows)
