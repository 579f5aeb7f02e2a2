from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from thrifty.adapt.class_metric import Distances
from thrifty.adapt.class_spaces import Euclidean
from thrifty.adapt.class_tree import Tree
from thrifty.adapt.frechet import frechet_predict, frechet_scores, sharpened
from thrifty.adapt.loki import Loki, relative_improvement, squared_distances
from thrifty.cli import main
from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.method import load

PATH = [[0, 1], [1, 2], [2, 3], [3, 4]]
STAR = [[0, 1], [0, 2], [0, 3]]


@parametrize_with_checks([Loki(), Loki(classifier="logistic"), Loki(classifier="nearest-neighbours", temperature=0.5)])
def test_scikit_learn_conventions(estimator, check) -> None:  # type: ignore[no-untyped-def]
    check(estimator)


def test_registered_under_its_id() -> None:
    assert load("loki") is Loki


@pytest.mark.parametrize(
    ("p", "objective", "predicted"),
    [
        ((0.5, 0.5), (8, 5, 4, 5, 8), 2),
        ((0.7, 0.3), (4.8, 3.4, 4, 6.6, 11.2), 1),
        ((0.9, 0.1), (1.6, 1.8, 4, 8.2, 14.4), 0),
    ],
)
def test_worked_example_path(p: tuple[float, ...], objective: tuple[float, ...], predicted: int) -> None:
    squares = torch.tensor([[0.0, 1, 4, 9, 16], [16, 9, 4, 1, 0]], dtype=torch.float64)
    probs = torch.tensor([p], dtype=torch.float64)
    expected = torch.tensor([objective], dtype=torch.float64)
    torch.testing.assert_close(frechet_scores(probs, squares), expected)
    torch.testing.assert_close(Tree(PATH).rule(torch.tensor([0, 4])).costs(probs), expected)
    assert frechet_predict(probs, squares).tolist() == [predicted]
    assert Loki(metric=Tree(PATH)).decode(probs, [0, 4]).tolist() == [predicted]


def test_worked_example_star() -> None:
    rule = Tree(STAR).rule(torch.tensor([1, 2, 3]))
    probs = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1]], dtype=torch.float64)
    expected = [[1, 8 / 3, 8 / 3, 8 / 3], [1, 0.8, 3.6, 3.6]]
    torch.testing.assert_close(rule.costs(probs), torch.tensor(expected, dtype=torch.float64))
    assert rule.nearest(probs).tolist() == [0, 1]


def test_columns_are_in_the_order_of_the_observed_classes() -> None:
    loki = Loki(metric=Tree(PATH))
    assert loki.decode([[0.9, 0.1]], [4, 0]).tolist() == [4]
    assert loki.decode(np.float32([[0.9, 0.1]]), [0, 4]).tolist() == [0]


def test_fit_predicts_classes_that_were_never_seen() -> None:
    """Ages 0 and 10 are learnt; what lies between is predicted to lie between."""
    x = np.array([[-1.0], [-0.9], [0.9], [1.0]])
    loki = Loki("logistic", "line").fit(x, [0, 0, 10, 10])
    assert loki.classes_.tolist() == list(range(11))
    assert loki.observed_.tolist() == [0, 10]
    assert loki.predict([[0.0]]).tolist() == [5]
    scores = loki.decision_function([[0.0], [2.0]])
    assert scores.shape == (2, 11)
    assert scores.argmax(1).tolist() == loki.predict([[0.0], [2.0]]).tolist()
    # The mean on the line, rounded: the objective is p ŷ² + (1 - p)(10 - ŷ)².
    p = loki.classifier_.predict_proba([[0.3]])[0, 1]
    assert loki.predict([[0.3]])[0] == round(10 * p)


def test_torch_in_torch_out_and_names_come_back_as_names() -> None:
    x = torch.tensor([[-1.0], [1.0]])
    found = Loki("logistic", "line").fit(x, torch.tensor([0, 4])).predict(torch.zeros(1, 1))
    assert isinstance(found, torch.Tensor)
    assert found.tolist() == [2]
    tree = Tree([["animal", "cat"], ["animal", "dog"], ["thing", "animal"]])
    named = Loki("logistic", tree).fit(x, ["cat", "dog"])
    assert named.predict(torch.tensor([[0.0], [9.0]])).tolist() == ["animal", "dog"]


