"""How BECLR trains an encoder without labels: its settings, and the training itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from thrifty.adapt.beclr_learner import BECLRLearner
from thrifty.adapt.dyce import DyCEMemory, Metric, Toward
from thrifty.core.errors import InputError, nearest
from thrifty.core.run import Run
from thrifty.nets.augmentations import Augmentation, Recipe
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.nets.representations import feature_size
from thrifty.nets.self_supervised import Augment, ViewTraining, train_views

Pairing = Literal["teacher", "released"]
log = logging.getLogger("thrifty")
EPOCHS = 400


@dataclass(frozen=True)
class Pretraining:
    """How an encoder is trained without labels.

    Parameters
    ----------
    epochs
        Passes over the pictures; 400 by default.
    training_batch
        Pictures in a batch; each has two views.
    learning_rate
        Of SGD with momentum 0.9 at 256 pictures a batch (it grows with the batch), falling to 0 along a cosine.
    weight_decay
        Of SGD.
    teacher_momentum
        m of ``θ_t ← m θ_t + (1 − m) θ_s``; rises to 1 along a cosine.
    width
        D, the length of projections and predictions.
    neighbours
        k, what the memory adds to each embedding; 0 for no memory.
    prototypes
        P, the memory's clusters. With 1 it is a plain memory of nearest neighbours.
    memory
        M, the embeddings in the memory; 40 for each prototype by default.
    memory_start
        Share of the epochs before the memory is used (60 of 400).
    recluster
        Share of the epochs between two k-means of the memory (60 of 400); 0 for the first one only.
    prototype_momentum
        What a prototype keeps of itself in each update.
    memory_epsilon
        Entropy penalty of the assignment to prototypes, in the unit of the distance between vectors of length one.
    memory_metric
        euclidean: that distance. cosine: 1 − cosine.
    memory_toward
        near: each embedding goes to a near prototype, as the paper says. far: the released code's sign; for parity.
    pairing
        teacher: each prediction is also drawn to the k neighbours of the teacher's other view. released: the
        neighbours of the prediction are paired with those of the teacher; both are constants, so they give no gradient
        and the loss of the pictures themselves shrinks to 1/(1+k).
    push_first
        Put a batch into the memory before it is looked up, as released; most rows then find themselves.
    uniformity_weight
        λ of the loss of negatives.
    temperature
        τ of it.
    mask_ratio, mask_spread
        Share of each picture that the student does not see, drawn evenly from ``mask_ratio ± mask_spread``.
    patch_size
        Pixels along a side of what is masked; a fourteenth of the picture by default.
    views
        How views are made: natural (crops, mirroring, colours), drawing (nothing is mirrored) or none.

    Raises
    ------
    InputError
        When a setting is out of range.
    """

    epochs: int | None = None
    training_batch: int = 256
    learning_rate: float = 0.3
    weight_decay: float = 1e-4
    teacher_momentum: float = 0.995
    width: int = 512
    neighbours: int = 5
    prototypes: int = 200
    memory: int | None = None
    memory_start: float = 0.15
    recluster: float = 0.15
    prototype_momentum: float = 0.0
    memory_epsilon: float = 0.05
    memory_metric: Metric = "euclidean"
    memory_toward: Toward = "near"
    pairing: Pairing = "teacher"
    push_first: bool = False
    uniformity_weight: float = 0.1
    temperature: float = 2.0
    mask_ratio: float = 0.15
    mask_spread: float = 0.1
    patch_size: int | None = None
    views: Recipe = "natural"

    def __post_init__(self) -> None:
        for name in ("epochs", "training_batch", "width", "prototypes", "memory", "patch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}")
        for name in ("learning_rate", "temperature", "memory_epsilon"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("memory_start", "recluster", "mask_ratio", "teacher_momentum"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be a share between 0 and 1, not {getattr(self, name):g}")
        if self.neighbours < 0 or self.uniformity_weight < 0 or not 0 <= self.mask_spread <= self.mask_ratio:
            raise InputError(
                "neighbours and uniformity_weight must not be negative, and mask_spread between 0 and mask_ratio, not "
                f"{self.neighbours}, {self.uniformity_weight:g} and {self.mask_spread:g}"
            )
        if self.pairing not in get_args(Pairing):
            raise InputError(f"pairing {self.pairing!r} is unknown: {nearest(str(self.pairing), get_args(Pairing))}")

    @property
    def memory_size(self) -> int:
        """M."""
        return 40 * self.prototypes if self.memory is None else self.memory

    def new_memory(self) -> DyCEMemory:
        """An empty memory."""
        return DyCEMemory(
            self.memory_size,
            self.width,
            self.prototypes,
            topk=self.neighbours,
            momentum=self.prototype_momentum,
            epsilon=self.memory_epsilon,
            metric=self.memory_metric,
            toward=self.memory_toward,
        )

    def train(
        self,
        pictures: UInt8[Tensor, "count channels height width"],
        run: Run,
        encoder: nn.Module | None = None,
        *,
        augment: Augment | None = None,
        save_every: int | None = 200,
    ) -> BECLRLearner:
        """Trains an encoder on pictures without labels; resumable, in place.

        Parameters
        ----------
        pictures
            Grey levels or colours 0-255.
        run
            For its device, seed, checkpoints and metrics.
        encoder
            Maps pictures in [-1, 1] to features ``[B, F]``; a small residual network when not given.
        augment
            Makes a random view of each picture, in place of the recipe ``views``.
        save_every
            Steps between checkpoints; ``None`` for none.

        Returns
        -------
        BECLRLearner
            Its ``encoder`` is the student's; it has the memories too.

        Raises
        ------
        InputError
            When there are fewer than 2 pictures, the encoder can't take them, or a batch of views does not fit the
            memory.
        """
        count, channels, height, width = pictures.shape
        batch = min(self.training_batch, count)
        if self.neighbours and 2 * batch > self.memory_size:
            raise InputError(
                f"the memory of {self.memory_size} embeddings does not hold the {2 * batch} of a batch: give a larger "
                "memory or a smaller training_batch"
            )
        training = ViewTraining(
            epochs=EPOCHS if self.epochs is None else self.epochs,
            batch_size=batch,
            learning_rate=self.learning_rate * batch / 256,
            weight_decay=self.weight_decay,
            schedule="cosine",
        )
        self._warn(count, 2 * batch * training.steps(count))
        net = picture_encoder("resnet", channels, height) if encoder is None else encoder
        device = next((weight.device for weight in net.parameters()), torch.device("cpu"))
        features = feature_size(net, pictures[:2].to(device).float() / 127.5 - 1)
        learner = BECLRLearner(net, features, self, training.steps(count))
        views = Augmentation(self.views, (height, width), channels) if augment is None else augment
        train_views(learner, pictures, views, run, training, save_every=save_every, label="pretrain")
        learner.eval()
        return learner

    def _warn(self, count: int, views: int) -> None:
        """Says so where the memory can't do what it is for."""
        if self.neighbours and self.memory_size > views:
            log.warning(
                "the memory of %d embeddings never fills with the %d views of this training, so it is not used: give a "
                "smaller --memory, or more --epochs",
                self.memory_size,
                views,
            )
        elif self.neighbours and self.memory_size >= 2 * count:
            log.warning(
                "the memory of %d embeddings holds all %d views of an epoch: many neighbours will be older views of a "
                "picture itself; give a smaller --memory",
                self.memory_size,
                2 * count,
            )
