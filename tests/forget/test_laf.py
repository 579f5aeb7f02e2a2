from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.forget.conftest import stripes
from torch import nn
from transformers import ViTConfig, ViTForImageClassification

from thrifty import cli
from thrifty.core.errors import InputError, NonFiniteError
from thrifty.core.run import Run
from thrifty.forget.density import RepresentationVAE, fit_density, vae_loss
from thrifty.forget.evaluate import predict
from thrifty.forget.laf import LAF, bounded_error, extractor_unlearning, moved, representation_alignment
from thrifty.lm.sequences import from_rows
from thrifty.nets.vision import load_net, pixels

E_, E_HAT = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
KEPT, KEPT_BEFORE = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
GONE, GONE_BEFORE = torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, -1.0]])


def test_worked_example_of_the_bounded_error() -> None:
    torch.testing.assert_close(bounded_error(E_HAT, E_), torch.tensor([1.395612, 2.225541]), atol=2e-6, rtol=0)
    assert float(bounded_error(E_HAT, E_).sum()) == pytest.approx(3.621153, abs=2e-6)
    loss = extractor_unlearning(E_HAT, E_, E_HAT[:1], E_[:1])
    assert float(loss) == pytest.approx(2.225541, abs=2e-6), "what is forgotten counts negatively"


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, -4.040490), (5.0, -1.580981), (20.0, -1.209867)])
def test_worked_example_of_the_alignment(temperature: float, expected: float) -> None:
    torch.testing.assert_close(moved(KEPT, KEPT_BEFORE), torch.tensor([0.0, 0.292893]), atol=1e-6, rtol=0)
    torch.testing.assert_close(moved(GONE, GONE_BEFORE), torch.tensor([0.292893, 2.0]), atol=1e-6, rtol=0)
    found = representation_alignment(KEPT, KEPT_BEFORE, GONE, GONE_BEFORE, temperature)
    assert float(found) == pytest.approx(expected, abs=2e-6)


def test_the_distance_is_that_of_the_cosine_embedding_loss() -> None:
    torch.manual_seed(0)
    e, before = torch.randn(7, 5), torch.randn(7, 5)
    expected = nn.CosineEmbeddingLoss(reduction="none")(e, before, torch.ones(7))
    torch.testing.assert_close(moved(e, before), expected)


rows = st.integers(1, 9)


@given(rows, rows, st.integers(1, 6), st.integers(0, 99))
def test_losses_do_not_know_the_order_of_rows_and_are_sums_over_them(a: int, b: int, d: int, seed: int) -> None:
    torch.manual_seed(seed)
    r, r0, r1, f, f0, f1 = (torch.randn(n, d, dtype=torch.float64) for n in (a, a, a, b, b, b))
    i, j = torch.randperm(a), torch.randperm(b)
    unlearning, alignment = extractor_unlearning(r1, r, f1, f), representation_alignment(r, r0, f, f0, 3.0)
    torch.testing.assert_close(extractor_unlearning(r1[i], r[i], f1[j], f[j]), unlearning)
    torch.testing.assert_close(representation_alignment(r[i], r0[i], f[j], f0[j], 3.0), alignment)
    twice = extractor_unlearning(r1.repeat(2, 1), r.repeat(2, 1), f1.repeat(2, 1), f.repeat(2, 1))
    torch.testing.assert_close(twice, 2 * unlearning)
    assert ((bounded_error(r1, r) >= 1) & (bounded_error(r1, r) < math.e)).all()
    assert ((moved(r, r0) >= -1e-9) & (moved(r, r0) <= 2 + 1e-9)).all()


def test_the_alignment_draws_what_is_kept_back_and_pushes_the_rest_away() -> None:
    torch.manual_seed(0)
    kept, gone = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    kept_before, gone_before = torch.randn(6, 4), torch.randn(5, 4)
    representation_alignment(kept, kept_before, gone, gone_before, 2.0).backward()
    with torch.no_grad():
        assert (moved(kept - 0.01 * kept.grad, kept_before) < moved(kept, kept_before)).all()
        assert (moved(gone - 0.01 * gone.grad, gone_before) > moved(gone, gone_before)).all()


def test_the_autoencoder_s_loss_of_known_codes() -> None:
    mean, deviation = torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    # Divergence of the first row: (1 + 0)/2 + (4 - 1 - ln 4)/2; of the second: 0.
    expected = (0.5 + (3 - math.log(4)) / 2) / 2
    loss, divergence = vae_loss(E_HAT, E_, mean, deviation, 0.025)
    assert float(divergence) == pytest.approx(expected, abs=1e-6)
    assert float(loss) == pytest.approx(4.5 / 2 + 0.025 * expected, abs=1e-6)


