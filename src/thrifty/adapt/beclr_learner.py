"""What BECLR's training minimises: a student predicts a teacher's view, in a batch enlarged from memories."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.adapt.block_masks import block_masks, blotted
from thrifty.core.loop import Loss
from thrifty.nets.representations import spread
from thrifty.nets.self_supervised import Teacher, ViewLearner, cosine_momentum, mlp_head, negative_cosine

if TYPE_CHECKING:
    from thrifty.adapt.beclr_training import Pretraining

PATCHES = 14  # along each side: the paper's patches of 16 pixels in pictures of 224


def alignment(p: Float[Tensor, "B R D"], targets: Float[Tensor, "B J D"]) -> Float[Tensor, ""]:
    """``−mean_ij cos(p_ij, sg t_ij)``, one direction of the loss of positives; R is J, or 1 for all of them.

    Parameters
    ----------
    p
        Predictions from one view.
    targets
        The teacher's projection of the other view, and its neighbours in the memory; no gradient reaches them.
    """
    return negative_cosine(p, targets).mean()


def uniformity(
    first: Float[Tensor, "L D"], second: Float[Tensor, "L D"], temperature: float = 2.0
) -> Float[Tensor, ""]:
    r"""How crowded the projections of both views are, less is better.

    .. math::
        L_{uni} = \log \frac1n \sum_i \frac{1}{n-2} \sum_{j \ne i, pos(i)} \exp(z_i \cdot z_j / \tau)

    Parameters
    ----------
    first, second
        Projections of the two views, of any length; row i of both belongs together. n is 2L.
    temperature
        τ.
    """
    z = functional.normalize(torch.cat([first, second]), dim=1)
    n = len(z)
    itself = torch.eye(n // 2, dtype=torch.bool, device=z.device).repeat(2, 2)
    others = (z @ z.T / temperature).exp().masked_fill(itself, 0.0)
    return (others.sum(1) / (n - 2)).mean().log()


class BECLRLearner(ViewLearner):
    """Student, teacher and their memories, as :func:`thrifty.nets.self_supervised.train_views` trains them.

    Parameters
    ----------
    encoder
        Maps pictures to features ``[B, F]`` (or maps, which are flattened).
    features
        F.
    settings
        How it is trained.
    steps
        Of the whole training.

    Raises
    ------
    InputError
        When a batch does not fit the memory.
    """

    def __init__(self, encoder: nn.Module, features: int, settings: Pretraining, steps: int) -> None:
        super().__init__()
        width = settings.width
        projector = mlp_head([features, width, width, width], last_norm=True)
        self.online = nn.Sequential(encoder, nn.Flatten(1), projector)
        self.predictor = mlp_head([width, max(width // 4, 1), width])
        self.teacher = Teacher(self.online)
        # Of the teacher's projections, of the student's, and of its predictions where they are paired too.
        kinds = 0 if not settings.neighbours else 3 if settings.pairing == "released" else 2
        self.memories = nn.ModuleList(settings.new_memory() for _ in range(kinds))
        self.settings, self.momentum = settings, cosine_momentum(settings.teacher_momentum, 1.0, steps)
        self.start = round(settings.memory_start * steps)
        self.recluster = round(settings.recluster * steps)
        self._seen: tuple[Tensor, ...] = ()

    @property
    def encoder(self) -> nn.Module:
        """What is wanted in the end: the student's."""
        return self.online[0]

    def loss(self, views: Float[Tensor, "views channels height width"]) -> Loss:
        """``½ [align(p^α, z^β) + align(p^β, z^α)] + λ uniformity``, over the enlarged batch once the memory is used."""
        settings = self.settings
        z = self.online(self._masked(views))
        p, t = self.predictor(z), self.teacher(views)
        self._seen = t, z.detach(), p.detach()
        if settings.push_first:
            self._push()
        predictions, targets, projections = p.unsqueeze(1), t.unsqueeze(1), z.unsqueeze(1)
        used = len(self.memories) > 0 and int(self.steps_taken) >= self.start and self._ready()
        if used:
            targets = torch.cat([targets, self.memories[0](t)[0]], 1)
            projections = torch.cat([projections, self.memories[1](z)[0]], 1)
            if settings.pairing == "released":
                predictions = torch.cat([predictions, self.memories[2](p)[0]], 1)
        (p1, p2), (t1, t2), (z1, z2) = (part.chunk(2) for part in (predictions, targets, projections))
        aligned = (alignment(p1, t2) + alignment(p2, t1)) / 2
        crowded = uniformity(z1.flatten(0, 1), z2.flatten(0, 1), settings.temperature)
        metrics = {"alignment": aligned.detach(), "uniformity": crowded.detach(), "spread": spread(z.detach())}
        return Loss(aligned + settings.uniformity_weight * crowded, metrics | {"memory": float(used)})

    def after_step(self) -> None:
        """Keeps the batch, lets the teacher follow, and clusters the memories anew where it is time."""
        if not self.settings.push_first:
            self._push()
        self.teacher.follow(self.online, self.momentum(int(self.steps_taken)))
        super().after_step()
        if self.recluster and int(self.steps_taken) % self.recluster == 0 and self._ready():
            for memory in self.memories:
                memory.cluster()  # type: ignore[operator]

    def _masked(self, views: Tensor) -> Tensor:
        height, width = views.shape[2:]
        patch = self.settings.patch_size or max(min(height, width) // PATCHES, 1)
        if not self.settings.mask_ratio or min(height, width) < patch:
            return views
        ratio, spread_ = self.settings.mask_ratio, self.settings.mask_spread
        return blotted(views, block_masks(len(views), height // patch, width // patch, ratio, spread_), patch)

    def _ready(self) -> bool:
        return len(self.memories) > 0 and all(memory.ready for memory in self.memories)

    def _push(self) -> None:
        for memory, rows in zip(self.memories, self._seen, strict=False):
            memory.update(rows)  # type: ignore[operator]
