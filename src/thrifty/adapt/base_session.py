"""The base session of few-shot class-incremental learning: an encoder trained on the base classes, then frozen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.adapt.accumulator import Labels, as_labels
from thrifty.adapt.teen import cosine_scores
from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled, fit
from thrifty.core.run import Run
from thrifty.core.schedules import warmup_cosine
from thrifty.core.threads import one_thread
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.nets.representations import feature_size
from thrifty.nets.vision import pixels


class CosineClassifier(nn.Module):
    """Logits ``T cos(f(x), w_c)`` on top of an encoder.

    Parameters
    ----------
    encoder
        f.
    dimension
        D, how many features it gives.
    classes
        C.
    temperature
        T.
    """

    def __init__(self, encoder: nn.Module, dimension: int, classes: int, temperature: float = 16.0) -> None:
        super().__init__()
        self.encoder, self.temperature = encoder, temperature
        self.weight = nn.Parameter(torch.empty(classes, dimension))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Float[Tensor, "B channels height width"]) -> Float[Tensor, "B C"]:
        """The logits."""
        return cosine_scores(self.encoder(x), self.weight, self.temperature)


@dataclass(frozen=True)
class BaseTraining:
    """How an encoder is trained on the base classes: cross-entropy of a cosine classifier, SGD, a cosine schedule.

    Parameters
    ----------
    encoder
        See :func:`thrifty.nets.picture_encoders.picture_encoder`.
    width
        Of a new encoder.
    epochs
        Passes over the base examples.
    batch_size
        Pictures in a batch.
    learning_rate, weight_decay
        Of SGD with momentum 0.9 (Nesterov).
    temperature
        T of the classifier.
    """

    encoder: str = "resnet"
    width: int = 16
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    temperature: float = 16.0

    def train(self, images: NDArray[np.uint8], labels: Labels, run: Run) -> nn.Module:
        """An encoder in evaluation mode.

        Parameters
        ----------
        images
            Base pictures, uint8 ``[N, H, W]`` or ``[N, H, W, 3]``.
        labels
            Their classes, ``[N]``.
        run
            Keeps checkpoints, and says where to train.

        Raises
        ------
        InputError
            When there are fewer than two classes, or pictures and labels don't fit together.
        """
        classes, codes = np.unique(as_labels(labels), return_inverse=True)
        if len(classes) < 2 or len(images) != len(codes):
            raise InputError(
                f"{len(images)} base pictures came with {len(codes)} labels of {len(classes)} classes: an encoder is "
                "trained on two classes or more, one label a picture"
            )
        x, y = pixels(images), torch.from_numpy(codes)
        encoder = picture_encoder(self.encoder, x.shape[1], x.shape[2], self.width)
        model = CosineClassifier(encoder, feature_size(encoder, x[:2]), len(classes), self.temperature).train()
        order = Shuffled(len(y), self.batch_size, run.seed, last="drop")
        steps = max(self.epochs * (len(y) // self.batch_size), 1)

        def loss(net: nn.Module, step: int) -> Tensor:
            rows = order(step)
            return nn.functional.cross_entropy(net(x[rows].to(run.device)), y[rows].to(run.device))

        optimizer = torch.optim.SGD(
            model.parameters(), self.learning_rate, momentum=0.9, weight_decay=self.weight_decay, nesterov=True
        )
        with one_thread():
            fit(
                loss,
                model,
                lambda step: step,
                optimizer,
                run,
                steps,
                schedule=warmup_cosine(steps),
                save_every=500,
                log_every=50,
                label="base classes",
            )
        return model.encoder.eval()
