"""A self-supervised step beside lightly's BYOL and SimSiam: the same encoder, batch, heads, optimizer and views.

The peer's step is that of lightly's published examples: each view through the encoder by itself, the momentum
networks likewise, their parameters averaged one by one, PyTorch's default memory format and SGD, all in float32. Its
heads, loss and update are lightly's own where that library is installed, and written from its documentation where it
is not: some machines get an empty package of that name. Ours is measured in float32, and in bfloat16, its option.
"""

from __future__ import annotations

import copy
import importlib
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from thrifty.bench._measure import paired, row
from thrifty.nets.picture_encoders import ResNetEncoder, ResNetEncoderConfig
from thrifty.nets.representations import feature_size
from thrifty.nets.self_supervised import mlp_head
from thrifty.nets.two_views import TwoViews

LEAST = 1.3
_BATCH, _SIDE, _WIDTH, _HIDDEN, _PROJECTION = 128, 32, 16, 512, 128
_MOMENTUM, _RATE = 0.99, 0.03
_METHODS = {"BYOL": True, "SimSiam": False}  # whether there is a teacher


def ssl_rows(quick: bool = False) -> list[dict[str, Any]]:
    """Measures steps on 128 colour pictures of 32x32 with a small residual network, one thread.

    Parameters
    ----------
    quick
        Fewer steps and one pair of runs.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = []
        steps, pairs = (2, 1) if quick else (4, 5)
        for (name, teacher), precision in product(_METHODS.items(), (torch.float32, torch.bfloat16)):
            ours = partial(_seconds, partial(_ours, precision), teacher, steps)
            found = paired(ours, partial(_seconds, _peer, teacher, steps), pairs)
            label = f"{name} step in {str(precision).removeprefix('torch.')} / {_peer_name()}, times as fast"
            rows.append(row(label, found, "s", least=LEAST, inverse=True))
        return rows
    finally:
        torch.set_num_threads(threads)


def _encoder() -> ResNetEncoder:
    torch.manual_seed(0)
    return ResNetEncoder(ResNetEncoderConfig(3, _WIDTH, (1, 1, 1)))


def _seconds(make: Callable[[bool], Callable[[Tensor, Tensor], None]], teacher: bool, steps: int) -> float:
    """Seconds of a step."""
    step = make(teacher)
    draw = torch.Generator().manual_seed(0)
    first, second = torch.rand((2, _BATCH, 3, _SIDE, _SIDE), generator=draw)
    step(first, second)  # memory is taken, kernels are chosen
    started = time.perf_counter()
    for _ in range(steps):
        step(first, second)
    return (time.perf_counter() - started) / steps


def _ours(precision: torch.dtype, teacher: bool) -> Callable[[Tensor, Tensor], None]:
    encoder = _encoder()
    features = feature_size(encoder, torch.zeros(2, 3, _SIDE, _SIDE))
    projector = mlp_head((features, _HIDDEN, _PROJECTION))
    predictor = mlp_head((_PROJECTION, _HIDDEN if teacher else _PROJECTION // 4, _PROJECTION))
    learner = TwoViews(
        encoder,
        projector,
        predictor,
        (lambda _: _MOMENTUM) if teacher else None,
        statistics="joint",
        precision=precision,
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    learner.train()
    optimizer = torch.optim.SGD(learner.groups(_RATE), momentum=0.9, weight_decay=4e-4, foreach=True)

    def step(first: Tensor, second: Tensor) -> None:
        views = torch.cat([first, second]).contiguous(memory_format=torch.channels_last)
        learner.loss(views).value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        learner.after_step()

    return step


def _lightly() -> Any:
    """lightly's building blocks, ``None`` where it is not installed."""
    try:
        heads = importlib.import_module("lightly.models.modules.heads")
        utils = importlib.import_module("lightly.models.utils")
        loss = importlib.import_module("lightly.loss.negative_cosine_similarity")
    except ImportError:
        return None
    return heads, utils, loss


def _peer_name() -> str:
    return "lightly" if _lightly() is not None else "lightly's way"


def _peer(teacher: bool) -> Callable[[Tensor, Tensor], None]:
    encoder = _encoder()
    features = feature_size(encoder, torch.zeros(2, 3, _SIDE, _SIDE))
    hidden = _HIDDEN if teacher else _PROJECTION // 4
    found = _lightly()
    if found is not None:
        heads, utils, losses = found
        projector = heads.BYOLProjectionHead(features, _HIDDEN, _PROJECTION)
        predictor = heads.BYOLPredictionHead(_PROJECTION, hidden, _PROJECTION)
        criterion, follow = losses.NegativeCosineSimilarity(), utils.update_momentum
    else:
        projector = mlp_head((features, _HIDDEN, _PROJECTION))
        predictor = mlp_head((_PROJECTION, hidden, _PROJECTION))
        criterion, follow = _negative_cosine, _update_momentum
    averages = [copy.deepcopy(part).requires_grad_(False) for part in (encoder, projector)]
    parts = nn.ModuleList([encoder, projector, predictor, *averages]).train()
    trained = [weight for weight in parts.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=_RATE, momentum=0.9, weight_decay=4e-4)

    def online(x: Tensor) -> tuple[Tensor, Tensor]:
        z = projector(encoder(x).flatten(start_dim=1))
        return z, predictor(z)

    @torch.no_grad()
    def target(x: Tensor) -> Tensor:
        out: Tensor = averages[1](averages[0](x).flatten(start_dim=1))
        return out.detach()

    def step(first: Tensor, second: Tensor) -> None:
        if teacher:
            follow(encoder, averages[0], m=_MOMENTUM)
            follow(projector, averages[1], m=_MOMENTUM)
        (z0, p0), (z1, p1) = online(first), online(second)
        t0, t1 = (target(first), target(second)) if teacher else (z0.detach(), z1.detach())
        loss = 0.5 * (criterion(p0, t1) + criterion(p1, t0))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _negative_cosine(x0: Tensor, x1: Tensor) -> Tensor:
    return -functional.cosine_similarity(x0, x1, dim=1).mean()


@torch.no_grad()
def _update_momentum(model: nn.Module, model_ema: nn.Module, m: float) -> None:
    for average, weight in zip(model_ema.parameters(), model.parameters(), strict=True):
        average.data = average.data * m + weight.data * (1.0 - m)
