from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.utils.estimator_checks import parametrize_with_checks

from thrifty.adapt.evaluation import run_stream
from thrifty.adapt.head import EXPECTED_FAILED_CHECKS
from thrifty.adapt.nmc import NMC
from thrifty.adapt.protocols import few_shot_incremental
from thrifty.adapt.stream import Stream
from thrifty.adapt.teen import TEEN, calibrate_prototypes, cosine_scores, similarity_weights
from thrifty.adapt.teen_tuning import choose_base_weight
from thrifty.core.errors import InputError
from thrifty.core.method import load

BASE, NEW = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).double(), torch.tensor([[3.0, 4.0]]).double()


@parametrize_with_checks([TEEN()], expected_failed_checks=lambda _: EXPECTED_FAILED_CHECKS)
def test_it_is_a_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


def test_it_is_registered() -> None:
    assert load("teen") is TEEN


@pytest.mark.parametrize(
    ("tau", "base_weight", "expected"),
    [(16.0, 0.5, [0.320364, 0.899585]), (16.0, 0.1, [0.544073, 0.819917]), (1.0, 0.5, [0.616746, 0.786875])],
)
def test_worked_example(tau: float, base_weight: float, expected: list[float]) -> None:
    found = calibrate_prototypes(NEW, BASE, tau=tau, base_weight=base_weight)
    np.testing.assert_allclose(found, [expected], atol=1e-6)
    head = TEEN(tau=tau, base_weight=base_weight).fit_base(BASE, ["a", "b"]).partial_fit(NEW, ["n"])
    np.testing.assert_allclose(head.prototypes_, [[1, 0], [0, 1], expected], atol=1e-6)


def test_worked_example_of_the_weights() -> None:
    unit = NEW / 5
    np.testing.assert_allclose(similarity_weights(unit, torch.eye(2).double(), 16.0), [[0.039166, 0.960834]], atol=1e-6)
    np.testing.assert_allclose(similarity_weights(unit, torch.eye(2).double(), 1.0), [[0.450166, 0.549834]], atol=1e-6)


def test_the_mixture_is_scaled_to_length_one_before_it_is_mixed_in() -> None:
    found = calibrate_prototypes(NEW, BASE, tau=1.0, base_weight=0.5)
    assert not np.allclose(found, [[0.525, 0.675]], atol=1e-2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), weight=st.floats(0, 1), tau=st.floats(0.1, 50))
def test_equation_term_by_term(seed: int, weight: float, tau: float) -> None:
    random = np.random.default_rng(seed)
    new, base = random.normal(size=(3, 5)), random.normal(size=(7, 5))

    def unit(v: Any) -> Any:
        return v / np.linalg.norm(v)

    found = calibrate_prototypes(torch.from_numpy(new), torch.from_numpy(base), tau=tau, base_weight=weight)
    for k in range(3):
        similar = np.array([tau * unit(new[k]) @ unit(b) for b in base])
        share = np.exp(similar - similar.max()) / np.exp(similar - similar.max()).sum()
        mixture = sum(w * unit(b) for w, b in zip(share, base, strict=True))
        np.testing.assert_allclose(found[k], (1 - weight) * unit(new[k]) + weight * unit(mixture), atol=1e-9)


def test_episodes_are_a_leading_dimension() -> None:
    new = torch.randn(6, 3, 5).double()
    base = torch.randn(4, 5).double()
    together = calibrate_prototypes(new, base)
    torch.testing.assert_close(together, torch.stack([calibrate_prototypes(one, base) for one in new]))
    queries = torch.randn(6, 2, 5).double()
    each = torch.stack([cosine_scores(q, c, 16.0) for q, c in zip(queries, together, strict=True)])
    torch.testing.assert_close(cosine_scores(queries, together, 16.0), each)


