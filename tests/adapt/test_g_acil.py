from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from thrifty.adapt import accumulator
from thrifty.adapt.acil import ACIL
from thrifty.adapt.evaluation import run_stream
from thrifty.adapt.expansion import gaussian_kernel, random_directions, random_relu
from thrifty.adapt.g_acil import GACIL
from thrifty.adapt.head import EXPECTED_FAILED_CHECKS
from thrifty.adapt.ridge import balanced_weights, block_step, recursive_step
from thrifty.adapt.stream import class_incremental, overlapping
from thrifty.core.errors import InputError, RunError
from thrifty.core.method import load
from thrifty.core.seeding import generator

FIRST, SECOND = [[1.0, 0.0], [1.0, 1.0]], [[0.0, 2.0], [1.0, 0.0]]


def plain(**settings: Any) -> GACIL:
    return GACIL(**{"ridge": 1.0, "buffer_size": None} | settings)


def some(seed: int, rows: int = 40, width: int = 4, classes: int = 5) -> tuple[Any, Any]:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, width)), random.integers(0, classes, rows)


def joint(b: Any, y: Any, ridge: float) -> Any:
    """The joint solution by scikit-learn."""
    targets = (y[:, None] == np.unique(y)).astype(float)
    return Ridge(alpha=ridge, fit_intercept=False, solver="cholesky").fit(b, targets).coef_.T


@parametrize_with_checks(
    [
        GACIL(buffer_size=48),
        GACIL(buffer_size=48, solver="gram"),
        GACIL(buffer_size=None, bias=True, balance_classes=True),
        GACIL(buffer_size=32, buffer="gaussian", width=2.0, ridge=0.1),
        GACIL(buffer_size=48, compensation=0.5),
    ],
    expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS,
)
def test_it_is_a_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


def test_it_is_registered() -> None:
    assert load("g-acil") is GACIL


@pytest.mark.parametrize("solver", ["recursive", "gram"])
def test_worked_example(solver: Any) -> None:
    head = plain(solver=solver).partial_fit(FIRST, [0, 0])
    np.testing.assert_allclose(head.weights_, [[0.6], [0.2]], atol=1e-12)
    head.partial_fit(SECOND, [1, 0])
    np.testing.assert_allclose(head.weights_, [[0.73913, -0.086957], [0.043478, 0.347826]], atol=1e-6)


def test_worked_example_of_the_memory() -> None:
    head = plain().partial_fit(FIRST, [0, 0])
    np.testing.assert_allclose(head.ridges_[0].memory, [[0.4, -0.2], [-0.2, 0.6]], atol=1e-12)  # type: ignore[attr-defined]
    head.partial_fit(SECOND, [1, 0])
    expected = [[0.26087, -0.043478], [-0.043478, 0.173913]]
    np.testing.assert_allclose(head.ridges_[0].memory, expected, atol=1e-6)  # type: ignore[attr-defined]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batches=st.integers(1, 8),
    solver=st.sampled_from(["recursive", "gram"]),
    bias=st.booleans(),
    ridge=st.sampled_from([0.01, 1.0, 100.0]),
)
def test_any_order_and_partition_of_the_stream_gives_joint_ridge(
    seed: int, batches: int, solver: Any, bias: bool, ridge: float
) -> None:
    x, y = some(seed)
    head = GACIL(ridge=ridge, buffer_size=20, solver=solver, bias=bias)
    for part in np.array_split(np.random.default_rng(seed).permutation(len(x)), batches):
        head.partial_fit(x[part], y[part])
    # The expansion written out: PyTorch's linear layer begins uniform between plus and minus 1 / sqrt(D).
    directions = torch.empty(20, 4, dtype=torch.float64).uniform_(-0.5, 0.5, generator=generator(0, "buffer"))
    b = np.maximum(x @ directions.numpy().T, 0)
    if bias:
        b = np.hstack([b, np.ones((len(b), 1))])
    np.testing.assert_allclose(head.weights_, joint(b, y, ridge), rtol=0, atol=1e-8)
    assert head.counts_.tolist() == np.bincount(y)[np.unique(y)].tolist()


