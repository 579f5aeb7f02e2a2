"""What one would do on frozen features without the room's methods: trained linear heads, and streaming LDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from thrifty.adapt.accumulator import ClassAccumulator, Labels, precise, row_chunks
from thrifty.adapt.evaluation import StreamResult, run_stream
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.nmc import NMC, normalise_rows
from thrifty.adapt.stream import Stream
from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread

TEMPERATURE = 2.0


def distillation(logits: Float[Tensor, "B C"], before: Float[Tensor, "B C"]) -> Float[Tensor, ""]:
    """``T² KL(softmax(before / T) ‖ softmax(logits / T))`` at temperature T = 2 (learning without forgetting)."""
    new, old = nn.functional.log_softmax(logits / TEMPERATURE, 1), nn.functional.log_softmax(before / TEMPERATURE, 1)
    return TEMPERATURE**2 * nn.functional.kl_div(new, old, reduction="batchmean", log_target=True)


def fisher_diagonal(
    weight: Float[Tensor, "C D1"], features: Float[Tensor, "N D1"], codes: Tensor
) -> Float[Tensor, "C D1"]:
    """The mean over examples of the squared gradient of the log-likelihood of a linear softmax classifier."""
    residual = (features @ weight.T).softmax(1) - nn.functional.one_hot(codes, len(weight))
    return residual.square().T @ features.square() / len(features)


def pulled_back(
    weight: Float[Tensor, "C D1"], before: Float[Tensor, "C D1"], strength: Float[Tensor, "C D1"]
) -> Float[Tensor, "C D1"]:
    """The proximal step of ``strength / 2 (weight - before)²``: unlike its gradient step it can't overshoot."""
    return (weight + strength * before) / (1 + strength)


