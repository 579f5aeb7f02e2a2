"""Selective synaptic dampening: weights that matter to the forget set far more than to all data are shrunk."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.forget.base import cross_entropy, squared_logits
from thrifty.forget.data import Source, as_source, size, stream
from thrifty.forget.evaluate import agreement
from thrifty.forget.importance import Importances, Weights, importance, named

_log = logging.getLogger("thrifty")
_SELECTIONS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
_SAMPLE = 512  # examples of either set on which predictions are compared


@register("ssd")
@dataclass(frozen=True)
class SSD:
    r"""Forgets examples in one pass over the data and without training.

    .. math::
        I_{A,i} = E_A[(\partial \ell / \partial \theta_i)^2], \qquad
        S = \{i : I_{D_f,i} > \alpha I_{D,i}\}, \qquad
        \theta_i \leftarrow \min\left(\left(\lambda I_{D,i} / I_{D_f,i}\right)^e, b\right) \theta_i
        \quad \text{for } i \in S

    with D all training data, the forget set :math:`D_f` included. What gets smaller goes towards zero, not towards
    its value before training. The adaptive variant that chooses alpha by itself (arXiv 2402.10098) is not included.

    Which alpha works depends on how importances are measured. The mean gradient of a mini-batch, squared, shrinks
    with the batch size, so both sets are measured with the same one. With ``per_sample`` no ratio can exceed
    :math:`|D| / |D_f|`, so that an alpha above it changes nothing; the same holds for mini-batches of one class
    each, which the authors' class-forgetting script makes (pass such batches as ``full_set`` for its numbers).
    A weight that moves for the forget set alone has a ratio of about the inverse square of that set's share in a
    mini-batch of all data, so alpha has to stay below that: 100 where a class of ten is forgotten. On 8x8 digits, 10 to
    20 suits fully-connected networks and 50 a small residual one; 100 leaves the class known to either.

    Parameters
    ----------
    selection
        Alpha: how many times more a weight must matter to the forget set than to all data to be dampened. Smaller
        forgets more and harms more. The authors take 10 for a ResNet-18, 5 for a ViT, 50 for face recognition.
    dampening
        Lambda: scales what is left of a dampened weight.
    exponent
        Power of the ratio of importances.
    upper_bound
        Largest factor a dampened weight is multiplied by; at most 1, so that no weight grows.
    per_sample
        Measure the mean of the examples' own squared gradients instead of the mini-batches' squared mean gradient.
    label_free
        The variant without labels: importance is the mean magnitude of the gradient of the squared norm of the
        logits.
    batch_size
        Examples in a mini-batch of either set, where the data do not come in batches.
    shuffle
        Draw mini-batches in random order (always the same); off, they follow the order of the data.
    auto
        Choose alpha from 1, 2, 5, ... 1000 instead: the one for which the share of predictions that stay the same is
        largest on a sample of all data compared to a sample of the forget set; of equals, the largest. It takes no
        labels. Meant for a class or a kind of text; forgotten examples that resemble kept ones keep their prediction.

    References
    ----------
    Foster, Schoepf and Brintrup, Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening,
    AAAI 2024, arXiv 2308.07707. The label-free variant: Loss-Free Machine Unlearning, 2024, arXiv 2402.19308.
    """

    selection: float = 10.0
    dampening: float = 1.0
    exponent: float = 1.0
    upper_bound: float = 1.0
    per_sample: bool = False
    label_free: bool = False
    batch_size: int = 64
    shuffle: bool = True
    auto: bool = False

    needs: ClassVar[tuple[str, ...]] = ("forget_set", "full_set")

    def __post_init__(self) -> None:
        for name in ("selection", "dampening", "exponent"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.upper_bound <= 1:
            raise InputError(f"upper_bound must be from 0 to 1, not {self.upper_bound}: a larger one lets weights grow")
        if self.batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {self.batch_size}")

    @property
    def needs_labels(self) -> bool:
        """Whether the labels of the sets are looked at."""
        return not self.label_free

    def importance(self, model: nn.Module, data: Any, name: str = "data") -> Importances:
        """How much each weight matters to a set, measured as these settings say.

        Parameters
        ----------
        model
            A classifier or a causal language model; it is not changed.
        data
            Arrays ``(x, y)``, a data set, token sequences or an iterable of batches.
        name
            What messages call it.

        Returns
        -------
        Importances
            Keep that of all training data (``save``) to forget later without them.

        Raises
        ------
        InputError
            For empty data, wrong labels, inputs that are not finite, or a model that is no classifier.
        """
        batches = stream(data, self.batch_size, shuffle=0 if self.shuffle else None, name=name)
        objective, power = (squared_logits, 1) if self.label_free else (cross_entropy, 2)
        return importance(model, batches, objective, power=power, per_sample=self.per_sample)

    def forget(self, model: nn.Module, forget_set: Any, full_set: Any, *, inplace: bool = False) -> nn.Module:
        """Dampens what the forget set depends on.

        Parameters
        ----------
        model
            The trained model.
        forget_set
            What to forget, as for :meth:`importance`.
        full_set
            All training data, the forget set included; or their stored :class:`Importances` (or a dictionary of
            parameter name to importance).
        inplace
            Change ``model`` itself instead of a copy.

        Returns
        -------
        nn.Module
            A model of the same class; buffers and the rest of the weights are as before.

        Raises
        ------
        InputError
            As for :meth:`importance`; when the forget set is as large as the full set; when stored importances
            belong to another model or were measured otherwise.
        """
        if self.auto:
            # Looked at twice below, which an iterable of batches does not allow.
            forget_set, full_set = as_source(forget_set, "forget set"), self._examples(full_set)
        whole = self._full(model, forget_set, full_set)
        part = self.importance(model, forget_set, "forget set")
        method = self
        if self.auto:
            method = self._choose(model, named(whole), part.values, forget_set, full_set)
        if isinstance(whole, Importances):
            method._compare(part, whole)
        changed = model if inplace else copy.deepcopy(model)
        method._dampen_(changed, named(whole), part.values)
        return changed

    def _dampen_(self, model: nn.Module, whole: Weights, part: Weights) -> None:
        settings = {name: getattr(self, name) for name in ("selection", "dampening", "exponent", "upper_bound")}
        dampen_(model, whole, part, **settings)

    def _examples(self, full_set: Any) -> Source:
        if isinstance(full_set, Importances | Mapping):
            raise InputError("alpha can't be chosen from stored importances alone: give the full set, or selection")
        return as_source(full_set, "full set")

    def _choose(self, model: nn.Module, whole: Weights, part: Weights, forget_set: Source, full_set: Source) -> SSD:
        samples = [next(stream(source, _SAMPLE, shuffle=0)) for source in (full_set, forget_set)]
        best, most = self, -math.inf
        for alpha in reversed(_SELECTIONS):
            tried = replace(self, selection=alpha, auto=False)
            changed = copy.deepcopy(model)
            tried._dampen_(changed, whole, part)
            kept, gone = (agreement(model, changed, sample) for sample in samples)
            if kept - gone > most:
                best, most = tried, kept - gone
        _log.info("selection %g was chosen", best.selection)
        return best

    def _full(self, model: nn.Module, forget_set: Any, full_set: Any) -> Importances | Weights:
        if isinstance(full_set, Importances):
            return full_set
        stored = isinstance(full_set, Mapping) and all(isinstance(v, Tensor) for v in full_set.values())
        if isinstance(full_set, Mapping) and stored:
            return full_set
        everything, something = size(full_set), size(forget_set)
        if everything is not None and something is not None and something >= everything:
            raise InputError(
                f"the forget set holds {something} examples and the full set {everything}: the full set must hold "
                "what is kept as well"
            )
        return self.importance(model, full_set, "full set")

    def _compare(self, part: Importances, whole: Importances) -> None:
        if part.measure != whole.measure:
            raise InputError(
                f"the stored importances are the {whole.measure}, these settings measure the {part.measure}: measure "
                "both the same way"
            )
        if part.examples >= whole.examples:
            raise InputError(
                f"the forget set holds {part.examples} examples and the full set {whole.examples}: the full set must "
                "hold what is kept as well"
            )
        if self.per_sample:
            bound = whole.examples / part.examples
            if self.selection >= bound:
                _log.warning(
                    "selection %g selects nothing: per-sample importances differ at most %.3g-fold, the ratio of the "
                    "sets' sizes; give a smaller one",
                    self.selection,
                    bound,
                )
        elif part.batch_size != whole.batch_size:
            _log.warning(
                "the largest batch of the forget set has %d examples, that of the full set %d: importances shrink "
                "with the batch size, so selection %g does not mean what it usually does; take batches of %d for both",
                part.batch_size,
                whole.batch_size,
                self.selection,
                min(part.batch_size, whole.batch_size),
            )


def select(full: Float[Tensor, "*shape"], forget: Float[Tensor, "*shape"], selection: float) -> Bool[Tensor, "*shape"]:
    r"""Which weights to dampen, :math:`I_{D_f} > \alpha I_D` (the paper's equation of the selection).

    Parameters
    ----------
    full, forget
        Importances for all data and for the forget set, at least 0.
    selection
        Alpha.

    Returns
    -------
    Tensor
        True where dampened.
    """
    return forget > selection * full


def dampening_factor(
    full: Float[Tensor, "*shape"],
    forget: Float[Tensor, "*shape"],
    *,
    dampening: float = 1.0,
    exponent: float = 1.0,
    upper_bound: float = 1.0,
) -> Float[Tensor, "*shape"]:
    r"""What selected weights are multiplied by, :math:`\min((\lambda I_D / I_{D_f})^e, b)`.

    The authors' code calls ``upper_bound`` a lower bound; it is an upper one there as well. Without importance for
    the forget set the factor is the bound; such weights are never selected.

    Parameters
    ----------
    full, forget
        Importances for all data and for the forget set, at least 0.
    dampening
        Lambda.
    exponent
        Power of the ratio.
    upper_bound
        Largest factor.

    Returns
    -------
    Tensor
        From 0 to ``upper_bound``.
    """
    ratio = dampening * full / torch.where(forget > 0, forget, torch.ones_like(forget))
    return torch.where(forget > 0, ratio.pow(exponent).clamp(max=upper_bound), torch.full_like(forget, upper_bound))


@torch.no_grad()
def dampen_(
    model: nn.Module,
    full: Weights,
    forget: Weights,
    *,
    selection: float = 10.0,
    dampening: float = 1.0,
    exponent: float = 1.0,
    upper_bound: float = 1.0,
) -> dict[str, int]:
    """Selects and dampens the weights of a model in place.

    Parameters
    ----------
    model
        The model; only its parameters change, never a buffer.
    full, forget
        Importances by parameter name.
    selection, dampening, exponent, upper_bound
        As for :class:`SSD`.

    Returns
    -------
    dict
        Parameter name to the number of its weights that were dampened.

    Raises
    ------
    InputError
        When a parameter has no importance, or one of another shape; nothing has changed then.
    """
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        for importances in (full, forget):
            if name not in importances or importances[name].shape != parameter.shape:
                found = list(importances[name].shape) if name in importances else "no entry"
                raise InputError(
                    f"the importances do not belong to this model: {name} has shape {list(parameter.shape)}, in the "
                    f"importances {found}"
                )
    counts = {}
    for name, parameter in parameters.items():
        whole, part = (i[name].to(parameter.device, torch.float32) for i in (full, forget))
        chosen = select(whole, part, selection)
        factor = dampening_factor(
            whole[chosen], part[chosen], dampening=dampening, exponent=exponent, upper_bound=upper_bound
        )
        parameter[chosen] = (parameter[chosen].float() * factor).to(parameter.dtype)
        counts[name] = int(chosen.sum())
    return counts
