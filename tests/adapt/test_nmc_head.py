from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from thrifty.adapt import accumulator
from thrifty.adapt.head import EXPECTED_FAILED_CHECKS
from thrifty.adapt.nmc import NMC, nearest_mean_scores, normalise_rows
from thrifty.core.errors import InputError
from thrifty.core.method import load

A, B = [[3.0, 4.0], [1.0, 0.0]], [[0.0, 2.0], [0.0, 5.0]]
QUERIES = np.array([[0.6, 0.8], [0.5, 0.8660254]])


def fitted(**settings: object) -> NMC:
    return NMC(**settings).fit(A + B, ["A", "A", "B", "B"])  # type: ignore[arg-type]


@parametrize_with_checks(
    [NMC(), NMC(metric="cosine"), NMC(renormalize_means=True), NMC(normalize=False)],
    expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS,
)
def test_scikit_learn_conventions(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def test_no_check_of_scikit_learn_is_excused() -> None:
    assert EXPECTED_FAILED_CHECKS == {}


def test_registered_under_its_id() -> None:
    assert load("nmc") is NMC
    assert {field.name: field.default for field in dataclasses.fields(NMC)} == {
        "normalize": True,
        "renormalize_means": False,
        "metric": "euclidean",
    }


def test_worked_example_means_are_not_renormalised() -> None:
    head = fitted()
    np.testing.assert_allclose(head.means_, [[0.8, 0.4], [0, 1]], atol=1e-15)
    assert np.linalg.norm(head.means_[0]) == pytest.approx(0.894, abs=5e-4)
    assert head.counts_.tolist() == [2, 2]


def test_worked_example_distances() -> None:
    means = fitted().means_
    distances = np.linalg.norm(QUERIES[:, None] - means, axis=-1)
    np.testing.assert_allclose(distances, [[0.447214, 0.632456], [0.554238, 0.517638]], atol=1e-6)
    assert fitted().predict(QUERIES).tolist() == ["A", "B"]
    renormalised = fitted(renormalize_means=True).means_[0]
    assert np.linalg.norm(QUERIES[1] - renormalised) == pytest.approx(0.575305, abs=1e-6)


def test_scores_are_minus_the_squared_distance_up_to_what_classes_share() -> None:
    z, means = torch.randn(20, 5, dtype=torch.float64), torch.randn(7, 5, dtype=torch.float64)
    distances = torch.cdist(z, means).square()
    scores = nearest_mean_scores(z, means)
    torch.testing.assert_close(scores, z.square().sum(1, keepdim=True) - distances)
    assert torch.equal(scores.argmax(1), distances.argmin(1))


def test_normalised_rows_have_length_one_and_zeros_stay() -> None:
    z = normalise_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))
    assert z.tolist() == [[0.6, 0.8], [0, 0]]


def test_order_of_operations_matters() -> None:
    """Averaging raw features is another classifier."""
    raw = fitted(normalize=False).means_
    np.testing.assert_allclose(raw, [[2, 2], [0, 3.5]])


def test_without_normalising_it_is_scikit_learns_nearest_centroid() -> None:
    random = np.random.default_rng(0)
    x, y, q = random.normal(size=(60, 4)), random.integers(0, 5, 60), random.normal(size=(200, 4))
    assert np.array_equal(NMC(normalize=False).fit(x, y).predict(q), NearestCentroid().fit(x, y).predict(q))


def test_cosine_and_renormalised_euclidean_agree() -> None:
    random = np.random.default_rng(1)
    x, y, q = random.normal(size=(60, 4)), random.integers(0, 5, 60), random.normal(size=(200, 4))
    cosine = NMC(metric="cosine").fit(x, y)
    assert np.array_equal(cosine.predict(q), NMC(renormalize_means=True).fit(x, y).predict(q))
    z = q / np.linalg.norm(q, axis=1, keepdims=True)
    np.testing.assert_allclose(cosine.decision_function(q), z @ cosine.means_.T, atol=1e-12)


def test_splitting_a_class_over_two_batches_is_the_same() -> None:
    head = NMC().partial_fit([A[0]], ["A"]).partial_fit(B, ["B", "B"]).partial_fit([A[1]], ["A"])
    np.testing.assert_array_equal(head.means_, fitted().means_)
    assert head.counts_.tolist() == fitted().counts_.tolist()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), batches=st.integers(1, 6))
