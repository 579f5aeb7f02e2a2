"""What every classifier on frozen features shares: scikit-learn's conventions, for NumPy and for torch.

A head says how it learns (:meth:`StreamingHead._learn`) and how it scores (:meth:`StreamingHead._scores`), both on
tensors. Checking, moving, chunking, growing classes, saving and loading are here.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from thrifty.adapt.accumulator import Labels, as_labels, precise, row_chunks
from thrifty.adapt.stream import StreamKind
from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError

EXPECTED_FAILED_CHECKS: dict[str, str] = {}
"""Checks of scikit-learn's ``check_estimator`` that a streaming head does not pass, with the reason: none."""


class StreamingHead(ClassifierMixin, BaseEstimator, ABC):
    """A classifier on feature vectors that learns a stream batch by batch and grows its classes.

    Features are ``[N, D]``, NumPy or torch; labels are ``[N]`` integers or strings. Torch features are used on the
    device they are on, and what comes back is of the same kind on the same device (string labels always come back as
    NumPy). Attributes that end in ``_`` are NumPy arrays.
    """

    paper_id: ClassVar[str]
    usual_stream: ClassVar[StreamKind] = "class"
    """The protocol that the paper measures the head on."""
    classes_: Labels
    n_features_in_: int

    @abstractmethod
    def _begin(self, dimension: int, device: torch.device) -> None:
        """Forgets everything and makes room for features of that dimension."""

    @abstractmethod
    def _announce(self, classes: Labels) -> None:
        """Makes room for classes without an example."""

    @abstractmethod
    def _learn(self, features: Tensor, labels: Labels) -> None:
        """Learns from ``[N, D]`` features of any floating point dtype."""

    @abstractmethod
    def _scorer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function from float64 ``[N, D]`` on ``device`` to scores ``[N, C]``, minus infinity for unseen classes."""

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What was learnt, as a tree."""

    @abstractmethod
    def _load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`_state` returned; :meth:`_begin` was called before."""

    def fit(self, X: Any, y: Any) -> Self:
        """Learns from these examples alone; what was learnt before is forgotten.

        Parameters
        ----------
        X
            Features ``[N, D]``.
        y
            Labels ``[N]``, integers or strings.

        Raises
        ------
        InputError
            When features and labels don't fit together, or hold NaN or infinity.
        """
        features, labels = self._examples(X, y, reset=True)
        self._restart(features.shape[1], features.device)
        self._learn(features, labels)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learns from these examples on top of all before; new classes are added as they come.

        Parameters
        ----------
        X
            Features ``[N, D]``.
        y
            Labels ``[N]``, integers or strings.
        classes
            Classes to make room for, so that the columns of :meth:`decision_function` stay the same over a stream.
            None of them is predicted before its first example. Not needed, and no limit.

        Raises
        ------
        InputError
            As for :meth:`fit`, or when the dimension differs from before; nothing is learnt then.
        """
        first = not self.__sklearn_is_fitted__()
        features, labels = self._examples(X, y, reset=first)
        if first:
            self._restart(features.shape[1], features.device)
        if classes is not None:
            self._announce(as_labels(classes))
        self._learn(features, labels)
        return self

    def decision_function(self, X: Any) -> Any:
        """The score of each class, larger is nearer.

        Returns
        -------
        array or Tensor
            float64 ``[N, C]`` in the order of ``classes_``, minus infinity for classes without an example; with two
            classes ``[N]``, the second's score minus the first's, as scikit-learn has it.
        """
        features = self._queries(X)
        scorer = self._scorer(features.device)
        parts = [scorer(part) for part in self._parts(features)]
        scores = torch.cat(parts)
        if scores.shape[1] == 2:
            scores = scores[:, 1] - scores[:, 0]
        return scores if isinstance(X, Tensor) else scores.numpy()

    def predict(self, X: Any) -> Any:
        """The class with the largest score; of equal ones the first in ``classes_``.

        Returns
        -------
        array or Tensor
            ``[N]`` labels.
        """
        features = self._queries(X)
        scorer = self._scorer(features.device)
        best = torch.cat([scorer(part).argmax(1) for part in self._parts(features)])
        if isinstance(X, Tensor) and self.classes_.dtype.kind not in "UO":
            return torch.from_numpy(self.classes_).to(X.device)[best.to(X.device)]
        return self.classes_[best.cpu().numpy()]

    def score(self, X: Any, y: Any, sample_weight: NDArray[Any] | None = None) -> float:
        """The share of examples whose class is predicted."""
        return float(np.average(as_labels(self.predict(X)) == as_labels(y), weights=sample_weight))

    def state_dict(self) -> dict[str, Any]:
        """All that was learnt, as a tree that a checkpoint can hold; empty before the first example."""
        if not self.__sklearn_is_fitted__():
            return {}
        names = getattr(self, "feature_names_in_", None)
        columns = None if names is None else names.tolist()
        return {"features": self.n_features_in_, "feature_names": columns, "state": self._state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        for name in ("n_features_in_", "feature_names_in_", "_begun"):
            self.__dict__.pop(name, None)
        if not state:
            return
        self._restart(state["features"], torch.device("cpu"))
        self._load_state(state["state"])
        self.n_features_in_ = state["features"]
        if state["feature_names"] is not None:
            self.feature_names_in_ = np.array(state["feature_names"], dtype=object)

    def save(self, path: str | Path) -> None:
        """Writes hyper-parameters and all that was learnt to one safetensors file, atomically.

        Raises
        ------
        NotFittedError
            Before the first example.
        DiskFullError
            When there is no room; an older file of that name stays.
        """
        check_is_fitted(self)
        tree = {"head": type(self).__name__, "settings": self.get_params(), "learnt": self.state_dict()}
        save_tree(Path(path), tree)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The head that :meth:`save` wrote, on the CPU.

        Raises
        ------
        InputError
            When the file holds something else, or is damaged.
        """
        tree = load_tree(Path(path))
        if not isinstance(tree, dict) or tree.get("head") != cls.__name__:
            found = tree.get("head") if isinstance(tree, dict) else None
            raise InputError(f"{path} holds {found or 'no head'}: load it with that class, not {cls.__name__}")
        head = cls(**tree["settings"])
        head.load_state_dict(tree["learnt"])
        return head

    def __sklearn_is_fitted__(self) -> bool:
        # Not n_features_in_: that is there after a fit whose labels were refused.
        return "_begun" in self.__dict__

    def _restart(self, dimension: int, device: torch.device) -> None:
        self._begin(dimension, device)
        self._begun = True

    def _examples(self, X: Any, y: Any, *, reset: bool) -> tuple[Tensor, Labels]:
        labels = y.detach().cpu().numpy() if isinstance(y, Tensor) else y
        if not isinstance(X, Tensor):
            X, labels = validate_data(self, X, labels, reset=reset, dtype=(np.float64, np.float32))
            _check_targets(labels)
            return torch.from_numpy(np.require(X, requirements=["C", "W"])), as_labels(labels)
        names = as_labels(labels)
        _check_targets(names)
        features = self._checked(X, None if reset else self.n_features_in_)
        if len(features) != len(names):
            raise InputError(f"{len(features)} feature rows came with {len(names)} labels")
        if reset:
            self.n_features_in_ = features.shape[1]
            self.__dict__.pop("feature_names_in_", None)
        return features, names

    def _queries(self, X: Any) -> Tensor:
        check_is_fitted(self)
        if isinstance(X, Tensor):
            return self._checked(X, self.n_features_in_)
        X = validate_data(self, X, reset=False, dtype=(np.float64, np.float32))
        return torch.from_numpy(np.require(X, requirements=["C", "W"]))

    def _checked(self, features: Tensor, dimension: int | None) -> Tensor:
        name = type(self).__name__
        if features.ndim != 2 or 0 in features.shape:
            raise InputError(f"{name} expects features [N, D], not {list(features.shape)}")
        if dimension is not None and features.shape[1] != dimension:
            raise InputError(
                f"X has {features.shape[1]} features, but {name} expects {dimension}: use the encoder it learnt with"
            )
        features = features.detach() if features.is_floating_point() else features.detach().to(torch.float32)
        finite = torch.isfinite(features.sum(1, dtype=torch.promote_types(features.dtype, torch.float32)))
        if not finite.all():
            finite = torch.isfinite(features).all(1)  # a sum can overflow where no number is infinite
        if not finite.all():
            row = int((~finite).nonzero()[0])
            raise InputError(f"feature row {row} holds NaN or infinity ({int((~finite).sum())} such rows)")
        return features

    def _parts(self, features: Tensor) -> Iterator[Tensor]:
        """The rows in chunks, each in float64 only while it is in use."""
        for part in row_chunks(len(features), max(features.shape[1], len(self.classes_))):
            chunk = features[part]
            yield chunk.to(precise(chunk.device), torch.float64)


def _check_targets(labels: Any) -> None:
    """Labels must be classes; that few examples have many of them, as in few-shot sessions, is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The number of unique classes")
        check_classification_targets(labels)
