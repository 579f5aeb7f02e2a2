"""Loki: the Fréchet mean of classes instead of the argmax, "Geometry-Aware Adaptation for Pretrained Models" (Roberts,
Li, Adila, Cromp, Huang, Zhao & Sala, NeurIPS 2023, arXiv 2307.12226)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.class_metric import ClassMetric, Rule
from thrifty.adapt.class_metric_files import class_metric
from thrifty.adapt.frechet import check_probabilities, frechet_predict, frechet_scores, sharpened
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register

__all__ = ["Loki", "frechet_predict", "frechet_scores", "relative_improvement", "squared_distances"]

CLASSIFIERS = ("one-vs-rest", "logistic", "nearest-neighbours")


@register("loki")
@dataclass(eq=False, repr=False)
class Loki(ClassifierMixin, BaseEstimator):
    r"""Predicts classes that no example was seen of, from a classifier's probabilities and distances between classes.

    .. math:: \hat y(x) \in \arg\min_{y \in Y} \sum_{i=1}^{K} p_i(x) \, d^2(y, \lambda_i)

    p are the probabilities of the K observed classes, Y all N classes of the metric. Nothing is trained beyond the
    classifier, which may be any that has ``predict_proba``; one that is trained already goes into scikit-learn's
    ``FrozenEstimator``, or its probabilities straight to :meth:`decode`. With all classes equally far from each other
    this is the argmax. Of equally good classes the likeliest is taken, then the first.

    What is minimised is the expected squared distance, not the error rate: accuracy can fall. Probabilities enter
    linearly, so flat ones draw predictions to the middle of the space; see ``temperature``.

    Parameters
    ----------
    classifier
        ``one-vs-rest`` (the paper's logistic regressions, up to 500 iterations), ``logistic`` (one softmax),
        ``nearest-neighbours`` (5), or a scikit-learn classifier.
    metric
        ``complete``, ``line``, ``names``, a file of distances, edges or points, a matrix of distances between the
        observed classes, or a ``ClassMetric`` (``Distances``, ``Tree``, ``Graph``, ``Grid``, ``Euclidean``,
        ``Complete``). Distances are squared here, once.
    leaves
        Of a tree or graph read from a file, only the leaves are classes.
    temperature
        Probabilities are taken to the power of its inverse; 1 (the paper's) leaves them.

    Attributes
    ----------
    classes_ : ndarray
        The N classes that the metric knows.
    observed_ : ndarray
        The K classes with examples.
    classifier_ : object
        The fitted classifier.
    metric_ : ClassMetric
        The metric.
    n_features_in_ : int
        D.

    Raises
    ------
    InputError
        When the metric does not know a class, is none, or the classifier gives no probabilities.

    References
    ----------
    arXiv 2307.12226, section 3, equation 1; the locus and next classes, section 4. Estimators that train through the
    decision are in :mod:`thrifty.adapt.frechet_training`.

    Examples
    --------
    >>> from thrifty.adapt.class_tree import Tree
    >>> path = Tree([[0, 1], [1, 2], [2, 3], [3, 4]])
    >>> Loki(metric=path).decode([[0.5, 0.5], [0.7, 0.3], [0.9, 0.1]], [0, 4]).tolist()
    [2, 1, 0]
    """

    classifier: Any = "one-vs-rest"
    metric: Any = "complete"
    leaves: bool = False
    temperature: float = 1.0

    def fit(self, X: Any, y: Any) -> Self:
        """Trains the classifier on the observed classes.

        Parameters
        ----------
        X
            Features ``[N, D]``, NumPy or torch.
        y
            Their classes, ``[N]`` integers or strings: the observed ones.
        """
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, not {self.temperature:g}")
        X, y = validate_data(self, _numpy(X), _numpy(y))
        check_classification_targets(y)
        if isinstance(self.classifier, str) and self.classifier == "one-vs-rest" and len(np.unique(y)) < 2:
            raise InputError("one-vs-rest needs examples of at least 2 classes, got 1 class")
        classifier = _classifier(self.classifier)
        if not hasattr(classifier, "predict_proba"):
            raise InputError(
                f"{type(classifier).__name__} gives no probabilities: wrap it in CalibratedClassifierCV, which does"
            )
        self.classifier_ = classifier.fit(X, y)
        return self._know(self.classifier_.classes_)

    def _know(self, observed: Any) -> Self:
        self.observed_: Labels = as_labels(observed)
        self.metric_: ClassMetric = class_metric(self.metric, self.observed_, leaves=self.leaves)
        self._positions = self.metric_.positions(self.observed_)
        self._sorted = np.argsort(self.metric_.labels, kind="stable")
        self.classes_: Labels = self.metric_.labels[self._sorted]
        self._rules: dict[str, Rule] = {}
        return self

    def predict(self, X: Any) -> Any:
        """The class of the Fréchet mean, one of ``classes_``.

        Returns
        -------
        array or Tensor
            ``[N]`` labels; a tensor where ``X`` is one and the labels are numbers.
        """
        return self._labels(self._probabilities(X), X)

    def decision_function(self, X: Any) -> Any:
        """Minus the objective of each class, ``−Σ_i p_i d²(y, λ_i)``.

        Returns
        -------
        array or Tensor
            float64 ``[N, C]`` in the order of ``classes_``; with two classes ``[N]``, the second's minus the first's,
            as scikit-learn has it.
        """
        probs = self._probabilities(X)
        scores = -self._rule(probs.device).costs(probs)[:, torch.from_numpy(self._sorted).to(probs.device)]
        if scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        return scores if isinstance(X, Tensor) else scores.numpy()

    def decode(self, probabilities: Any, observed: Any) -> Any:
        """The classes of the Fréchet means for probabilities of any classifier; no ``fit`` is needed.

        Parameters
        ----------
        probabilities
            ``[B, K]``, NumPy or torch, on the device where they are.
        observed
            The K classes they are of, in their columns' order (``classes_`` of a scikit-learn classifier).

        Returns
        -------
        array or Tensor
            ``[B]`` labels.

        Raises
        ------
        InputError
            When the metric does not know a class, one occurs twice, or the rows are no probabilities.
        """
        names = as_labels(observed)
        values, counts = np.unique(names, return_counts=True)
        if (counts > 1).any():
            raise InputError(f"class {values[counts > 1][0].item()!r} is observed twice: each column has its own class")
        told = self._told(names)
        given = probabilities if isinstance(probabilities, Tensor) else torch.from_numpy(np.asarray(probabilities))
        return told._labels(told._checked(given), probabilities)

    def _told(self, observed: Labels) -> Loki:
        """One that knows these observed classes; kept, so that the next batch finds everything prepared."""
        last: Loki | None = self.__dict__.get("_last")
        same = last is not None and (last.metric is self.metric, last.leaves) == (True, self.leaves)
        if last is None or not same or not np.array_equal(last.observed_, observed):
            last = Loki(metric=self.metric, leaves=self.leaves)._know(observed)
            self._last = last
        last.temperature = self.temperature
        return last

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of examples whose class is predicted exactly; what is minimised is :func:`squared_distances`."""
        return float(np.average(as_labels(self.predict(X)) == as_labels(y), weights=sample_weight))

    def _rule(self, device: torch.device) -> Rule:
        key = str(device)
        if key not in self._rules:
            self._rules[key] = self.metric_.rule(self._positions, device)
        return self._rules[key]

    def _probabilities(self, X: Any) -> Float[Tensor, "B K"]:
        check_is_fitted(self, "classifier_")
        place = X.device if isinstance(X, Tensor) else torch.device("cpu")
        checked = validate_data(self, _numpy(X), reset=False)
        found = np.asarray(self.classifier_.predict_proba(checked), dtype=np.float64)
        # One-vs-rest classifiers that all say no leave nothing to scale: every class is as likely as another.
        found[found.sum(1) == 0] = 1 / found.shape[1]
        return self._checked(torch.from_numpy(found)).to(place)

    def _checked(self, probs: Tensor) -> Float[Tensor, "B K"]:
        return sharpened(check_probabilities(probs, len(self.observed_)), self.temperature)

    def _labels(self, probs: Float[Tensor, "B K"], like: Any) -> Any:
        best = self._rule(probs.device).nearest(probs)
        if isinstance(like, Tensor) and self.metric_.labels.dtype.kind not in "UO":
            return torch.from_numpy(self.metric_.labels).to(best.device)[best]
        return self.metric_.labels[best.cpu().numpy()]

    def demonstrate(self, inputs: Any, run: Any) -> dict[str, Any]:
        """What ``thrifty run loki`` does (see :mod:`thrifty.adapt.loki_run`)."""
        from thrifty.adapt.loki_run import demonstrate

        return demonstrate(self, inputs, run)


def squared_distances(metric: ClassMetric, predicted: Any, true: Any) -> Float[Tensor, " B"]:
    """``d²(ŷ, y)`` of each example: what Loki makes small on average.

    Parameters
    ----------
    metric
        Knows all classes.
    predicted, true
        ``[B]`` labels.
    """
    names, place = np.unique(as_labels(predicted), return_inverse=True)
    at = metric.positions(true)
    found = torch.empty(len(at), dtype=torch.float64)
    positions, places = metric.positions(names), torch.from_numpy(place.reshape(-1))
    # A few predicted classes at a time: all their rows would be a dense matrix.
    for part in torch.arange(len(names)).split(max((1 << 22) // len(metric), 1)):
        mine = ((places >= part[0]) & (places <= part[-1])).nonzero()[:, 0]
        found[mine] = metric.rows(positions[part])[places[mine] - part[0], at[mine]].square()
    return found


def relative_improvement(argmax: float, loki: float) -> float:
    """``(E[d²]_argmax − E[d²]_Loki) / E[d²]_argmax``."""
    return (argmax - loki) / argmax if argmax else 0.0


def _classifier(given: Any) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.neighbors import KNeighborsClassifier

    if not isinstance(given, str):
        return clone(given)
    named: Mapping[str, Any] = {
        "one-vs-rest": OneVsRestClassifier(LogisticRegression(max_iter=500)),
        "logistic": LogisticRegression(max_iter=500),
        "nearest-neighbours": KNeighborsClassifier(5),
    }
    if given not in named:
        raise InputError(f"no classifier {given!r}: {nearest(given, CLASSIFIERS)}")
    return named[given]


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values