def test_a_trained_classifier_is_taken_as_it_is() -> None:
    x, y = np.array([[-1.0], [1.0]]), [0, 4]
    trained = LogisticRegression(C=100.0).fit(x, y)
    loki = Loki(FrozenEstimator(trained), "line").fit(x[:1], y[:1])
    np.testing.assert_array_equal(loki.classifier_.predict_proba(x), trained.predict_proba(x))
    assert loki.observed_.tolist() == [0, 4]


def test_with_all_classes_equally_far_it_is_the_argmax() -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 3)), random.integers(0, 4, 60)
    loki = Loki("logistic").fit(x, y)
    assert np.array_equal(loki.predict(x), loki.classifier_.predict(x))
    assert Loki().decode([[0.4, 0.4, 0.2], [0.2, 0.4, 0.4]], [7, 8, 9]).tolist() == [7, 8]


def test_temperature_sharpens() -> None:
    probs = torch.tensor([[0.6, 0.4]], dtype=torch.float64)
    torch.testing.assert_close(sharpened(probs, 0.5), torch.tensor([[0.36, 0.16]], dtype=torch.float64) / 0.52)
    assert sharpened(probs, 1.0) is probs
    assert Loki(metric=Tree(PATH)).decode(probs, [0, 4]).tolist() == [2]
    assert Loki(metric=Tree(PATH), temperature=0.25).decode(probs, [0, 4]).tolist() == [1]


def test_squared_distances_and_relative_improvement() -> None:
    squares = squared_distances(Tree(PATH), [4, 0, 2, 4], [0, 0, 3, 1])
    assert squares.tolist() == [16, 0, 1, 9]
    assert relative_improvement(54.4, 21.3) == pytest.approx(0.6085, abs=1e-4)
    assert relative_improvement(0.0, 0.0) == 0


def test_what_wrong_input_is_told() -> None:
    tree, x = Tree(PATH), np.zeros((4, 2))
    with pytest.raises(InputError, match=r"the metric does not know class 9 \(1 of 2 classes are missing from its 5\)"):
        Loki(metric=tree).fit(x, [0, 0, 9, 9])
    with pytest.raises(InputError, match="LinearSVC gives no probabilities: wrap it in CalibratedClassifierCV"):
        Loki(LinearSVC()).fit(x, [0, 0, 1, 1])
    with pytest.raises(InputError, match="no classifier 'logistc': did you mean 'logistic'"):
        Loki("logistc").fit(x, [0, 0, 1, 1])
    with pytest.raises(NotFoundError, match=r"no metric 'tree\.csv'"):
        Loki(metric="tree.csv").fit(x, [0, 0, 1, 1])
    with pytest.raises(InputError, match="temperature must be above 0"):
        Loki(temperature=0.0).fit(x, [0, 0, 1, 1])
    with pytest.raises(InputError, match="3 classes came with 2 observed ones and no names"):
        Loki(metric=np.ones((3, 3)) - np.eye(3)).fit(x, [0, 0, 1, 1])
    with pytest.raises(InputError, match=r"row 0 holds no probabilities: it sums to 3 and its least is -1"):
        Loki(metric=tree).decode([[-1.0, 4.0]], [0, 4])
    with pytest.raises(InputError, match=r"\[B, 2\], one for each observed class, not \[1, 3\]"):
        Loki(metric=tree).decode([[0.2, 0.3, 0.5]], [0, 4])
    with pytest.raises(InputError, match="class 0 is observed twice"):
        Loki(metric=tree).decode([[0.5, 0.5]], [0, 0])
    with pytest.raises(NotFittedError):
        Loki().predict(x)


def test_a_matrix_is_of_the_observed_classes() -> None:
    matrix = np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    assert Loki(metric=matrix).decode([[0.5, 0, 0.5]], ["a", "b", "c"]).tolist() == ["b"]
    assert Loki(metric=Distances(matrix, ["a", "b", "c"])).decode([[0.5, 0.5]], ["c", "a"]).tolist() == ["b"]