def test_an_autoencoder_knows_its_own_representations(tmp_path) -> None:
    torch.manual_seed(0)
    own, strange = torch.rand(1, 12) + 0.05 * torch.randn(300, 12), torch.rand(300, 12)
    with Run(tmp_path / "run") as run:
        vae = fit_density(own, run, latent=3, epochs=40)
    assert not any(parameter.requires_grad for parameter in vae.parameters())
    assert bounded_error(vae(own)[0], own).mean() < bounded_error(vae(strange)[0], strange).mean() - 0.2
    assert not torch.equal(vae(own)[0], vae(own)[0]), "codes are drawn in evaluation mode too"


def test_a_sigmoid_reaches_no_feature_above_one_and_a_linear_decoder_does() -> None:
    torch.manual_seed(0)
    e = torch.full((4, 6), 50.0)
    assert RepresentationVAE(6, 2)(e)[0].max() <= 1
    assert isinstance(RepresentationVAE(6, 2, "linear").decoder[-1], nn.Identity)


@pytest.fixture
def problem(net):
    x, y = stripes()
    x, y = pixels(x), torch.from_numpy(y)
    return load_net(net / "net"), (x[y == 1], y[y == 1]), (x[y != 1], y[y != 1])


FAST = LAF(steps=60, unlearning_rate=1e-3, alignment_rate=2e-3, density_epochs=3)


def accuracy(model, data):
    return float(predict(model, data).correct.mean())


def test_a_class_is_forgotten_without_labels_and_the_rest_is_kept(problem, tmp_path) -> None:
    model, gone, kept = problem
    before = copy.deepcopy(model.state_dict())
    assert accuracy(model, gone) == accuracy(model, kept) == 1
    with Run(tmp_path / "run") as run:
        forgetful = FAST.forget(model, gone[0], kept[0], run)
    assert accuracy(forgetful, gone) < 0.2
    assert accuracy(forgetful, kept) > 0.9
    assert not FAST.needs_labels
    after = forgetful.state_dict()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    unmoved = {name for name in before if torch.equal(before[name], after[name])}
    buffers = {name for name, _ in model.named_buffers()}
    assert unmoved == buffers | {"head.weight", "head.bias"}, "neither loss touches the head or the statistics"
    assert all(p.requires_grad and p.grad is None for p in forgetful.parameters())


def test_an_interrupted_run_ends_with_the_same_weights(problem, tmp_path, monkeypatch) -> None:
    model, gone, kept = problem
    method = LAF(steps=8, unlearning_rate=1e-3, alignment_rate=1e-3, density_epochs=1, repair_epochs=1)
    with Run(tmp_path / "whole") as run:
        whole = method.forget(model, gone[0], kept, run)

    def torn(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, Run(tmp_path / "torn") as run:
        patched.setattr(LAF, "_repair", torn)
        with pytest.raises(KeyboardInterrupt):
            method.forget(model, gone[0], kept, run)
    monkeypatch.setattr("thrifty.forget.laf.extractor_unlearning", lambda *_: pytest.fail("unlearnt again"))
    with Run(tmp_path / "torn") as run:
        torn_model = method.forget(model, gone[0], kept, run)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), torn_model.parameters(), strict=True))


def test_repair_trains_the_head_alone_on_some_labels(problem, tmp_path) -> None:
    model, gone, (x, y) = problem
    method = LAF(
        1, unlearning_rate=0, alignment_rate=1e-12, density_epochs=1, repair_epochs=60, repair_rate=0.02,
        repair_share=0.5,
    )  # fmt: skip
    assert method.needs_labels
    spoilt = copy.deepcopy(model)
    with torch.no_grad():
        spoilt.head.weight.copy_(spoilt.head.weight[[1, 2, 3, 0]])
    assert accuracy(spoilt, (x, y)) < 0.5
    with Run(tmp_path / "run") as run:
        repaired = method.forget(spoilt, gone[0], (x, y), run)
    assert accuracy(repaired, (x, y)) > 0.9
    torch.testing.assert_close(repaired.stem.weight, spoilt.stem.weight, atol=1e-9, rtol=0)
    few = (x[:12], y[:12])
    with Run(tmp_path / "few") as run:
        assert accuracy(method.forget(spoilt, gone[0], x, run, repair_set=few), few) > 0.9