def test_order_and_partition_of_the_stream_do_not_matter(seed: int, batches: int) -> None:
    random = np.random.default_rng(seed)
    x, y, q = random.normal(size=(40, 3)), random.integers(0, 5, 40), random.normal(size=(50, 3))
    whole = NMC().fit(x, y)
    streamed = NMC()
    for part in np.array_split(random.permutation(40), batches):
        streamed.partial_fit(x[part], y[part])
    np.testing.assert_allclose(streamed.means_, whole.means_, rtol=0, atol=1e-14)
    scores = np.sort(whole.decision_function(q), axis=1)
    clear = scores[:, -1] - scores[:, -2] > 1e-12
    assert np.array_equal(streamed.predict(q)[clear], whole.predict(q)[clear])


def test_merged_parts_are_the_whole() -> None:
    head = NMC().fit(A, ["A", "A"])
    head.accumulator_.merge(NMC().fit(B, ["B", "B"]).accumulator_)
    np.testing.assert_array_equal(head.means_, fitted().means_)


def test_announced_classes_are_never_predicted_before_an_example() -> None:
    head = NMC().partial_fit(A, ["A", "A"], classes=["A", "B", "C"])
    assert head.classes_.tolist() == ["A", "B", "C"]
    # The zero vector would win for this query if it took part.
    assert head.predict([[-1e-9, -1e-9]]).tolist() == ["A"]
    scores = head.decision_function(QUERIES)
    assert np.isneginf(scores[:, 1:]).all()
    assert np.isnan(head.means_[1]).all()
    assert head.partial_fit(B, ["B", "B"]).predict(QUERIES).tolist() == ["A", "B"]


def test_a_domain_moves_the_mean_of_a_known_class() -> None:
    head = NMC().partial_fit([[1.0, 0.0]], [0]).partial_fit([[0.0, 1.0]], [0])
    np.testing.assert_allclose(head.means_, [[0.5, 0.5]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_torch_in_torch_out(dtype: torch.dtype) -> None:
    x, y = torch.tensor(A + B).to(dtype), torch.tensor([7, 7, 3, 3])
    head = NMC().fit(x, y)
    found = head.predict(torch.from_numpy(QUERIES))
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [7, 3]
    scores = head.decision_function(torch.from_numpy(QUERIES))
    assert scores.dtype == torch.float64
    assert isinstance(head.predict(QUERIES), np.ndarray)
    assert head.score(torch.from_numpy(QUERIES), torch.tensor([7, 7])) == 0.5


def test_torch_with_string_labels_gives_numpy_labels() -> None:
    head = NMC().fit(torch.tensor(A + B), ["A", "A", "B", "B"])
    assert head.predict(torch.tensor(QUERIES)).tolist() == ["A", "B"]


def test_three_classes_score_in_columns_and_one_class_too() -> None:
    three = NMC().fit(torch.eye(3), torch.arange(3))
    assert three.decision_function(torch.eye(3)).shape == (3, 3)
    assert NMC().fit(np.eye(2), [4, 4]).decision_function(np.eye(2)).shape == (2, 1)


def test_chunks_do_not_change_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(50, 4)), random.integers(0, 3, 50)
    whole = NMC().fit(x, y)
    monkeypatch.setattr(accumulator, "CHUNK", 10)
    parts = NMC().fit(x, y)
    np.testing.assert_allclose(parts.means_, whole.means_, atol=1e-15)
    np.testing.assert_allclose(parts.decision_function(x), whole.decision_function(x), atol=1e-14)
    assert np.array_equal(parts.predict(x), whole.predict(x))


def test_classes_can_be_replaced_set_and_forgotten() -> None:
    head = fitted().replace_class("A", [[0.0, -2.0], [0.0, -1.0]])
    np.testing.assert_allclose(head.means_, [[0, -1], [0, 1]])
    head.set_mean("C", [1.0, 0.0], count=3)
    assert head.counts_.tolist() == [2, 2, 3]
    assert head.predict([[1.0, 0.1]]).tolist() == ["C"]
    assert head.forget_class("C").predict([[1.0, 0.1]]).tolist() == ["B"]
    for label in ("A", "B"):
        head.forget_class(label)
    with pytest.raises(InputError, match="no class has an example"):
        head.predict(QUERIES)


@pytest.mark.parametrize("labels", [["A", "A", "B", "B"], [1, 1, 0, 0], [True, True, False, False]])
def test_save_and_load(labels: list[object], tmp_path: Path) -> None:
    head = NMC(metric="cosine").fit(A + B, labels)
    head.save(tmp_path / "head.safetensors")
    again = NMC.load(tmp_path / "head.safetensors")
    assert again.get_params() == head.get_params()
    assert again.n_features_in_ == 2
    assert again.classes_.dtype == head.classes_.dtype
    assert np.array_equal(again.predict(QUERIES), head.predict(QUERIES))
    again.partial_fit(A, labels[:2])
    assert again.counts_.sum() == 6


def test_column_names_survive_saving(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(A + B, columns=["u", "v"])
    head = NMC().fit(frame, [0, 0, 1, 1])
    head.save(tmp_path / "head.safetensors")
    assert NMC.load(tmp_path / "head.safetensors").feature_names_in_.tolist() == ["u", "v"]


def test_state_of_an_empty_head_empties_another() -> None:
    head = fitted()
    head.load_state_dict(NMC().state_dict())
    with pytest.raises(NotFittedError):
        head.predict(QUERIES)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from thrifty.adapt.baselines import StreamingLDA

    path = tmp_path / "head.safetensors"
    StreamingLDA().fit(A + B, [0, 0, 1, 1]).save(path)
    with pytest.raises(InputError, match="holds StreamingLDA: load it with that class, not NMC"):
        NMC.load(path)
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        NMC.load(path)


def test_scores_can_be_calibrated() -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 3)), np.arange(60) % 3
    shares = CalibratedClassifierCV(NMC(), cv=2).fit(x, y).predict_proba(x)
    np.testing.assert_allclose(shares.sum(1), 1)