def run(tmp_path: Path, *arguments: str) -> dict[str, object]:
    out = tmp_path / "run"
    assert main(["run", "loki", "--out", str(out), *arguments]) == 0
    summary: dict[str, object] = json.loads((out / "summary.json").read_text())
    return summary


def test_the_command_on_features_and_an_edge_list(tmp_path: Path) -> None:
    """Three classes on a path; the middle one has no training example, and lies in the middle."""
    random = np.random.default_rng(0)
    y = np.repeat(["left", "middle", "right"], 20)
    x = np.repeat([[-1.0, 0], [0, 0], [1, 0]], 20, axis=0) + 0.1 * random.normal(size=(60, 2))
    seen = y != "middle"
    np.savez(tmp_path / "f.npz", x=x[seen], y=y[seen], test_x=x, test_y=y)
    (tmp_path / "tree.csv").write_text("parent,child\nmiddle,left\nmiddle,right\n")
    found = run(tmp_path, "--data", str(tmp_path / "f.npz"), "--metric", str(tmp_path / "tree.csv"))
    assert found["observed"] == ["left", "right"]
    assert found["classes that can be predicted"] == 3
    argmax, loki = found["table"]  # type: ignore[misc]
    # Of 60 test examples 20 are in the middle: argmax is one step off for each.
    assert argmax["mean squared distance"] == pytest.approx(1 / 3)
    assert loki["mean squared distance"] < argmax["mean squared distance"]
    assert loki["accuracy on classes never seen"] > 0 == argmax["accuracy on classes never seen"]
    rows = [json.loads(line) for line in Path(str(found["file"])).read_text().splitlines()]
    assert len(rows) == 60
    assert {row["argmax"] for row in rows} == {"left", "right"}


def test_the_command_on_probabilities_of_ones_own_classifier(tmp_path: Path) -> None:
    np.savez(tmp_path / "p.npz", probabilities=[[0.5, 0.5], [0.9, 0.1]], classes=["a", "c"])
    np.savez(tmp_path / "m.npz", distances=[[0, 1, 2], [1, 0, 1], [2, 1, 0]], labels=["a", "b", "c"])
    found = run(tmp_path, "--data", str(tmp_path / "p.npz"), "--metric", str(tmp_path / "m.npz"))
    rows = [json.loads(line) for line in Path(str(found["file"])).read_text().splitlines()]
    assert [row["loki"] for row in rows] == ["b", "a"]
    assert [row["argmax"] for row in rows] == ["a", "a"]


def test_the_command_holds_classes_back_where_all_have_examples(tmp_path: Path) -> None:
    """Ten ages on a line, of which the seed lets four be seen; all of them are tested, and the line knows all."""
    y = np.repeat(np.arange(10), 10)
    x = np.stack([np.cos(y / 5), np.sin(y / 5)], 1) + 0.02 * np.random.default_rng(0).normal(size=(100, 2))
    np.savez(tmp_path / "f.npz", x=x, y=y)
    found = run(tmp_path, "--data", str(tmp_path / "f.npz"), "--metric", "line", "--base-classes", "4")
    assert len(found["observed"]) == 4  # type: ignore[arg-type]
    assert found["classes"] == 10
    argmax, loki = found["table"]  # type: ignore[misc]
    assert loki["classes predicted"] > 4 >= argmax["classes predicted"]
    assert len(found["label next"]) == 5  # type: ignore[arg-type]


def test_the_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "f.npz", x=np.eye(4), y=[0, 0, 1, 1])
    assert main(["run", "loki", "--out", str(tmp_path / "run"), "--data", str(tmp_path / "f.npz")]) == 2
    assert "only the observed ones are ever predicted: give --metric" in capsys.readouterr().err
    more = ["--data", str(tmp_path / "f.npz"), "--metric", "line", "--base-classes", "3"]
    assert main(["run", "loki", "--out", str(tmp_path / "run"), *more]) == 2
    assert "3 of 2 classes can't be observed" in capsys.readouterr().err


def test_points_with_names() -> None:
    points = Euclidean([[0.0, 0], [3, 4], [6, 8]], ["a", "b", "c"])
    assert Loki(metric=points).decode([[0.5, 0.5]], ["a", "c"]).tolist() == ["b"]
