"""Few-shot classification of letters: an encoder trained on some scripts, settings chosen on others, tested on a third.

Base: all scripts but those of Europe's alphabets, about 2,500 letters of few drawings each. Validation: Greek and
Cyrillic. Novel: Latin, more than a thousand letters of 16 drawings, many of which differ by an accent only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.core.progress import track
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.data.cache import cache_root
from thrifty.data.letters import LetterSet, letters
from thrifty.nets.encoders import evaluating, weights_digest
from thrifty.nets.extraction import extract
from thrifty.nets.vision import ResNet, ResNetConfig, is_net, load_net, pixels, save_net

VALIDATION, NOVEL = ("Greek", "Cyrillic"), ("Latin",)
DRAWINGS = 16
_SMOOTHING, _BATCH, _RATE, _SHIFT = 0.1, 128, 2e-3, 2
_RECIPE = 1  # counts up when training changes, so that older networks in the cache are not taken


@dataclass(frozen=True, eq=False)
class Drawn:
    """Some letters.

    Parameters
    ----------
    images
        uint8 ``[N, 28, 28]``.
    labels
        Which letter each shows, int64 ``[N]``.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Letters of three groups of scripts.

    Parameters
    ----------
    base
        What encoders are trained on.
    validation, novel
        Letters with exactly 16 drawings each.
    """

    base: Drawn
    validation: Drawn
    novel: Drawn


def letter_parts(drawn: LetterSet | None = None) -> Parts:
    """The letters of the base, the validation and the novel scripts.

    Parameters
    ----------
    drawn
        The letters; those of :func:`thrifty.data.letters.letters` when not given.
    """
    found = letters() if drawn is None else drawn

    def of(scripts: tuple[str, ...]) -> NDArray[np.bool_]:
        return np.isin(found.script, [found.scripts.index(name) for name in scripts])

    held = of((*VALIDATION, *NOVEL))
    parts = [_even(found, of(scripts)) for scripts in (VALIDATION, NOVEL)]
    return Parts(Drawn(found.images[~held], np.unique(found.labels[~held], return_inverse=True)[1]), *parts)


def _even(found: LetterSet, chosen: NDArray[np.bool_]) -> Drawn:
    """The first 16 drawings of each chosen letter that has so many."""
    rows = np.flatnonzero(chosen & (np.bincount(found.labels)[found.labels] >= DRAWINGS))
    order = rows[np.argsort(found.labels[rows], kind="stable")]
    labels = found.labels[order]
    place = np.arange(len(order)) - np.searchsorted(labels, labels)
    kept = order[place < DRAWINGS]
    return Drawn(found.images[kept], found.labels[kept])


@dataclass(frozen=True)
class Training:
    """How the encoder is trained.

    Parameters
    ----------
    epochs
        Passes over the base drawings.
    width, blocks
        Of the :class:`thrifty.nets.vision.ResNet`, which has four times ``width`` features.
    drawings
        Base drawings at most; ``None`` for all.
    """

    epochs: int = 10
    width: int = 32
    blocks: tuple[int, ...] = (1, 1, 1)
    drawings: int | None = None

    @classmethod
    def quick(cls) -> Training:
        """Seconds of training, to show that all works."""
        return cls(epochs=2, width=8, drawings=3000)


class LetterEncoder:
    """A small residual network trained on the base scripts, as an encoder of pictures ``[N, 28, 28]``.

    Parameters
    ----------
    network
        Gives the features before its last layer.
    """

    def __init__(self, network: ResNet) -> None:
        self.network = network
        self.identity = f"letters {weights_digest(network)}"

    def __call__(self, inputs: Any) -> Float[Tensor, "N D"]:
        with evaluating(self.network):
            return self.network.features(pixels(np.asarray(inputs)))


def letter_encoder(seed: int = 0, training: Training | None = None, parts: Parts | None = None) -> LetterEncoder:
    """The encoder of that seed: read from the cache where the same training was done before.

    Parameters
    ----------
    seed
        Of its weights and the order of training.
    training
        How it is trained; the defaults when not given.
    parts
        The letters; those of :func:`letter_parts` when not given.
    """
    how = Training() if training is None else training
    base = (letter_parts() if parts is None else parts).base
    folder = _place(base, how, seed)
    if not is_net(folder):
        save_net(_train(base, how, seed), folder)
    network = load_net(folder)
    assert isinstance(network, ResNet)
    return LetterEncoder(network)


def _place(base: Drawn, training: Training, seed: int) -> Path:
    digest = hashlib.blake2b(json.dumps([_RECIPE, asdict(training), seed]).encode(), digest_size=16)
    digest.update(base.images.tobytes() + base.labels.tobytes())
    return cache_root() / "encoders" / f"letters-{digest.hexdigest()}"


@one_thread()
def _train(base: Drawn, training: Training, seed: int) -> ResNet:
    """Cross-entropy with label smoothing on drawings shifted at random, as the papers train their backbones."""
    random = np.random.default_rng(derive_seed(seed, "letter encoder"))
    rows = random.permutation(len(base.labels))[: training.drawings]
    classes, codes = np.unique(base.labels[rows], return_inverse=True)
    x, y = pixels(base.images[rows]), torch.from_numpy(codes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "letter weights"))
        network = ResNet(ResNetConfig(len(classes), width=training.width, blocks=training.blocks, stem_stride=2))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = training.epochs * (len(y) // _BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=max(steps, 2))
    order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
    for _ in track(range(steps), "letter encoder"):
        if len(order) < _BATCH:
            order = random.permutation(len(y))
        batch, order = torch.from_numpy(order[:_BATCH]), order[_BATCH:]
        shift = tuple(int(by) for by in random.integers(-_SHIFT, _SHIFT + 1, 2))
        images = torch.roll(x[batch], shift, (2, 3)).contiguous(memory_format=torch.channels_last)
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(images), y[batch], label_smoothing=_SMOOTHING).backward()
        optimizer.step()
        schedule.step()
    return network.to(memory_format=torch.contiguous_format).eval()


@dataclass(frozen=True, eq=False)
class FewShotLetters:
    """Features of all letters.

    Parameters
    ----------
    base
        Features ``[N, D]`` and labels ``[N]`` of the letters that the encoder was trained on.
    validation, novel
        Those of the letters that it never saw.
    """

    base: tuple[Float[Tensor, "N D"], NDArray[np.int64]]
    validation: tuple[Float[Tensor, "N D"], NDArray[np.int64]]
    novel: tuple[Float[Tensor, "N D"], NDArray[np.int64]]

    @property
    def centre(self) -> Float[Tensor, " D"]:
        """The mean feature of the base drawings, ``[D]``."""
        return self.base[0].mean(0)

    def episodes(self, design: Design, count: int, *, seed: int, validation: bool = False) -> Episodes:
        """Episodes of the novel letters, or of the validation letters.

        Parameters
        ----------
        design, count, seed
            See :func:`thrifty.adapt.episodes.draw_episodes`.
        validation
            Of the validation letters.
        """
        features, labels = self.validation if validation else self.novel
        seed = derive_seed(seed, "validation" if validation else "novel")
        return draw_episodes(features, labels, design, count, seed=seed, centre=self.centre)


def few_shot_letters(seed: int = 0, training: Training | None = None, drawn: LetterSet | None = None) -> FewShotLetters:
    """Features of all letters, from the encoder of that seed.

    Parameters
    ----------
    seed, training
        See :func:`letter_encoder`.
    drawn
        The letters; those of :func:`thrifty.data.letters.letters` when not given.
    """
    parts = letter_parts(drawn)
    encoder = letter_encoder(seed, training, parts)
    drawn_parts = (parts.base, parts.validation, parts.novel)
    return FewShotLetters(
        *((torch.from_numpy(extract(encoder, part.images, 256)), part.labels) for part in drawn_parts)
    )