def test_hundreds_of_small_steps_keep_the_precision() -> None:
    x, y = some(1, rows=600, width=8)
    head = GACIL(ridge=0.1, buffer_size=60)
    for start in range(0, 600, 2):
        head.partial_fit(x[start : start + 2], y[start : start + 2])
    whole = GACIL(ridge=0.1, buffer_size=60, solver="gram").fit(x, y)
    np.testing.assert_allclose(head.weights_, whole.weights_, rtol=0, atol=1e-8)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 12), new=st.integers(0, 3))
def test_blocks_of_exposed_and_new_classes_are_the_step(seed: int, rows: int, new: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    b, before = torch.randn(rows, 6, generator=draw).double(), torch.randn(9, 6, generator=draw).double()
    memory = torch.linalg.inv(before.T @ before + torch.eye(6))
    exposed = torch.randn(6, 4, generator=draw).double()
    targets = torch.nn.functional.one_hot(torch.randint(4 + new, (rows,), generator=draw), 4 + new).double()
    factor, change = recursive_step(memory, torch.cat([exposed, exposed.new_zeros(6, new)], 1), b, targets)
    after = memory - factor.T @ factor
    torch.testing.assert_close(after, torch.linalg.inv(before.T @ before + b.T @ b + torch.eye(6)))
    old, fresh = block_step(after, exposed, b, targets[:, :4], targets[:, 4:])
    torch.testing.assert_close(torch.cat([old, fresh], 1), torch.cat([exposed, exposed.new_zeros(6, new)], 1) + change)


def test_without_the_label_gain_known_classes_learn_nothing_new(digits: Any) -> None:
    disjoint, blurry = class_incremental(*digits, 5, seed=0), overlapping(*digits, 5, blurry=0.5, seed=0)
    settings = {"ridge": 1.0, "buffer_size": 300}
    ours, theirs = (run_stream(kind(**settings), disjoint) for kind in (GACIL, ACIL))
    assert np.array_equal(ours.predictions, theirs.predictions)
    gain = run_stream(GACIL(**settings), blurry).final_accuracy - run_stream(ACIL(**settings), blurry).final_accuracy
    assert gain > 0.05


def test_accuracy_on_digits_is_joint_ridges(digits: Any) -> None:
    """As measured for the method: 98.6% with 1,000 random features, in disjoint and in blurry tasks."""
    x, y, test_x, test_y = digits
    parts = x / 16, y, test_x / 16, test_y
    for stream in (class_incremental(*parts, 5, seed=0), overlapping(*parts, 5, seed=0)):
        result = run_stream(GACIL(buffer_size=1000), stream, batch_size=128)
        assert result.final_accuracy == pytest.approx(0.986, abs=0.01)


def test_balance_weighs_classes_alike() -> None:
    """Fang et al.: the weighted ridge regression with weights in proportion to one over the class size, mean one."""
    x, y = some(2)
    counts = np.bincount(y)
    weights = (1 / counts) * len(counts) / (1 / counts).sum()
    np.testing.assert_allclose(balanced_weights(torch.from_numpy(counts).double()), weights)
    head = plain(balance_classes=True)
    for part in np.array_split(np.arange(len(x)), 3):
        head.partial_fit(x[part], y[part])
    targets = (y[:, None] == np.arange(5)).astype(float)
    expected = Ridge(alpha=1.0, fit_intercept=False).fit(x, targets, sample_weight=weights[y]).coef_.T
    np.testing.assert_allclose(head.weights_, expected, atol=1e-10)
    even = plain(balance_classes=True).fit(np.repeat(x[:5], 8, 0), np.tile(np.arange(5), 8))
    np.testing.assert_allclose(even.weights_, plain().fit(np.repeat(x[:5], 8, 0), np.tile(np.arange(5), 8)).weights_)


def test_gaussian_centres_come_from_the_first_examples() -> None:
    x, y = some(3)
    head = GACIL(buffer="gaussian", buffer_size=6, width=1.5).partial_fit(x[:10], y[:10]).partial_fit(x[10:], y[10:])
    centres = head.buffer_.numpy()  # type: ignore[union-attr]
    assert {row.tobytes() for row in centres} <= {row.tobytes() for row in x[:10]}
    kernel = np.exp(-((x[:, None] - centres) ** 2).sum(2) / (2 * 1.5**2))
    np.testing.assert_allclose(gaussian_kernel(torch.from_numpy(x), torch.from_numpy(centres), 1.5), kernel)
    np.testing.assert_allclose(head.weights_, joint(kernel, y, 1.0), atol=1e-8)
    assert len(GACIL(buffer="gaussian", buffer_size=99).fit(x[:7], y[:7]).weights_) == 7


def test_the_second_stream_learns_what_the_first_leaves_over_of_new_classes() -> None:
    x, y = some(4, rows=30, classes=2)
    head = GACIL(buffer_size=12, compensation=0.7).partial_fit(x, y)
    late, labels = x + 1, np.where(np.arange(30) < 20, 2, y)
    head.partial_fit(late, labels)
    directions = random_directions(4, 12, generator(0, "buffer")).numpy()
    relu, tanh = np.maximum(x @ directions.T, 0), np.tanh(x @ directions.T)
    left = (y[:, None] == np.arange(3)) - relu @ np.hstack([joint(relu, y, 1.0), np.zeros((12, 1))])
    late_relu, late_tanh = np.maximum(late @ directions.T, 0), np.tanh(late @ directions.T)
    main = joint(np.vstack([relu, late_relu]), np.concatenate([y, labels]), 1.0)
    late_left = (labels[:, None] == np.arange(3)) - late_relu @ main
    late_left[:, :2] = 0  # classes of the call before
    left[:, 2] = 0
    both, targets = np.vstack([tanh, late_tanh]), np.vstack([left, late_left])
    second = np.linalg.solve(both.T @ both + np.eye(12), both.T @ targets)
    np.testing.assert_allclose(head.decision_function(x), relu @ main + 0.7 * tanh @ second, atol=1e-8)


def test_columns_follow_sorted_classes_whatever_comes_first() -> None:
    x, _ = some(5, rows=6)
    head = plain().partial_fit(x[:3], ["m", "z", "m"]).partial_fit(x[3:], ["a", "m", "z"])
    assert head.classes_.tolist() == ["a", "m", "z"]
    names = np.array(["m", "z", "m", "a", "m", "z"])
    np.testing.assert_allclose(head.weights_, joint(x, names, 1.0), atol=1e-10)


def test_announced_classes_are_never_predicted_before_an_example() -> None:
    x, y = some(6, classes=2)
    head = plain().partial_fit(x, y, classes=[0, 1, 2])
    scores = head.decision_function(x)
    assert np.isneginf(scores[:, 2]).all()
    assert set(head.predict(x)) <= {0, 1}
    np.testing.assert_allclose(head.weights_[:, 2], 0)


def test_gram_can_change_its_ridge_and_the_recursion_can_not() -> None:
    x, y = some(7)
    head = plain(solver="gram").fit(x, y).set_params(ridge=50.0)
    np.testing.assert_allclose(head.weights_, joint(x, y, 50.0), atol=1e-10)
    with pytest.raises(InputError, match="the recursion began with ridge 1 and can't go on with 50"):
        plain().fit(x, y).set_params(ridge=50.0).predict(x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_torch_in_torch_out(dtype: torch.dtype) -> None:
    x, y = some(8)
    features = torch.from_numpy(x).to(dtype)
    head = GACIL(buffer_size=30).fit(features, torch.from_numpy(y))
    found = head.predict(features)
    assert isinstance(found, torch.Tensor)
    assert head.decision_function(features).dtype == torch.float64
    assert np.array_equal(
        found.numpy(), GACIL(buffer_size=30).fit(features.double().numpy(), y).predict(features.double().numpy())
    )


def test_chunks_do_not_change_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = some(9, rows=50)
    whole = GACIL(buffer_size=10, compensation=0.5).fit(x, y)
    monkeypatch.setattr(accumulator, "CHUNK", 30)
    parts = GACIL(buffer_size=10, compensation=0.5).fit(x, y)
    np.testing.assert_allclose(parts.decision_function(x), whole.decision_function(x), atol=1e-10)


@pytest.mark.parametrize(
    "settings",
    [
        {"buffer_size": 12},
        {"buffer_size": 12, "solver": "gram", "bias": True},
        {"buffer_size": 12, "balance_classes": True},
        {"buffer_size": 12, "buffer": "gaussian"},
        {"buffer_size": 12, "compensation": 1.0},
    ],
)
def test_save_and_load_and_go_on(settings: Any, tmp_path: Path) -> None:
    x, y = some(10)
    names = np.array([f"class {i}" for i in y])
    head = GACIL(**settings).partial_fit(x[:20], names[:20], classes=["class 9"])
    head.save(tmp_path / "head.safetensors")
    again = GACIL.load(tmp_path / "head.safetensors")
    assert again.get_params() == head.get_params()
    for one in (head, again):
        one.partial_fit(x[20:], names[20:])
    np.testing.assert_array_equal(again.decision_function(x), head.decision_function(x))
    assert again.classes_.tolist() == [*(f"class {i}" for i in range(5)), "class 9"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ridge": 0.0}, "ridge must be above 0, not 0"),
        ({"ridge": float("nan")}, "ridge must be above 0, not nan"),
        ({"buffer_size": 0}, "buffer_size must be at least 1, or None"),
        ({"solver": "recursiv"}, "solver 'recursiv' is unknown: did you mean 'recursive'"),
        ({"buffer": "rbf"}, "buffer 'rbf' is unknown"),
        ({"buffer": "gaussian"}, "needs a buffer_size"),
        ({"buffer": "gaussian", "buffer_size": 3, "width": 0.0}, "width must be above 0"),
        ({"compensation": 1.0}, "needs buffer='relu' with a buffer_size"),
        ({"compensation": -1.0, "buffer_size": 3}, "a weight of at least 0"),
        (
            {"compensation": 1.0, "buffer_size": 3, "balance_classes": True},
            "balance_classes and compensation exclude each other",
        ),
        ({"balance_classes": True, "buffer_size": 10**6}, r"for each of 2 classes, 16000 GB"),
    ],
)
def test_wrong_settings_are_named(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        plain(**settings).fit(FIRST, [0, 1])


def test_wrong_examples_are_refused_and_nothing_is_learnt() -> None:
    head = plain().partial_fit(FIRST, [0, 0])
    for x, y, said in (
        (torch.tensor([[1.0, torch.nan]]), [0], "row 0 holds NaN"),
        (torch.ones(1, 3), [0], "expects 2"),
        (np.ones((1, 2)), ["b"], "the classes so far are like"),
    ):
        with pytest.raises(InputError, match=said):
            head.partial_fit(x, y)
    np.testing.assert_allclose(head.weights_, [[0.6], [0.2]], atol=1e-12)
    with pytest.raises(NotFittedError):
        GACIL().predict(FIRST)


def test_a_recursion_without_precision_says_so() -> None:
    head = plain(ridge=1e-18)
    with pytest.raises(RunError, match="take a larger ridge, or solver='gram'"):  # noqa: PT012
        for _ in range(30):
            head.partial_fit(np.array([[1.0, 1.0], [1.0, 1.0 + 1e-9]]), [0, 1])


def test_random_relu_is_never_negative() -> None:
    assert (random_relu(torch.randn(5, 3), torch.randn(4, 3)) >= 0).all()
