"""KLoM: how far the margins of models that were made to forget are from those of models that never saw the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.forget.data import as_source, labels
from thrifty.forget.retraining import outputs
from thrifty.nets.stacked import Stacked

Parity = Literal["official_v1", "official_v2"]


def margins(
    logits: Float[Tensor, "*models points classes"], y: Int[Tensor, " points"]
) -> Float[Tensor, "*models points"]:
    r"""How sure a classifier is of the true class, :math:`z_y - \log \sum_{c \neq y} e^{z_c}`.

    Parameters
    ----------
    logits
        Of any number of models.
    y
        True classes.
    """
    true = y[..., None] == torch.arange(logits.shape[-1], device=logits.device)
    chosen = (logits * true).sum(-1)
    return chosen - logits.masked_fill(true, -torch.inf).logsumexp(-1)


def klom(
    unlearned: Float[Tensor, "models points"],
    oracle: Float[Tensor, "oracles points"],
    bins: int = 20,
    eps: float = 1e-5,
    clip: float = 100.0,
    parity: Parity | None = None,
) -> Float[Tensor, " points"]:
    r"""The KL divergence of margins of each point, :math:`KL(P_{unlearned} \| Q_{oracle})`, from histograms.

    P and Q are the shares of the models whose margin falls into each of ``bins`` equal parts of the range of both.
    Where P is positive, Q is at least ``eps``, which bounds the value by about :math:`\log(1/eps)`: 11.5. Finitely
    many models differ by chance, so the floor is not 0 but what two sets of retrained models show.

    Parameters
    ----------
    unlearned
        Margins of models that were made to forget, each from an original of its own: runs that share one have an
        artificially narrow distribution.
    oracle
        Margins of models trained without the forget set.
    bins
        Parts of the range.
    eps
        Smallest share of the oracles in a part.
    clip
        Margins are clipped to this size.
    parity
        For numbers to compare with released ones: ``"official_v2"`` is the authors' later code, which leaves out
        the largest margin (its last bin is open); ``"official_v1"`` their first, with one bin less, oracle margins
        that are not clipped, and ``eps`` in every bin. Either divides Q by its sum, as this does; the first is NaN
        where all margins are equal.

    Returns
    -------
    Tensor
        In nats, at least 0; float64.

    Raises
    ------
    InputError
        When the points differ, there is no model, or a margin is not a number.

    References
    ----------
    Georgiev et al., Attribute-to-Delete: Machine Unlearning via Datamodel Matching, ICLR 2025, arXiv 2410.23232.
    """
    if unlearned.ndim != 2 or oracle.ndim != 2 or unlearned.shape[1] != oracle.shape[1]:
        raise InputError(
            f"margins must be [models, points] for the same points, not {list(unlearned.shape)} and "
            f"{list(oracle.shape)}"
        )
    if not (len(unlearned) and len(oracle)):
        raise InputError("KLoM compares distributions over models: give the margins of at least one of either kind")
    for name, given in (("unlearned", unlearned), ("oracle", oracle)):
        if given.isnan().any():
            raise InputError(f"the {name} margins hold NaN at point {int(given.isnan().any(0).nonzero()[0, 0])}")
    p = unlearned.double().clamp(-clip, clip).mT
    q = oracle.double().mT if parity == "official_v1" else oracle.double().clamp(-clip, clip).mT
    both = torch.cat([p, q], 1)
    low, high = both.amin(1, keepdim=True), both.amax(1, keepdim=True)
    if parity != "official_v1":
        high = torch.where(high > low, high, low + 1)
    parts = bins - 1 if parity == "official_v1" else bins
    edges = low + (high - low) * torch.linspace(0, 1, parts + 1, dtype=torch.float64, device=p.device)
    edges = torch.cat([edges[:, :-1], high], 1)  # exactly, which low + (high - low) need not be
    found, wanted = (_histogram(values, edges, closed=parity is None) for values in (p, q))
    if parity == "official_v1":
        # A bin below the range, which is always empty and has its eps all the same.
        found, wanted = (torch.nn.functional.pad(shares, (1, 0)) for shares in (found, wanted))
    return _divergence(found, wanted, eps, everywhere=parity == "official_v1")


def _histogram(
    values: Float[Tensor, "points models"], edges: Float[Tensor, "points edges"], closed: bool
) -> Float[Tensor, "points bins"]:
    """The share of the values of each point between two neighbouring edges; ``closed``: the last edge included."""
    bins = edges.shape[1] - 1
    where = torch.searchsorted(edges.contiguous(), values.contiguous(), right=True) - 1
    if closed:
        where = where.clamp(max=bins - 1)
    counts = torch.zeros(len(values), bins + 1, dtype=torch.float64, device=values.device)
    counts.scatter_add_(1, where, torch.ones_like(values))
    inside = counts[:, :bins]
    return inside / inside.sum(1, keepdim=True)


def _divergence(
    p: Float[Tensor, "points bins"], q: Float[Tensor, "points bins"], eps: float, everywhere: bool
) -> Float[Tensor, " points"]:
    floor = q.clamp(min=eps) if everywhere else torch.where(p > 0, q.clamp(min=eps), q)
    q = floor / floor.sum(1, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(1).clamp(min=0)  # rounding may leave -1e-16


def klom_scores(
    unlearned: Stacked | Sequence[nn.Module],
    oracles: Stacked | Sequence[nn.Module],
    sets: Mapping[str, Any],
    *,
    bins: int = 20,
    batch_size: int = 256,
) -> dict[str, float]:
    """KLoM on each set, beside :func:`thrifty.forget.evaluate.evaluate` which judges a single model.

    Parameters
    ----------
    unlearned
        Models that were made to forget, each from an original of its own.
    oracles
        Models trained without the forget set.
    sets
        Name to data of the room, with labels.
    bins
        As for :func:`klom`.
    batch_size
        Examples asked about at once.

    Returns
    -------
    dict
        For each set ``<name>_klom`` (the mean over its points), ``<name>_klom_95`` (their 95th percentile), and
        ``<name>_margin_error``: the mean distance of the models' mean margin from the oracles'.

    Raises
    ------
    InputError
        When a set is empty or has no labels.
    """
    scores: dict[str, float] = {}
    for name, data in sets.items():
        source = as_source(data, f"{name} set")
        y = labels(source)
        mine, theirs = (margins(outputs(models, source, batch_size), y) for models in (unlearned, oracles))
        scores |= {f"{name}_{metric}": value for metric, value in klom_summary(mine, theirs, bins).items()}
    return scores


def klom_summary(
    unlearned: Float[Tensor, "models points"], oracle: Float[Tensor, "oracles points"], bins: int = 20
) -> dict[str, float]:
    """Mean and 95th percentile of KLoM over the points, and the mean distance between mean margins."""
    each = klom(unlearned, oracle, bins)
    return {
        "klom": float(each.mean()),
        "klom_95": float(each.quantile(0.95)),
        "margin_error": float((unlearned.double().mean(0) - oracle.double().mean(0)).abs().mean()),
    }
