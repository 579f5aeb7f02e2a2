"""TEEN: new class means pulled towards the base classes they resemble, "Few-Shot Class-Incremental Learning via
Training-Free Prototype Calibration" (Wang, Zhou, Zhang, Zhan & Ye, NeurIPS 2023, arXiv 2312.05229)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from thrifty.adapt.accumulator import ClassAccumulator, Labels, as_labels, precise
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.nmc import normalise_rows, unit_rows
from thrifty.adapt.stream import StreamKind
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register

Among = Literal["all", "new"]


def similarity_weights(new: Float[Tensor, "*T K D"], base: Float[Tensor, "B D"], tau: float) -> Float[Tensor, "*T K B"]:
    r"""``w_{n,b} = softmax_b(τ ĉ_n·ĉ_b)`` over the base classes, of prototypes of length one."""
    return (tau * new @ base.mT).softmax(-1)


def calibrate_prototypes(
    new: Float[Tensor, "*T K D"], base: Float[Tensor, "B D"], *, tau: float = 16.0, base_weight: float = 0.5
) -> Float[Tensor, "*T K D"]:
    r"""New prototypes pulled towards a mixture of the base prototypes that they resemble.

    .. math::
        w_{n,b} = \mathrm{softmax}_b(\tau\, \hat c_n^\top \hat c_b), \quad
        \Delta_n = \textstyle\sum_b w_{n,b} \hat c_b, \quad
        \tilde c_n = (1 - \lambda) \hat c_n + \lambda \Delta_n / \|\Delta_n\|

    The mixture is scaled to length one before it is mixed in, as the released code does: it would count for less the
    more base classes it mixes. The result is not scaled to length one; a cosine classifier does not need it.

    Parameters
    ----------
    new
        Class means of the K new classes, of any length; leading dimensions are episodes.
    base
        Class means of the B base classes.
    tau
        τ, above 0: the larger, the fewer base classes in the mixture.
    base_weight
        λ in [0, 1], the weight of the mixture. The paper's α is the weight of the new prototype, 1 − λ; the released
        code's ``shift_weight`` is λ.
    """
    own, known = normalise_rows(new), normalise_rows(base)
    mixture = normalise_rows(similarity_weights(own, known, tau) @ known)
    return (1 - base_weight) * own + base_weight * mixture


def cosine_scores(
    features: Float[Tensor, "*T N D"], prototypes: Float[Tensor, "*T C D"], scale: float
) -> Float[Tensor, "*T N C"]:
    """``T cos(φ(x), c)``; leading dimensions are episodes."""
    return scale * normalise_rows(features) @ normalise_rows(prototypes).mT


@register("teen")
@dataclass(eq=False, repr=False)
class TEEN(StreamingHead):
    r"""Cosine classifier by class means whose new classes, known from a few examples, lean on similar base classes.

    .. math::
        \hat y = \arg\max_c \cos(\varphi(x), \tilde c_c), \qquad
        \tilde c_b = \hat c_b \text{ (base)}, \quad
        \tilde c_n = (1 - \lambda) \hat c_n + \lambda \Delta_n / \|\Delta_n\| \text{ (new)}

    A mean of a few examples is noisy, and an encoder trained on the base classes draws new examples towards them; base
    classes that resemble the new one say in which direction its mean is likely to be off. The means themselves are kept
    as they are and calibrated when they are read, so that a class may get further examples, and nothing is ever
    shifted twice. Base prototypes stay, and new ones never lean on each other. It needs many base classes, some of
    which resemble the new ones: with a handful it gives nothing.
    :func:`thrifty.adapt.teen_tuning.choose_base_weight` finds out on base classes.

    What :meth:`fit`, :meth:`fit_base` or the first :meth:`partial_fit` learns are base classes; later calls of
    :meth:`partial_fit` bring new ones.

    Parameters
    ----------
    tau
        τ, above 0: how sharply the most similar base classes are preferred.
    base_weight
        λ in [0, 1]: how much of a new prototype is base mixture; 0 is plain class means. The paper's 0.5; the released
        code has 0.1 for CIFAR-100. The paper's α is 1 − λ.
    scale
        T, above 0, of the scores; no prediction depends on it.
    among
        all: every class is predicted. new: only those after the base classes, as in few-shot episodes of new classes
        with the base classes for calibration only (the inductive few-shot form).

    Attributes
    ----------
    classes_ : ndarray
        The C classes so far, sorted, announced ones included.
    base_classes_ : ndarray
        Those of them that are base classes.
    means_ : ndarray
        float64 ``[C, D]``: the class means as they are; NaN for a class without an example.
    prototypes_ : ndarray
        float64 ``[C, D]``: what examples are compared with: base means of length one, calibrated new ones.
    counts_ : ndarray
        int64 ``[C]``.
    n_features_in_ : int
        D.

    Raises
    ------
    InputError
        When a setting is out of range, or a new class is given as a base class later.

    References
    ----------
    arXiv 2312.05229, Section 4. Means are of unscaled features of the training examples without augmentation, from an
    encoder in evaluation mode.

    Examples
    --------
    >>> head = TEEN(tau=1.0).fit_base([[2.0, 0.0], [0.0, 3.0]], ["a", "b"]).partial_fit([[3.0, 4.0]], ["n"])
    >>> head.prototypes_[2].round(6).tolist()
    [0.616746, 0.786875]
    """

    usual_stream: ClassVar[StreamKind] = "few-shot"

    tau: float = 16.0
    base_weight: float = 0.5
    scale: float = 16.0
    among: Among = "all"

    @property
    def classes_(self) -> Labels:  # type: ignore[override]
        check_is_fitted(self)
        classes = self.accumulator_.classes
        return np.empty(0, dtype=np.int64) if classes is None else classes

    @property
    def base_classes_(self) -> Labels:
        check_is_fitted(self)
        return self.classes_[self._is_base().cpu().numpy()]

    @property
    def means_(self) -> NDArray[np.float64]:
        check_is_fitted(self)
        means = self.accumulator_.means
        return means.masked_fill(~self.accumulator_.seen[:, None], torch.nan).cpu().numpy()

    @property
    def prototypes_(self) -> NDArray[np.float64]:
        check_is_fitted(self)
        return self._prototypes().masked_fill(~self.accumulator_.seen[:, None], torch.nan).cpu().numpy()

    @property
    def counts_(self) -> NDArray[np.int64]:
        check_is_fitted(self)
        return self.accumulator_.counts.cpu().numpy().copy()

    def fit_base(self, X: Any, y: Any) -> Self:
        """Learns examples of base classes, on top of those before.

        Parameters
        ----------
        X
            Features ``[N, D]``.
        y
            Labels ``[N]``, integers or strings.

        Raises
        ------
        InputError
            As for :meth:`fit`, or when one of the classes was already learnt as a new one; nothing is learnt then.
        """
        if self.__sklearn_is_fitted__():
            learnt = self.classes_[(self.accumulator_.seen & ~self._is_base()).cpu().numpy()]
            twice = np.intersect1d(learnt, as_labels(y)).tolist()
            if twice:
                raise InputError(f"class {twice[0]!r} was learnt as a new class: it can't be a base class as well")
            self._in_base = True
        try:
            return self.partial_fit(X, y)
        finally:
            self.__dict__.pop("_in_base", None)

    def _begin(self, dimension: int, device: torch.device) -> None:
        if not self.tau > 0 or not self.scale > 0:
            raise InputError(f"tau and scale must be above 0, not {self.tau:g} and {self.scale:g}")
        if not 0 <= self.base_weight <= 1:
            raise InputError(f"base_weight is a share between 0 and 1, not {self.base_weight:g}")
        if self.among not in get_args(Among):
            raise InputError(f"among {self.among!r} is unknown: {nearest(str(self.among), get_args(Among))}")
        self.accumulator_ = ClassAccumulator(dimension, device)
        self.base_: Labels | None = None

    def _announce(self, classes: Labels) -> None:
        self.accumulator_.announce(classes)

    def _learn(self, features: Tensor, labels: Labels) -> None:
        self.accumulator_.add(features, labels)
        if self.base_ is None or "_in_base" in self.__dict__:
            self.base_ = np.union1d(labels if self.base_ is None else self.base_, labels)

    def _is_base(self) -> Tensor:
        known = np.isin(self.classes_, () if self.base_ is None else self.base_)
        return torch.from_numpy(known).to(self.accumulator_.device)

    def _prototypes(self) -> Float[Tensor, "C D"]:
        means, base = self.accumulator_.means, self._is_base()
        prototypes = normalise_rows(means)
        prototypes[~base] = calibrate_prototypes(means[~base], means[base], tau=self.tau, base_weight=self.base_weight)
        return prototypes

    def _scorer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        closed = ~self.accumulator_.seen | (self._is_base() if self.among == "new" else False)
        if closed.all():
            missing = "class after the base classes" if self.among == "new" else "class"
            raise InputError(f"no {missing} has an example: partial_fit some before predicting")
        place = precise(device)
        prototypes, closed = self._prototypes().to(place), closed.to(place)

        def scores(features: Tensor) -> Tensor:
            return cosine_scores(unit_rows(features), prototypes, self.scale).masked_fill(closed, -torch.inf)

        return scores

    def _state(self) -> dict[str, Any]:
        base = None if self.base_ is None else np.flatnonzero(np.isin(self.classes_, self.base_))
        return {"means": self.accumulator_.state_dict(), "base": base}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.accumulator_.load_state_dict(state["means"])
        base = state["base"]
        self.base_ = None if base is None else self.classes_[np.asarray(base, dtype=np.int64)]