def test_weight_zero_is_the_cosine_classifier_of_raw_means() -> None:
    random = np.random.default_rng(0)
    x, y, q = random.normal(size=(60, 6)), random.integers(0, 6, 60), random.normal(size=(80, 6))
    head = TEEN(base_weight=0.0).fit_base(x[y < 4], y[y < 4]).partial_fit(x[y >= 4], y[y >= 4])
    assert np.array_equal(head.predict(q), NMC(normalize=False, metric="cosine").fit(x, y).predict(q))


def test_scores_are_scaled_cosines() -> None:
    head = TEEN(scale=32.0).fit(BASE, ["a", "b"])
    np.testing.assert_allclose(head.decision_function([[3.0, 4.0]]), [32 * (0.8 - 0.6)])


def test_new_classes_never_lean_on_each_other_and_base_ones_stay() -> None:
    random = np.random.default_rng(1)
    base, first, second = random.normal(size=(5, 4)), random.normal(size=(2, 4)), random.normal(size=(2, 4))
    head = TEEN().fit_base(base, np.arange(5)).partial_fit(first, [10, 11])
    before = head.prototypes_.copy()
    head.partial_fit(second, [12, 13])
    np.testing.assert_array_equal(head.prototypes_[:7], before)
    assert head.base_classes_.tolist() == [0, 1, 2, 3, 4]
    alone = TEEN().fit_base(base, np.arange(5)).partial_fit(second, [12, 13])
    np.testing.assert_allclose(head.prototypes_[7:], alone.prototypes_[5:])


def test_further_shots_of_a_new_class_shift_it_once() -> None:
    """Learnt in two calls it is what it is in one: the mean is kept raw, and calibrated when it is read."""
    random = np.random.default_rng(2)
    base, shots = random.normal(size=(5, 4)), random.normal(size=(6, 4))
    once = TEEN().fit_base(base, np.arange(5)).partial_fit(shots, [9] * 6)
    twice = TEEN().fit_base(base, np.arange(5)).partial_fit(shots[:2], [9] * 2).partial_fit(shots[2:], [9] * 4)
    np.testing.assert_allclose(twice.prototypes_, once.prototypes_)
    np.testing.assert_allclose(twice.means_[5], shots.mean(0))


def test_fit_and_the_first_call_are_the_base_session() -> None:
    for head in (TEEN().fit(BASE, ["a", "b"]), TEEN().partial_fit(BASE, ["a", "b"])):
        head.partial_fit(NEW, ["n"])
        assert head.base_classes_.tolist() == ["a", "b"]
    more = TEEN().fit_base(BASE[:1], ["a"]).fit_base(BASE[1:], ["b"]).partial_fit(NEW, ["n"])
    np.testing.assert_allclose(more.prototypes_, head.prototypes_)
    assert TEEN().fit(BASE, ["a", "b"]).fit(NEW, ["n"]).base_classes_.tolist() == ["n"]


def test_among_new_predicts_new_classes_only() -> None:
    head = TEEN(among="new").fit_base(BASE, ["a", "b"])
    with pytest.raises(InputError, match="no class after the base classes has an example"):
        head.predict(BASE)
    head.partial_fit(NEW, ["n"]).partial_fit(NEW * torch.tensor([1.0, -1.0]), ["o"])
    assert head.predict(BASE.numpy()).tolist() == ["o", "n"]
    assert np.isneginf(head.decision_function(BASE)[:, :2]).all()


def test_announced_classes_are_never_predicted_before_an_example() -> None:
    head = TEEN().partial_fit(BASE.numpy(), ["a", "b"], classes=["a", "b", "n"])
    assert head.base_classes_.tolist() == ["a", "b"]
    assert np.isneginf(head.decision_function(NEW)[:, 2]).all()
    assert np.isnan(head.prototypes_[2]).all()
    head.partial_fit(NEW, ["n"])
    assert head.predict([[0.32, 0.9]]).tolist() == ["n"]


