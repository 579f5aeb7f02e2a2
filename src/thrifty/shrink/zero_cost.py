"""Training-free metrics: what one batch says about a network before it has learnt anything.

Each metric is ``metric(model, x, y) -> float`` for any classifier ``model(x) -> logits [B, C]``, on any device. The
model that is given stays as it is: gradients, hooks and statistics are those of a copy in training mode. A value that
can't be computed is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError, nearest
from thrifty.shrink.untrained import (
    Rectifiers,
    by_channel,
    copied,
    cross_entropy,
    floating,
    gradients_of,
    is_weighted,
    without_batch_norms,
)

Metric = Callable[[nn.Module, Tensor, Tensor], float]
_EPSILON = 1e-5  # of the jacobian's eigenvalues


def gradient_norm(gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    r"""Grad norm, :math:`\sum_l \lVert \partial L / \partial W_l \rVert_2` over layers."""
    return torch.stack([gradient.norm() for gradient in gradients]).sum()


def connection_sensitivity(weights: Sequence[Tensor], gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    r"""SNIP and SynFlow, :math:`\sum |W \odot \partial L / \partial W|`: what masks of ones would change."""
    return torch.stack([(w * g).abs().sum() for w, g in zip(weights, gradients, strict=True)]).sum()


def gradient_flow(weights: Sequence[Tensor], hessian_gradients: Sequence[Tensor]) -> Float[Tensor, ""]:
    r"""GraSP, :math:`\sum -W \odot H g` with the Hessian times the gradient."""
    return -torch.stack([(w * h).sum() for w, h in zip(weights, hessian_gradients, strict=True)]).sum()


def channel_fisher(
    activations: Float[Tensor, "batch channel place"], gradients: Float[Tensor, "batch channel place"]
) -> Float[Tensor, " channel"]:
    r"""Fisher, :math:`\tfrac12 \mathrm{mean}_b (\sum_s a_{bcs} \, \partial L / \partial a_{bcs})^2` of each channel."""
    return (activations * gradients).sum(2).square().mean(0) / 2


def jacobian_score(jacobian: Float[Tensor, "batch input"]) -> Float[Tensor, ""]:
    r"""Jacob cov, :math:`-\sum_i \log(v_i + \epsilon) + 1 / (v_i + \epsilon)`, of the eigenvalues of the correlations.

    Parameters
    ----------
    jacobian
        For each example the gradient of the sum of its outputs. NaN comes back where an example's is constant.
    """
    correlations = torch.corrcoef(jacobian)
    if not torch.isfinite(correlations).all():
        return torch.full((), math.nan, dtype=jacobian.dtype)
    values = torch.linalg.eigvalsh(correlations) + _EPSILON
    return -(values.log() + 1 / values).sum()


def pattern_volume(patterns: Float[Tensor, "batch unit"]) -> Float[Tensor, ""]:
    r"""NASWOT, :math:`\log |\det K|`, where :math:`K_{ij}` counts the rectifiers that agree on examples i and j.

    Parameters
    ----------
    patterns
        1 where a rectifier lets through what it gets, else 0.
    """
    off = 1 - patterns
    return torch.linalg.slogdet(patterns @ patterns.T + off @ off.T).logabsdet


def grad_norm(model: nn.Module, x: Tensor, y: Int[Tensor, " batch"]) -> float:
    """The norms of the cross-entropy's gradients, see :func:`gradient_norm`."""
    net, weights = copied(model)
    return gradient_norm(gradients_of(cross_entropy(net, x, y), weights)).item()


def snip(model: nn.Module, x: Tensor, y: Int[Tensor, " batch"]) -> float:
    """Lee et al. 2019 (arXiv 1810.02340), see :func:`connection_sensitivity`."""
    net, weights = copied(model)
    return connection_sensitivity(weights, gradients_of(cross_entropy(net, x, y), weights)).item()


def grasp(model: nn.Module, x: Tensor, y: Int[Tensor, " batch"]) -> float:
    """Wang et al. 2020 (arXiv 2002.07376), see :func:`gradient_flow`."""
    net, weights = copied(model)
    gradients = gradients_of(cross_entropy(net, x, y), weights, create_graph=True)
    product = torch.stack([(g.detach() * g).sum() for g in gradients]).sum()
    return gradient_flow(weights, gradients_of(product, weights)).item()


