"""NMC: nearest mean of normalised frozen features, "A Simple Baseline that Questions the Use of Pretrained-Models in
Continual Learning" (Janson, Zhang, Aljundi & Elhoseiny, 2022, arXiv 2210.04428)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thrifty.adapt.accumulator import ClassAccumulator, Labels, precise, row_chunks
from thrifty.adapt.head import StreamingHead
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register

EPSILON = 1e-12
Metric = Literal["euclidean", "cosine"]


def normalise_rows(features: Float[Tensor, "*N D"]) -> Float[Tensor, "*N D"]:
    """Rows of length one: ``z / max(‖z‖₂, 1e-12)``; a row of zeros stays one."""
    norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / norms.clamp(min=EPSILON)


def unit_rows(features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """:func:`normalise_rows`, with a warning where a row of zeros has no direction."""
    zero = int((~features.any(1)).sum())
    if zero:
        message = f"{zero} of {len(features)} feature rows are all zero: they have no direction and stay zero"
        warnings.warn(message, UserWarning, stacklevel=2)
    return normalise_rows(features)


def nearest_mean_scores(features: Float[Tensor, "N D"], means: Float[Tensor, "C D"]) -> Float[Tensor, "N C"]:
    """``2 z·μ_c − ‖μ_c‖²``: minus the squared distance to each mean, up to ``‖z‖²``, which all classes share."""
    return 2 * features @ means.T - means.square().sum(1)


@register("nmc")
@dataclass(eq=False, repr=False)
class NMC(StreamingHead):
    """Nearest-mean classifier on frozen features: one mean and one count per class, no training, no examples kept.

    .. math:: z = f(x) / \\|f(x)\\|_2, \\quad \\mu_c = \\frac{1}{n_c} \\sum_{i: y_i = c} z_i, \\quad
              \\hat y = \\arg\\min_{c: n_c > 0} \\|z - \\mu_c\\|_2

    Sums are kept in float64, so what was learnt depends on neither the order of the examples nor their grouping into
    batches or tasks (up to the rounding of float64 sums). Only classes with an example are ever predicted. New
    examples of a known class move its mean, as a stream of domains needs. Scores are no probabilities:
    ``sklearn.calibration.CalibratedClassifierCV(NMC())`` makes some.

    Parameters
    ----------
    normalize
        Scale each feature vector to length one before it is averaged or classified, as the paper does. A vector of
        zeros stays one, with a warning.
    renormalize_means
        Scale each mean to length one too. The paper does not: means of spread-out classes stay shorter. With it,
        this is the cosine nearest-class-mean classifier.
    metric
        euclidean: the nearest mean, with the score ``2 z·μ − ‖μ‖²``. cosine: the mean at the smallest angle, with the
        cosine as the score; with ``normalize=False`` this is SimpleCIL's classifier.

    Attributes
    ----------
    classes_ : ndarray
        The C classes so far, sorted, announced ones included.
    means_ : ndarray
        float64 ``[C, D]``: the class means as they are compared; NaN for a class without an example.
    counts_ : ndarray
        int64 ``[C]``: how many examples each mean stands for.
    n_features_in_ : int
        D.
    accumulator_ : ClassAccumulator
        Sums and counts; merge those of several processes with ``accumulator_.merge``.

    References
    ----------
    arXiv 2210.04428, Section 3. The released scripts leave out the encoder's own scaling of pixel values; here that
    is the encoder's business.

    Examples
    --------
    >>> head = NMC().fit([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]], ["a", "a", "b"])
    >>> head.means_.round(3).tolist()
    [[0.8, 0.4], [0.0, 1.0]]
    >>> head.predict([[0.6, 0.8], [0.1, 0.9]]).tolist()
    ['a', 'b']
    """

    normalize: bool = True
    renormalize_means: bool = False
    metric: Metric = "euclidean"

    @property
    def classes_(self) -> Labels:  # type: ignore[override]
        check_is_fitted(self)
        classes = self.accumulator_.classes
        return np.empty(0, dtype=np.int64) if classes is None else classes

    @property
    def means_(self) -> NDArray[np.float64]:
        check_is_fitted(self)
        means = self._means()
        return means.masked_fill(~self.accumulator_.seen[:, None], torch.nan).cpu().numpy()

    @property
    def counts_(self) -> NDArray[np.int64]:
        check_is_fitted(self)
        return self.accumulator_.counts.cpu().numpy().copy()

    def replace_class(self, label: Any, X: Any) -> Self:
        """Learns a class anew from these examples alone; a class not known yet is added.

        Parameters
        ----------
        label
            The class.
        X
            Its examples, ``[N, D]``.
        """
        features = self._queries(X)
        fresh = ClassAccumulator(features.shape[1], features.device)
        self._add(fresh, features, np.full(len(features), label))
        return self.set_mean(label, fresh.means[0], len(features))

    def set_mean(self, label: Any, mean: Any, count: int = 1) -> Self:
        """Sets the mean of a class, known or new, taken as it is; later examples count on from ``count``.

        Parameters
        ----------
        label
            The class.
        mean
            ``[D]``: with ``normalize`` a mean of vectors of length one.
        count
            How many examples it stands for.

        Raises
        ------
        InputError
            When it has another dimension or is not finite, or the count is not positive.
        """
        check_is_fitted(self)
        self.accumulator_.replace(label, torch.as_tensor(mean), count)
        return self

    def forget_class(self, label: Any) -> Self:
        """Removes a class as if it had never been seen.

        Raises
        ------
        InputError
            When there is no such class.
        """
        check_is_fitted(self)
        self.accumulator_.forget(label)
        return self

    def _begin(self, dimension: int, device: torch.device) -> None:
        if self.metric not in get_args(Metric):
            raise InputError(f"metric {self.metric!r} is unknown: {nearest(str(self.metric), get_args(Metric))}")
        self.accumulator_ = ClassAccumulator(dimension, device)

    def _announce(self, classes: Labels) -> None:
        self.accumulator_.announce(classes)

    def _learn(self, features: Tensor, labels: Labels) -> None:
        self._add(self.accumulator_, features, labels)

    def _add(self, accumulator: ClassAccumulator, features: Tensor, labels: Labels) -> None:
        accumulator.announce(labels)
        for part in row_chunks(len(features), features.shape[1]):
            chunk = features[part].to(accumulator.device, torch.float64)
            accumulator.add(self._normalised(chunk), labels[part])

    def _normalised(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return unit_rows(features) if self.normalize else features

    def _means(self) -> Float[Tensor, "C D"]:
        means = self.accumulator_.means
        return normalise_rows(means) if self.renormalize_means or self.metric == "cosine" else means

    def _scorer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        if not self.accumulator_.seen.any():
            raise InputError("no class has an example: partial_fit some before predicting")
        place = precise(device)
        means, unseen = self._means().to(place), ~self.accumulator_.seen.to(place)

        def scores(features: Tensor) -> Tensor:
            z = self._normalised(features)
            found = normalise_rows(z) @ means.T if self.metric == "cosine" else nearest_mean_scores(z, means)
            return found.masked_fill(unseen, -torch.inf)

        return scores

    def _state(self) -> dict[str, Any]:
        return self.accumulator_.state_dict()

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.accumulator_.load_state_dict(state)