@dataclass(eq=False, repr=False)
class LinearHead(StreamingHead):
    """A linear softmax head trained by SGD on each session in turn; a call of ``partial_fit`` is a session.

    As it is, it is the fine-tuned head that forgets; with ``replay``, ``distill`` or ``ewc`` it is the usual remedy
    of that name.

    Parameters
    ----------
    learning_rate
        Of SGD with momentum 0.9, falling linearly to zero over a session.
    epochs
        Passes over a session.
    batch_size
        New examples in a batch; with ``replay`` as many stored ones are added.
    replay
        How many examples are stored in all, drawn evenly from the stream (reservoir sampling).
    distill
        Weight of the distillation from the head before the session, on its classes (learning without forgetting). Not
        together with ``replay``.
    ewc
        Weight of the squared change of the head's parameters, each weighted by its Fisher information in the earlier
        sessions (elastic weight consolidation).
    normalize
        Scale feature vectors to length one, as NMC does.
    seed
        Of the order of the batches and of what is stored.
    """

    learning_rate: float = 10.0
    epochs: int = 10
    batch_size: int = 32
    replay: int = 0
    distill: float = 0.0
    ewc: float = 0.0
    normalize: bool = True
    seed: int = 0

    @property
    def classes_(self) -> Labels:  # type: ignore[override]
        check_is_fitted(self)
        classes = self.counter_.classes
        return np.empty(0, dtype=np.int64) if classes is None else classes

    def _begin(self, dimension: int, device: torch.device) -> None:
        if self.replay and self.distill:
            raise InputError("replay and distill exclude each other: set one of them to 0")
        # A feature of nothing but one: its sums are the counts, and classes grow as they do for everybody else.
        self.counter_ = ClassAccumulator(1, device)
        self.weight_ = torch.zeros(0, dimension + 1, device=device)
        self.fisher_ = torch.zeros(0, dimension + 1, device=device)
        self.stored_ = torch.zeros(0, dimension + 1, device=device)
        self.stored_labels_: list[Any] = []
        self.sessions_ = 0

    def _announce(self, classes: Labels) -> None:
        known = self.counter_.classes
        self.counter_.announce(classes)
        grown = self.counter_.classes
        assert grown is not None
        index = torch.from_numpy(np.searchsorted(grown, grown[:0] if known is None else known))
        for name in ("weight_", "fisher_"):
            old = getattr(self, name)
            new = old.new_zeros(len(grown), old.shape[1])
            new[index.to(old.device)] = old
            setattr(self, name, new)

    def _inputs(self, features: Tensor) -> Tensor:
        z = features.to(self.weight_.device, torch.float32)
        return nn.functional.pad(normalise_rows(z) if self.normalize else z, (0, 1), value=1.0)

    def _learn(self, features: Tensor, labels: Labels) -> None:
        seen = self.counter_.seen
        old = np.empty(0) if self.counter_.classes is None else self.counter_.classes[seen.cpu().numpy()]
        self._announce(labels)
        z, codes = self._inputs(features), self._codes(labels)
        known = torch.from_numpy(np.isin(self.classes_, old)).to(z.device)
        draw = generator(self.seed, "session", self.sessions_)
        with one_thread():
            self._train(z, codes, known, draw)
        if self.ewc:
            self.fisher_ += fisher_diagonal(self.weight_, z, codes)
        self._store(z, labels, draw)
        self.counter_.add(z[:, -1:], labels)
        self.sessions_ += 1

    def _codes(self, labels: Any) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.classes_, np.asarray(labels))).to(self.weight_.device)

    def _train(self, z: Tensor, codes: Tensor, known: Tensor, draw: torch.Generator) -> None:
        before = self.weight_.clone()
        weight = self.weight_.clone().requires_grad_()
        # With distillation the new labels only tell the session's classes apart, as its implementations have it:
        # else they would push all old classes down, which is what the distillation is to prevent.
        open_classes = torch.zeros_like(known) if self.distill else known.clone()
        open_classes[codes] = True
        closed = torch.where(open_classes, 0.0, -torch.inf)
        stored_codes = self._codes(self.stored_labels_) if self.stored_labels_ else codes[:0]
        optimizer = torch.optim.SGD([weight], self.learning_rate, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.epochs * -(-len(z) // self.batch_size))
        for _ in range(self.epochs):
            for batch in torch.randperm(len(z), generator=draw).split(self.batch_size):
                x, y = z[batch], codes[batch]
                if self.stored_labels_:
                    again = torch.randint(len(stored_codes), (self.batch_size,), generator=draw)
                    x, y = torch.cat([x, self.stored_[again]]), torch.cat([y, stored_codes[again]])
                logits = x @ weight.T
                loss = nn.functional.cross_entropy(logits + closed, y)
                if self.distill and known.any():
                    loss = loss + self.distill * distillation(logits[:, known], (x @ before.T)[:, known])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if self.ewc:
                    weight.data = pulled_back(weight.data, before, schedule.get_last_lr()[0] * self.ewc * self.fisher_)
                schedule.step()
        self.weight_ = weight.detach()

    def _store(self, z: Tensor, labels: Labels, draw: torch.Generator) -> None:
        if not self.replay:
            return
        passed = int(self.counter_.counts.sum())
        for number, label in enumerate(labels.tolist()):
            if len(self.stored_labels_) < self.replay:
                self.stored_ = torch.cat([self.stored_, z[number : number + 1]])
                self.stored_labels_.append(label)
                continue
            place = int(torch.randint(passed + number + 1, (), generator=draw))
            if place < self.replay:
                self.stored_[place], self.stored_labels_[place] = z[number], label

    def _scorer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        unseen = ~self.counter_.seen

        def scores(features: Tensor) -> Tensor:
            found = (self._inputs(features) @ self.weight_.T).masked_fill(unseen, -torch.inf)
            return found.to(precise(device), torch.float64)

        return scores

    def _state(self) -> dict[str, Any]:
        tensors = {name: getattr(self, name).clone() for name in ("weight_", "fisher_", "stored_")}
        extra = {"counter": self.counter_.state_dict(), "labels": list(self.stored_labels_), "sessions": self.sessions_}
        return tensors | extra

    def _load_state(self, state: Mapping[str, Any]) -> None:
        for name in ("weight_", "fisher_", "stored_"):
            setattr(self, name, state[name].clone())
        self.counter_.load_state_dict(state["counter"])
        self.stored_labels_, self.sessions_ = list(state["labels"]), state["sessions"]


class Joint:
    """Keeps all examples and, at each session, trains a fresh head on all of them: the upper reference.

    Parameters
    ----------
    head
        What is trained; a copy of it with nothing learnt.
    """

    def __init__(self, head: StreamingHead) -> None:
        self.head = head
        self._features: list[Any] = []
        self._labels: list[Labels] = []

    def partial_fit(self, X: Any, y: Any) -> Self:
        """Keeps the examples and trains anew on everything."""
        self._features.append(X)
        self._labels.append(y)
        join = torch.cat if isinstance(X, Tensor) else np.concatenate
        self.head = clone(self.head).fit(join(self._features), np.concatenate(self._labels))
        return self

    def predict(self, X: Any) -> Any:
        """The labels that the newest head predicts."""
        return self.head.predict(X)


@dataclass(eq=False, repr=False)
class StreamingLDA(StreamingHead):
    """Linear discriminant analysis from running sums: class means and one covariance shared by all classes.

    .. math:: \\Sigma = \\frac{1}{N} \\Big( \\sum_i z_i z_i^\\top - \\sum_c n_c \\mu_c \\mu_c^\\top \\Big), \\quad
              s_c(z) = \\mu_c^\\top \\Sigma_\\epsilon^{-1} z - \\tfrac12 \\mu_c^\\top \\Sigma_\\epsilon^{-1} \\mu_c

    As deep SLDA (Hayes & Kanan, arXiv 1909.01520), with the covariance of all examples so far and so without a trace
    of their order.

    Parameters
    ----------
    shrinkage
        Share in (0, 1] of the mean variance, equal in all directions, in the covariance.
    normalize
        Scale feature vectors to length one, as NMC does.
    """

    shrinkage: float = 0.05
    normalize: bool = True

    @property
    def classes_(self) -> Labels:  # type: ignore[override]
        check_is_fitted(self)
        classes = self.accumulator_.classes
        return np.empty(0, dtype=np.int64) if classes is None else classes

    def _begin(self, dimension: int, device: torch.device) -> None:
        self.accumulator_ = ClassAccumulator(dimension, device)
        self.moment_ = self.accumulator_.sums.new_zeros(dimension, dimension)

    def _announce(self, classes: Labels) -> None:
        self.accumulator_.announce(classes)

    def _inputs(self, features: Tensor) -> Tensor:
        z = features.to(self.moment_.device, torch.float64)
        return normalise_rows(z) if self.normalize else z

    def _learn(self, features: Tensor, labels: Labels) -> None:
        self.accumulator_.announce(labels)
        for part in row_chunks(len(features), features.shape[1]):
            z = self._inputs(features[part])
            self.accumulator_.add(z, labels[part])
            self.moment_ += z.T @ z

    def _scorer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        means, counts = self.accumulator_.means, self.accumulator_.counts
        covariance = (self.moment_ - (means * counts[:, None]).T @ means) / counts.sum()
        ridge = self.shrinkage * covariance.diagonal().mean().clamp(min=1e-12)
        covariance = (1 - self.shrinkage) * covariance + ridge * torch.eye(len(covariance)).to(covariance)
        precision_means = torch.linalg.solve(covariance, means.T)
        offset = (means.T * precision_means).sum(0) / 2

        def scores(features: Tensor) -> Tensor:
            found = self._inputs(features) @ precision_means - offset
            return found.masked_fill(~self.accumulator_.seen, -torch.inf).to(precise(device))

        return scores

    def _state(self) -> dict[str, Any]:
        return {"means": self.accumulator_.state_dict(), "moment": self.moment_.clone()}

    def _load_state(self, state: Mapping[str, Any]) -> None:
        self.accumulator_.load_state_dict(state["means"])
        self.moment_ = state["moment"].clone()


def cosine_ncm() -> NMC:
    """The nearest class mean by angle: NMC whose means are scaled to length one as well."""
    return NMC(renormalize_means=True)


def sequential(stream: Stream) -> StreamResult:
    """The fine-tuned linear head."""
    return run_stream(LinearHead(), stream, label="sequential head")


def joint(stream: Stream) -> StreamResult:
    """The linear head trained on everything so far: the upper reference."""
    return run_stream(Joint(LinearHead()), stream, label="joint head")
