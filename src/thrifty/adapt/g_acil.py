"""G-ACIL: a linear head that equals ridge regression on all data seen, "G-ACIL: Analytic Learning for Exemplar-Free
Generalized Class Incremental Learning" (Zhuang et al., 2024, arXiv 2403.15706; later "GACL")."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from thrifty.adapt.accumulator import ClassAccumulator, Labels, grow, precise, row_chunks
from thrifty.adapt.expansion import gaussian_kernel, random_directions, random_relu, random_tanh
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.ridge import BalancedRidge, GramRidge, RecursiveRidge, Ridge
from thrifty.adapt.stream import StreamKind
from thrifty.core.errors import InputError, nearest
from thrifty.core.method import register
from thrifty.core.seeding import generator

Solver = Literal["recursive", "gram"]
Buffer = Literal["relu", "gaussian"]
_RIDGES: Mapping[str, type[Ridge]] = {"recursive": RecursiveRidge, "gram": GramRidge}


@register("g-acil")
@dataclass(eq=False, repr=False)
class GACIL(StreamingHead):
    r"""Linear head on frozen features that, after any stream of old and new classes, is the joint ridge regression.

    .. math::
        R = (B^\top B + \gamma I)^{-1}, \quad W = R B^\top Y, \quad B = \mathrm{ReLU}(X W_B^\top)

    .. math::
        R \leftarrow R - R B_k^\top (I + B_k R B_k^\top)^{-1} B_k R, \qquad
        W \leftarrow W + R B_k^\top (Y_k - B_k W)

    :math:`Y` are one-hot labels; a class seen for the first time gets a column of zeros before the step. At each moment
    W is what ridge regression on all examples so far would give, in whatever order and batches they came, old and new
    classes together, and no example is stored. Nothing is trained by gradient, and what a step costs does not depend
    on how many came before. Where the encoder is trained on base classes first
    (:class:`thrifty.adapt.base_session.BaseTraining`), the head then learns the base examples like all others.

    Parameters
    ----------
    ridge
        γ, above 0. It stands beside a *sum* of squared errors over examples of unscaled features, so what is large
        depends on the features' squared length and on the number of examples; the paper uses 100 for a small ViT and
        chose among 10 to 10,000 on held-out data. It is scikit-learn's ``Ridge(alpha=ridge, fit_intercept=False)``.
    buffer_size
        M, the size of the fixed random expansion; no expansion when ``None``. The recursion keeps M² numbers.
    buffer
        relu: random directions, as the paper. gaussian: a Gaussian kernel on examples (GKEAL); its centres are drawn
        from the first examples that come, at most as many as these, so give a large first batch.
    width
        σ of the Gaussian kernel, in the features' unit.
    bias
        Add a feature of ones. It is shrunk by the ridge like all others.
    solver
        recursive: keep the inverse, as the paper; weights are there after every batch. gram: keep BᵀB and BᵀY and
        solve when weights are asked for; the same weights, cheaper when many small batches come between two
        questions, and ``ridge`` can be changed later.
    balance_classes
        Weigh each class alike, however many examples it has (AIR, for imbalanced streams), by sums of each class apart:
        M² numbers a class, and no recursion.
    compensation
        Weight of a second stream on ``tanh`` features, which learns what the first one leaves over of each call's new
        classes (DS-AL); 0 for none. Unlike all else it depends on how the stream was cut into calls.
    buffer_seed
        Of the random expansion.

    Attributes
    ----------
    classes_ : ndarray
        The C classes so far, sorted, announced ones included.
    weights_ : ndarray
        float64 ``[M, C]``: W, with a last row for the bias where there is one.
    counts_ : ndarray
        int64 ``[C]``: how many examples of each class were learnt.
    n_features_in_ : int
        D.

    Raises
    ------
    InputError
        When a setting is out of range or excludes another.
    RunError
        When the features are too close to dependent for the ridge.

    References
    ----------
    arXiv 2403.15706, equations of Section 3 (exposed and unexposed classes: :func:`thrifty.adapt.ridge.block_step`).
    Released code, ZHUANGHP/Analytic-continual-learning, which has the bias, GKEAL, DS-AL and AIR beside it. The script
    of the paper's generalised streams learns each batch three times, which is this head with a third of the ridge.

    Examples
    --------
    >>> head = GACIL(ridge=1.0, buffer_size=None).partial_fit([[1.0, 0.0], [1.0, 1.0]], [0, 0])
    >>> head.partial_fit([[0.0, 2.0], [1.0, 0.0]], [1, 0]).weights_.round(6).tolist()
    [[0.73913, -0.086957], [0.043478, 0.347826]]
    """

    usual_stream: ClassVar[StreamKind] = "si-blurry"

    ridge: float = 1.0
    buffer_size: int | None = 5000
    buffer: Buffer = "relu"
    width: float = 10.0
    bias: bool = False
    solver: Solver = "recursive"
    balance_classes: bool = False
    compensation: float = 0.0
    buffer_seed: int = 0

    @property
    def classes_(self) -> Labels:  # type: ignore[override]
        check_is_fitted(self)
        classes = self.counter_.classes
        return np.empty(0, dtype=np.int64) if classes is None else classes

    @property
    def counts_(self) -> NDArray[np.int64]:
        check_is_fitted(self)
        return self.counter_.counts.cpu().numpy().copy()

    @property
    def weights_(self) -> NDArray[np.float64]:
        check_is_fitted(self)
        return self._main().solution(self.ridge).cpu().numpy().copy()

    def _begin(self, dimension: int, device: torch.device) -> None:
        self._check()
        self.dimension_ = dimension
        # A feature of nothing but one: its sums are the counts, and classes grow as they do for everybody else.
        self.counter_ = ClassAccumulator(1, device)
        self.buffer_: Tensor | None = None
        self.ridges_: list[Ridge] = []
        if self.buffer_size is not None and self.buffer == "relu":
            draw = generator(self.buffer_seed, "buffer")
            self.buffer_ = random_directions(dimension, self.buffer_size, draw).to(self.counter_.device)

    def _check(self) -> None:
        for name, value, known in (("solver", self.solver, Solver), ("buffer", self.buffer, Buffer)):
            if value not in get_args(known):
                raise InputError(f"{name} {value!r} is unknown: {nearest(str(value), get_args(known))}")
        if not 0 < self.ridge < float("inf"):
            raise InputError(f"ridge must be above 0, not {self.ridge:g}")
        if self.buffer_size is not None and self.buffer_size < 1:
            raise InputError(f"buffer_size must be at least 1, or None for no expansion, not {self.buffer_size}")
        if self.buffer == "gaussian" and self.buffer_size is None:
            raise InputError("buffer='gaussian' needs a buffer_size: how many centres to draw")
        if not self.width > 0:
            raise InputError(f"width must be above 0, not {self.width:g}")
        if self.compensation < 0 or (self.compensation and (self.buffer != "relu" or self.buffer_size is None)):
            raise InputError("compensation is a weight of at least 0, and needs buffer='relu' with a buffer_size")
        if self.compensation and self.balance_classes:
            raise InputError("balance_classes and compensation exclude each other: set one of them off")

    def _check_memory(self, classes: int) -> None:
        if not hasattr(os, "sysconf"):  # on Windows
            return
        size = self.buffer_size or self.dimension_
        needed, there = 8 * classes * size**2, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > there:
            raise InputError(
                f"balance_classes keeps a {size} x {size} matrix for each of {classes} classes, {needed / 1e9:.0f} GB, "
                f"but there are {there / 1e9:.0f}: take a smaller buffer_size"
            )

    def _announce(self, classes: Labels) -> None:
        union, positions = grow(self.counter_.classes, classes)
        if self.balance_classes:
            self._check_memory(len(union))
        self.counter_.announce(classes)
        for ridge in self.ridges_:
            ridge.grow(torch.from_numpy(positions), len(union))

    def _learn(self, features: Tensor, labels: Labels) -> None:
        known = self.counter_.classes
        old = labels[:0] if known is None else known[self.counter_.seen.cpu().numpy()]
        self._announce(labels)
        if not self.ridges_:
            self._open(features)
        exposed = torch.from_numpy(np.isin(self.classes_, old)).to(self.counter_.device)
        codes = torch.from_numpy(np.searchsorted(self.classes_, labels)).to(self.counter_.device)
        parts = [*row_chunks(len(features), max(self.ridges_[0].dimension, features.shape[1]))]
        for part in parts:
            x = features[part].to(self.counter_.device, torch.float64)
            self._main().add(self._expanded(x), self._targets(codes[part], exposed))
        if self.compensation:
            # After the whole call, so that what is left over is what the finished first stream leaves.
            weights = self._main().solution(self.ridge).clone()
            for part in parts:
                x = features[part].to(self.counter_.device, torch.float64)
                left = self._targets(codes[part], exposed) - self._expanded(x) @ weights
                self.ridges_[1].add(self._second(x), left.masked_fill(exposed, 0.0))
        self.counter_.add(codes.new_ones(len(codes), 1, dtype=torch.float64), labels)

    def _open(self, features: Tensor) -> None:
        """Draws the centres of a kernel, and makes the regressions now that their size is known."""
        if self.buffer == "gaussian":
            assert self.buffer_size is not None
            draw = generator(self.buffer_seed, "buffer")
            chosen = torch.randperm(len(features), generator=draw)[: self.buffer_size].to(features.device)
            self.buffer_ = features[chosen].to(self.counter_.device, torch.float64)
        self._make()
        for ridge in self.ridges_:
            ridge.grow(torch.zeros(0, dtype=torch.int64), len(self.classes_))

    def _make(self) -> None:
        kind = BalancedRidge if self.balance_classes else _RIDGES[self.solver]
        size = self.dimension_ if self.buffer_ is None else len(self.buffer_)
        count = 2 if self.compensation else 1
        self.ridges_ = [kind(size + self.bias, self.ridge, self.counter_.device) for _ in range(count)]

    def _main(self) -> Ridge:
        if not self.ridges_:
            raise InputError("no class has an example: partial_fit some before predicting")
        return self.ridges_[0]

    def _targets(self, codes: Int[Tensor, " N"], exposed: Bool[Tensor, " C"]) -> Float[Tensor, "N C"]:  # noqa: ARG002
        """One-hot labels; ``exposed`` says which classes were seen before the call."""
        return nn.functional.one_hot(codes, len(self.classes_)).to(torch.float64)

    def _expanded(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N M"]:
        if self.buffer_ is None:
            return self._with_ones(x)
        buffer = self.buffer_.to(x.device)
        return self._with_ones(
            random_relu(x, buffer) if self.buffer == "relu" else gaussian_kernel(x, buffer, self.width)
        )

    def _second(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N M"]:
        assert self.buffer_ is not None
        return self._with_ones(random_tanh(x, self.buffer_.to(x.device)))

    def _with_ones(self, b: Float[Tensor, "N M"]) -> Float[Tensor, "N M1"]:
        return nn.functional.pad(b, (0, 1), value=1.0) if self.bias else b

    def _scorer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        place = precise(device)
        main, *rest = (ridge.solution(self.ridge).to(place) for ridge in [self._main(), *self.ridges_[1:]])
        unseen = ~self.counter_.seen.to(place)

        def scores(features: Tensor) -> Tensor:
            found = self._expanded(features) @ main
            for weights in rest:
                found = found + self.compensation * (self._second(features) @ weights)
            return found.masked_fill(unseen, -torch.inf)

        return scores

    def _state(self) -> dict[str, Any]:
        ridges = [ridge.state() for ridge in self.ridges_]
        return {"counter": self.counter_.state_dict(), "buffer": self.buffer_, "ridges": ridges}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.counter_.load_state_dict(state["counter"])
        self.buffer_ = state["buffer"]
        if state["ridges"]:
            self._make()
            for ridge, kept in zip(self.ridges_, state["ridges"], strict=True):
                ridge.load(kept)