def test_each_loss_can_be_left_out(problem, tmp_path) -> None:
    model, gone, kept = problem
    logged = {}
    for name in ("unlearning", "alignment"):
        with Run(tmp_path / name) as run:
            LAF(2, density_epochs=1, **{f"{name}_rate": 0.0}).forget(model, gone, kept, run)
        logged[name] = (tmp_path / name / "unlearning" / "metrics.jsonl").read_text()
    assert "alignment_loss" in logged["unlearning"]
    assert "unlearning_loss" not in logged["unlearning"]
    assert not (tmp_path / "unlearning" / "density-retain").exists()
    assert "alignment_loss" not in logged["alignment"]


def test_a_vit_in_bfloat16_forgets_in_float32_and_comes_back_as_it_was(tmp_path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=16
    )
    model = ViTForImageClassification(config).to(torch.bfloat16)
    model.vit.embeddings.requires_grad_(False)
    gone, kept = torch.randn(6, 3, 32, 32), torch.randn(10, 3, 32, 32)
    with Run(tmp_path / "run") as run:
        changed = LAF(2, unlearning_rate=0.01, alignment_rate=0.01, density_epochs=1).forget(model, gone, kept, run)
    assert isinstance(changed, ViTForImageClassification)
    assert {p.dtype for p in changed.parameters()} == {torch.bfloat16}
    before = dict(model.named_parameters())
    for name, parameter in changed.named_parameters():
        assert parameter.requires_grad == before[name].requires_grad
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name])
    assert not torch.equal(changed.vit.layernorm.weight, model.vit.layernorm.weight)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"unlearning_rate": -1.0}, "unlearning_rate must be at least 0"),
        ({"alignment_rate": math.nan}, "alignment_rate must be at least 0"),
        ({"repair_share": 0.0}, "repair_share must be above 0"),
        ({"unlearning_rate": 0.0, "alignment_rate": 0.0}, "nothing would change"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said) -> None:
    with pytest.raises(InputError, match=said):
        LAF(**settings)


def test_wrong_data_are_named(problem, tmp_path) -> None:
    model, gone, (x, y) = problem
    texts = from_rows([([1, 2, 3], [False, True, True])])
    spoilt = x.clone()
    spoilt[5, 0, 0, 0] = math.nan
    for number, (forget_set, retain_set, method, said) in enumerate(
        [
            (gone[0][:0], x, FAST, "the forget set is empty"),
            (texts, texts, FAST, "token sequences of a language model"),
            (gone[0], spoilt, FAST, "example 5 holds NaN"),
            (gone[0], x, LAF(1, repair_epochs=1), "no labels"),
            (gone[0], (x, y + 9), LAF(1, repair_epochs=1), "is no class of the model, which has 4"),
            (gone[0][:, :, 0], x, FAST, "can't take inputs of this kind"),
        ]
    ):
        with Run(tmp_path / str(number)) as run, pytest.raises(InputError, match=said):
            method.forget(model, forget_set, retain_set, run)
    frozen = copy.deepcopy(model).requires_grad_(False)
    frozen.head.requires_grad_(True)
    with Run(tmp_path / "frozen") as run, pytest.raises(InputError, match="unfreeze some"):
        FAST.forget(frozen, gone[0], x, run)
    with torch.no_grad():
        model.stem.weight.fill_(math.inf)
    with Run(tmp_path / "infinite") as run, pytest.raises(NonFiniteError):
        FAST.forget(model, gone[0], x, run)


def test_the_command_forgets_a_class_of_the_user_s_network(net, tmp_path, capsys) -> None:
    command = ["run", "laf", "--model", str(net / "net"), "--data", str(net / "train.npz"), "--forget-class", "1"]
    settings = ["--steps", "60", "--unlearning-rate", "1e-3", "--alignment-rate", "2e-3", "--density-epochs", "3"]
    assert cli.main([*command, *settings, "--relearn", "2", "--out", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["table"][1]["relearn_steps"] == 2
    x, y = stripes()
    found = accuracy(load_net(tmp_path / "out" / "model"), (pixels(x), torch.from_numpy(y)))
    assert 0.65 < found < 0.8, "three of the four classes are left"
    capsys.readouterr()
    assert cli.main([*command, "--head", "haed", "--out", str(tmp_path / "wrong")]) == 2
    assert "has no layer 'haed': did you mean 'head'?" in capsys.readouterr().err
