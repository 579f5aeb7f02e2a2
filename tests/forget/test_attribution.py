from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, Ridge
from torch import nn

from thrifty.core.errors import InputError
from thrifty.forget.attribution.datamodels import Datamodels
from thrifty.forget.attribution.projection import Projection
from thrifty.forget.attribution.regression import (
    largest_penalty,
    lasso,
    lasso_path,
    least_squares,
    ridge,
)
from thrifty.forget.attribution.trak import Trak, features, scale, trak
from thrifty.forget.baselines import Retrain
from thrifty.forget.data import Labelled
from thrifty.forget.klom import margins
from thrifty.forget.retraining import Retraining, cross_entropies, outputs, subsets


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def net(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def data():
    generator = draw(1)
    y = torch.arange(24) % 3
    return Labelled(torch.randn(3, 4, generator=generator)[y] * 2 + torch.randn(24, 4, generator=generator), y)


@pytest.fixture(scope="module")
def linear():
    masks = subsets(60, 12, 0.5, draw()).float()
    effects = torch.randn(12, 5, generator=draw(2))
    return masks, effects, masks @ effects + torch.randn(5, generator=draw(3))


def test_parts_are_of_one_size_and_differ():
    masks = subsets(50, 20, 0.25, draw())
    assert masks.sum(1).unique().tolist() == [5]
    assert len(masks.unique(dim=0)) > 45
    with pytest.raises(InputError, match="is no part of them"):
        subsets(3, 10, 0.01, draw())


def test_effects_that_are_linear_are_found(linear):
    masks, effects, said = linear
    # Parts of one size tell effects apart from each other, not from a constant: what is found sums to zero.
    expected = effects - effects.mean(0)
    torch.testing.assert_close(least_squares(masks, said).coefficients, expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ridge(masks, said, path=(1e-6, 1.0)).coefficients, expected, atol=1e-3, rtol=1e-3)


def test_ridge_is_scikit_learn_s(linear):
    masks, _, said = linear
    noisy = said + torch.randn(said.shape, generator=draw(4))
    fit = ridge(masks, noisy)
    expected = Ridge(alpha=float(fit.penalty) * len(masks)).fit(masks.numpy(), noisy.numpy()).coef_.T
    np.testing.assert_allclose(fit.coefficients, expected, atol=1e-4)


def test_the_ridge_penalty_has_the_least_leave_one_out_error(linear):
    masks, _, said = linear
    noisy = (said + 3 * torch.randn(said.shape, generator=draw(5))).numpy()
    path = (1e-4, 1e-2, 1e-1, 1.0)
    largest = float(torch.linalg.matrix_norm(masks - masks.mean(0), 2)) ** 2

    def error(alpha):
        rest = [np.delete(np.arange(len(masks)), i) for i in range(len(masks))]
        fits = [Ridge(alpha=alpha).fit(masks[keep].numpy(), noisy[keep]) for keep in rest]
        return np.mean([(fit.predict(masks[i : i + 1].numpy())[0] - noisy[i]) ** 2 for i, fit in enumerate(fits)])

    # Leaving one out moves the mean as well, which the closed form counts too.
    expected = min(path, key=lambda share: error(share * largest))
    assert float(ridge(masks, torch.from_numpy(noisy), path).penalty) * 60 == pytest.approx(
        expected * largest, rel=1e-4
    )


def test_lasso_is_scikit_learn_s(linear):
    masks, _, said = linear
    noisy = said + torch.randn(said.shape, generator=draw(6))
    most = largest_penalty(masks, noisy)
    found = lasso_path(masks, noisy, torch.stack([most, 0.3 * most]), iterations=500)
    assert found[0].abs().max() < 1e-5
    for output in range(5):
        expected = Lasso(alpha=float(0.3 * most[output]), tol=1e-8, max_iter=10_000).fit(masks, noisy[:, output]).coef_
        np.testing.assert_allclose(found[1][:, output], expected, atol=1e-4)


def test_the_lasso_penalty_is_each_output_s_own(linear):
    masks, effects, said = linear
    noise = torch.randn(len(masks), 1, generator=draw(7))
    fit = lasso(masks, torch.cat([said[:, :1], noise], 1), iterations=300)
    expected = effects[:, 0] - effects[:, 0].mean()
    assert torch.corrcoef(torch.stack([fit.coefficients[:, 0], expected]))[0, 1] > 0.99
    assert fit.coefficients[:, 1].norm() < 0.8 * least_squares(masks, noise).coefficients.norm()
    assert fit.penalty.shape == (2,)


def test_worked_example_of_trak():
    phi, query = torch.tensor([[1.0, 0], [0, 1], [1, 1]]), torch.tensor([[2.0, 1]])
    found = trak(phi, query)[:, 0]
    torch.testing.assert_close(found, torch.tensor([1.0, 0, 1]))
    torch.testing.assert_close(found * torch.tensor([0.5, 0.2, 0.1]), torch.tensor([0.5, 0, 0.1]))


def test_the_scale_is_that_of_least_squares():
    actual = torch.tensor([[1.0, 5], [3, 5], [2, 8]])
    assert float(scale(2 * actual + 7, actual)) == pytest.approx(0.5)
    assert float(scale(torch.zeros(3, 2), actual)) == 0


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
def test_projection_keeps_inner_products_and_is_the_same_each_time(kind):
    generator = draw(8)
    gradients = {"a": torch.randn(4, 7, 5, generator=generator), "b": torch.randn(4, 11, generator=generator)}
    project = Projection(8192, kind, seed=3)
    found = project(gradients)
    flat = torch.cat([gradients["a"].flatten(1), gradients["b"]], 1)
    torch.testing.assert_close(found @ found.mT, flat @ flat.mT, atol=4.0, rtol=0.05)
    torch.testing.assert_close(project({k: v[1:2] for k, v in gradients.items()}), found[1:2], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(Projection(8192, kind, seed=4)(gradients), found)


def test_projection_in_parts_has_independent_parts(monkeypatch):
    monkeypatch.setattr("thrifty.forget.attribution.projection._ROOM", 32)  # four rows at a time
    ones = {"a": torch.ones(1, 16)}
    found = torch.cat([Projection(8, seed=seed)(ones) for seed in range(200)])
    # Entries are sums of 16 signs over sqrt(8): variance 2; parts that were equal would have four times that.
    assert float(found.square().mean()) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("each_logit", [False, True])
def test_features_are_gradients_of_each_example(data, each_logit):
    model = net(0).eval()
    found = features(
        model, data, lambda g: torch.cat([part.flatten(1) for part in g.values()], 1), each_logit=each_logit
    )
    says = model(data.x)
    wanted = says.flatten() if each_logit else margins(says, data.y)
    weights = list(model.parameters())
    for row in (0, 5, len(wanted) - 1):
        expected = torch.autograd.grad(wanted[row], weights, retain_graph=True)
        torch.testing.assert_close(found[row], torch.cat([part.flatten() for part in expected]), atol=1e-5, rtol=1e-4)


def test_models_trained_at_once_are_those_trained_alone(data):
    rows = torch.stack([torch.arange(16), torch.arange(8, 24)])
    stack = Retraining(net, epochs=3, batch_size=5).train(data, rows, [3, 4], torch.device("cpu"))
    for number, seed in enumerate((3, 4)):
        alone = Retrain(lambda seed=seed: net(seed), epochs=3, batch_size=5, seed=seed).train(
            data.rows(rows[number]), torch.device("cpu")
        )
        torch.testing.assert_close(outputs(stack, data)[number], outputs(alone, data), atol=1e-3, rtol=1e-3)


def test_cross_entropies_are_each_model_s(data):
    logits = torch.randn(2, 24, 3)
    expected = torch.stack([nn.functional.cross_entropy(each, data.y) for each in logits])
    torch.testing.assert_close(cross_entropies(logits, data.y), expected)
    torch.testing.assert_close(cross_entropies(logits, data.y.expand(2, 24)), expected)


@pytest.mark.parametrize(
    "estimator",
    [
        Datamodels(models=160, regression="least-squares", epochs=6, batch_size=8),
        Datamodels(models=160, epochs=6, batch_size=8),
        Trak(models=40, dimensions=12, epochs=6, batch_size=8),
    ],
)
def test_an_example_supports_its_own_class(data, estimator):
    model = Retrain(lambda: net(0), epochs=20, batch_size=8).train(data, torch.device("cpu"))
    everything = torch.arange(24)
    effects = estimator.attribute(model, data, data, everything, own=everything, draw=draw(), fresh=net)
    assert effects.shape == (24, 24, 3)
    own = effects[everything, everything, data.y]
    assert own.mean() > 0
    assert own.mean() > effects[:, everything, data.y].mean() * 3
    one = estimator.attribute(model, data, data, torch.tensor([3]), own=everything, draw=draw(), fresh=net)
    torch.testing.assert_close(one[0], effects[3], atol=1e-4, rtol=1e-3)


def test_outputs_of_trained_models_are_kept(data, tmp_path, monkeypatch):
    estimator = Datamodels(models=40, regression="ridge", epochs=1, batch_size=8)
    first = estimator.attribute(net(0), data, data, torch.arange(3), draw=draw(), directory=tmp_path)
    assert len(list(tmp_path.glob("models-*.safetensors"))) == 2
    with monkeypatch.context() as without:
        without.setattr(Retraining, "train", lambda *_: pytest.fail("trained again"))
        again = estimator.attribute(net(0), data, data, torch.arange(3), draw=draw(), directory=tmp_path)
    assert torch.equal(first, again)
    other = estimator.attribute(net(0), data, data, torch.arange(3), draw=draw(9), directory=tmp_path)
    assert not torch.equal(first, other)


def test_several_checkpoints_are_averaged(data):
    models, everything = [net(0), net(1)], torch.arange(24)
    plain = Trak(models=0, dimensions=12)
    found = plain.attribute(models, data, data, everything, draw=draw())
    project = Projection(12)
    phis = [features(model, data, project) for model in models]
    asked = [features(model, data, project, each_logit=True) for model in models]
    ridges = [1e-3 * float(phi.square().sum()) / 12 for phi in phis]
    taus = [trak(*each) for each in zip(phis, asked, ridges, strict=True)]
    doubt = torch.stack([1 - outputs(m, data).softmax(-1)[everything, data.y] for m in models])
    expected = torch.stack(taus).mean(0) * doubt.mean(0)[:, None]
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Datamodels(models=2), "at least 4 models"),
        (lambda: Datamodels(share=1.0), "share must be between 0 and 1"),
        (lambda: Trak(dimensions=0), "dimensions must be at least 1"),
        (lambda: Trak(models=1), "models 0 or at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(make, said):
    with pytest.raises(InputError, match=said):
        make()


def test_wrong_data_are_named(data):
    with pytest.raises(InputError, match="no labels"):
        Trak(models=0).attribute(net(0), data.x, data, torch.arange(1), draw=draw())
    with pytest.raises(InputError, match="label 7 of example 0 is no class"):
        Trak(models=0).attribute(net(0), (data.x, data.y + 7), data, torch.arange(1), draw=draw())
    with pytest.raises(InputError, match="labelled inputs"):
        Datamodels(models=4).attribute(net(0), data.x, data, torch.arange(1), draw=draw())


def test_a_model_that_can_not_run_several_at_once_is_told_what_to_do(data):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) if x.sum().item() > 0 else -self.layer(x)

    with pytest.raises(InputError, match=r"can't run several at once.*attribution='trak' and models=0"):
        Datamodels(models=4).attribute(Branching(), data, data, torch.arange(1), draw=draw())