def fisher(model: nn.Module, x: Tensor, y: Int[Tensor, " batch"], *, released: bool = False) -> float:
    """Theis et al. 2018 (arXiv 1801.05787), see :func:`channel_fisher`, summed over channels and layers.

    Parameters
    ----------
    model, x, y
        As for all metrics.
    released
        Count a channel once for each of its weights, as the sum of the released code comes out.
    """
    net, _ = copied(model)
    kept: list[tuple[nn.Module, Tensor]] = []

    def keep(layer: nn.Module, inputs: object, output: Tensor) -> Tensor:  # noqa: ARG001
        kept.append((layer, output))
        return output.clone()  # whatever changes it in place leaves the one that is kept

    for layer in net.modules():
        if is_weighted(layer):
            layer.register_forward_hook(keep)
    loss = cross_entropy(net, x, y)
    outputs = [output for _, output in kept]
    total = 0.0
    for (layer, output), gradient in zip(kept, gradients_of(loss, outputs), strict=True):
        a, g = (by_channel(part, last=isinstance(layer, nn.Linear)) for part in (output.detach(), gradient))
        weight = layer.weight
        assert isinstance(weight, Tensor)
        total += float(channel_fisher(a, g).sum()) * (weight[0].numel() if released else 1)
    return total


def synflow(
    model: nn.Module, x: Tensor, y: Tensor | None = None, *, examples: int = 1, bypass_norm: bool = True
) -> float:
    """Tanaka et al. 2020 (arXiv 2006.05467): :func:`connection_sensitivity` of the outputs' sum for an input of ones.

    All weights and buffers are replaced by their absolute values; it is computed in double precision.

    Parameters
    ----------
    model, x
        As for all metrics; of ``x`` only the shape counts.
    y
        Not looked at.
    examples
        Rows of the input of ones; all of them where the examples of a batch depend on each other.
    bypass_norm
        Whether batch normalisation is left out; with it the value is another one.
    """
    del y
    net, weights = copied(without_batch_norms(model) if bypass_norm else model)
    net.double()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.dtype != torch.bool:
                tensor.abs_()
    total = net(torch.ones_like(floating(x)[:examples], dtype=torch.float64)).sum()
    return connection_sensitivity(weights, gradients_of(total, weights)).item()


def jacob_cov(model: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    """Mellor et al. 2020 (arXiv 2006.04647, first version), see :func:`jacobian_score`; ``y`` is not looked at."""
    del y
    net, _ = copied(model)
    inputs = floating(x).detach().clone().requires_grad_()
    (jacobian,) = gradients_of(net(inputs).sum(), [inputs])
    return float(jacobian_score(jacobian.flatten(1).double()))


@torch.no_grad()
def naswot(model: nn.Module, x: Tensor, y: Tensor | None = None) -> float:
    """Mellor et al. 2021 (arXiv 2006.04647), see :func:`pattern_volume`; ``y`` is not looked at.

    Rectifiers are found wherever they are called, as modules or functions.
    """
    del y
    net, _ = copied(model)
    with Rectifiers(len(x)) as seen:
        net(x)
    if not seen.patterns:
        raise InputError("naswot needs a network with rectifiers (ReLU, ReLU6 or leaky ReLU), and this one has none")
    found = float(pattern_volume(torch.cat(seen.patterns, dim=1)))
    return found if math.isfinite(found) else math.nan


def parameters(model: nn.Module, x: Tensor | None = None, y: Tensor | None = None) -> float:
    """How many weights the network has."""
    del x, y
    return float(sum(parameter.numel() for parameter in model.parameters()))


METRICS: Mapping[str, Metric] = {
    "grad_norm": grad_norm,
    "snip": snip,
    "grasp": grasp,
    "fisher": fisher,
    "synflow": synflow,
    "jacob_cov": jacob_cov,
    "naswot": naswot,
    "parameters": parameters,
}
PAPERS = ("grad_norm", "snip", "grasp", "fisher", "synflow", "jacob_cov")
"""Those that the paper combines."""


def metric_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, checked.

    Raises
    ------
    InputError
        When one is unknown or given twice, or there is none; the nearest are offered.
    """
    for name in names:
        if name not in METRICS:
            raise InputError(f"no training-free metric {name!r}: {nearest(name, METRICS)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"the metrics must be different ones, at least one: {', '.join(names) or 'none given'}")
    return tuple(names)


def zero_cost_metrics(
    model: nn.Module, x: Tensor, y: Int[Tensor, " batch"], names: Sequence[str] = PAPERS, *, coupled: bool = False
) -> dict[str, float]:
    """Several metrics of one network.

    Parameters
    ----------
    model
        A classifier: ``model(x)`` gives logits [B, C]. It stays as it is.
    x
        A batch of inputs, float, [B, ...].
    y
        Their classes, int64, [B].
    names
        Some of :data:`METRICS`.
    coupled
        Whether what the model says of one example depends on the others, as for the nodes of a graph.

    Returns
    -------
    dict
        Name to value; NaN where it can't be computed.

    Raises
    ------
    InputError
        For an unknown metric, a model without convolutions and linear layers, logits that are not [B, C], or a class
        that is not among them.
    """
    found = dict(METRICS)
    if coupled:
        found["synflow"] = partial(synflow, examples=len(x))
    return {name: found[name](model, x, y) for name in metric_names(names)}