@pytest.mark.parametrize("labels", [["a", "b", "n"], [3, 5, 4]])
def test_save_and_load_and_go_on(labels: Any, tmp_path: Path) -> None:
    head = TEEN(base_weight=0.3).fit_base(BASE, labels[:2]).partial_fit(NEW, labels[2:])
    head.save(tmp_path / "head.safetensors")
    again = TEEN.load(tmp_path / "head.safetensors")
    assert again.get_params() == head.get_params()
    np.testing.assert_array_equal(again.prototypes_, head.prototypes_)
    assert again.base_classes_.tolist() == sorted(labels[:2])
    again.partial_fit([[4.0, 3.0]], labels[2:])
    np.testing.assert_allclose(again.means_[again.classes_.tolist().index(labels[2])], [3.5, 3.5])


def hierarchy(seed: int) -> tuple[Stream, NDArray[Any], NDArray[Any]]:
    """20 super-classes of 5 classes, 60 of them base classes: new ones have relatives among these."""
    random = np.random.default_rng(seed)
    kinds = random.normal(size=(20, 64))
    centres = np.repeat(kinds, 5, 0) + 0.7 * random.normal(size=(100, 64))
    y = np.repeat(np.arange(100), 60)
    x = centres[y] + 1.3 * random.normal(size=(len(y), 64))
    half = np.tile(np.arange(60) < 30, 100)
    parts = x[half], y[half], x[~half], y[~half]
    return few_shot_incremental(*parts, 60, way=5, shots=5, seed=seed), x[half], y[half]


def test_expected_ordering_where_base_classes_resemble_new_ones() -> None:
    """As measured for the method: better new classes and fewer of them taken for base, a small loss on base."""
    plain, teen = np.zeros(4), np.zeros(4)
    for seed in range(3):
        stream, _, _ = hierarchy(seed)
        for total, weight in ((plain, 0.0), (teen, 0.3)):
            row = run_stream(TEEN(base_weight=weight), stream).row()
            total += [row[name] / 3 for name in ("new_accuracy", "base_accuracy", "new_as_base", "final_accuracy")]
    assert teen[0] > plain[0] + 0.02
    assert teen[1] > plain[1] - 0.02
    assert teen[2] < plain[2] / 2
    assert teen[3] > plain[3]


def test_the_weight_can_be_chosen_on_base_classes() -> None:
    stream, x, y = hierarchy(0)
    base = np.isin(y, stream.base_classes)
    chosen = choose_base_weight(x[base], y[base], shots=5, draws=1)
    assert 0 < chosen <= 0.5
    with pytest.raises(InputError, match="class 0 has 3 examples: 5 shots and one to test need more"):
        choose_base_weight(np.ones((6, 2)), [0, 0, 0, 1, 1, 1])
    with pytest.raises(InputError, match="1 classes with 1 of them new leave no base class"):
        choose_base_weight(np.ones((9, 2)), [0] * 9)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tau": 0.0}, "tau and scale must be above 0"),
        ({"scale": -1.0}, "tau and scale must be above 0"),
        ({"base_weight": 1.2}, "base_weight is a share between 0 and 1, not 1.2"),
        ({"among": "base"}, "among 'base' is unknown: known: all, new"),
    ],
)
def test_wrong_settings_are_named(settings: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        TEEN(**settings).fit(BASE, ["a", "b"])


def test_a_new_class_can_not_become_a_base_class() -> None:
    head = TEEN().fit_base(BASE, ["a", "b"]).partial_fit(NEW, ["n"])
    with pytest.raises(InputError, match="class 'n' was learnt as a new class"):
        head.fit_base(NEW, ["n"])
    assert head.counts_.tolist() == [1, 1, 1]
    head.partial_fit(NEW, ["o"])
    assert head.base_classes_.tolist() == ["a", "b"]


def test_features_without_a_direction_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="1 of 1 feature rows are all zero"):
        TEEN().fit(BASE, ["a", "b"]).predict([[0.0, 0.0]])