def test_rows_of_zeros_warn_and_stay_zero() -> None:
    with pytest.warns(UserWarning, match="1 of 2 feature rows are all zero"):
        head = NMC().fit([[0.0, 0.0], [2.0, 0.0]], [0, 0])
    np.testing.assert_allclose(head.means_, [[0.5, 0]])


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        (torch.tensor([[1.0, torch.nan]]), [0], "row 0 holds NaN or infinity"),
        (torch.zeros(2, 3), [0, 1], "expects 2"),
        (torch.ones(2, 2), [0], "2 feature rows came with 1 labels"),
        (torch.ones(0, 2), [], r"not \[0, 2\]"),
        (torch.ones(2), [0, 1], r"expects features \[N, D\], not \[2\]"),
        (torch.ones(1, 2), [0.5], "Unknown label type"),
        (np.array([[np.inf, 1.0]]), [0], "infinity"),
        (np.ones((2, 2)), [0], "inconsistent numbers of samples"),
        (np.ones((1, 3)), [0], "expecting 2 features"),
        (np.ones((0, 2)), [], "minimum of 1 is required"),
        (np.ones((1, 2)), ["z"], "classes so far are like"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_learnt(x: object, y: object, said: str) -> None:
    head = NMC().fit([[1.0, 0.0]], [0])
    with pytest.raises(ValueError, match=said):
        head.partial_fit(x, y)
    assert head.counts_.tolist() == [1]


def test_values_too_large_for_a_sum_are_still_finite() -> None:
    large = torch.full((1, 3), 2.0**127)
    assert NMC(normalize=False).fit(large, [0]).means_.tolist() == [[2.0**127] * 3]


def test_predicting_or_saving_before_learning() -> None:
    for action in (lambda: NMC().predict(QUERIES), lambda: NMC().classes_, lambda: NMC().save("never.safetensors")):
        with pytest.raises(NotFittedError):
            action()


def test_a_refused_first_fit_leaves_it_unfitted() -> None:
    head = NMC()
    with pytest.raises(ValueError, match="Unknown label type"):
        head.fit([[1.0]], [0.5])
    with pytest.raises(NotFittedError):
        head.predict([[1.0]])
    assert head.partial_fit([[1.0, 2.0]], [1]).predict([[1.0, 2.0]]).tolist() == [1]


def test_unknown_metric_is_named() -> None:
    with pytest.raises(InputError, match="metric 'cosin' is unknown: did you mean 'cosine'"):
        NMC(metric="cosin").fit(A, [0, 1])  # type: ignore[arg-type]
