"""Problems of forgetting on small pictures: a class, a part of a class, or a random subset of the training data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from thrifty.core.atomic import replacing, write_json
from thrifty.core.errors import InputError
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.data.images import images
from thrifty.forget.baselines import Retrain
from thrifty.forget.data import Labelled, Source
from thrifty.forget.evaluate import evaluate
from thrifty.forget.problems import Problem
from thrifty.nets.vision import WEIGHTS, ResNet, ResNetConfig, pixels

# Fashion-MNIST's classes by kind, so that what is forgotten is part of a class that stays.
KINDS = ("top", "trouser", "dress", "shoe", "bag")
_KIND_OF = torch.tensor([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])
_SHOES = (9, 5, 7)  # ankle boot, sandal, sneaker
_JUDGED = 2000  # retained training examples that are judged at most

Recipe = Callable[[tuple[int, ...], int, int, float], Retrain]


@dataclass(frozen=True, eq=False)
class Part:
    """Some pictures, and which of them belong to what must be forgotten.

    Parameters
    ----------
    data
        Pictures with their classes.
    gone
        True for those of the kind that must be forgotten, [N].
    """

    data: Labelled
    gone: Bool[Tensor, " N"]

    def split(self) -> tuple[Labelled, Labelled]:
        """What must be forgotten, and what is kept."""
        return self.data.rows(self.gone.nonzero()[:, 0]), self.data.rows((~self.gone).nonzero()[:, 0])


def fresh(config: ResNetConfig, seed: int) -> ResNet:
    """A network with new weights that depend on the seed only."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(config)


def fresh_vit(classes: int, size: int, seed: int) -> nn.Module:
    """A vision transformer of transformers for small grey pictures: 16 patches, 3 layers, 103 thousand weights."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=size,
        patch_size=size // 4,
        num_channels=1,
        num_labels=classes,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ViTForImageClassification(config)


def resnet_recipe(shape: tuple[int, ...], classes: int, seed: int, epochs: float) -> Retrain:
    """How a small residual network is trained on pictures of a shape ``(height, width)``."""
    config = ResNetConfig(classes, stem_stride=1 if shape[0] < 16 else 2)
    return Retrain(partial(fresh, config, seed), epochs=epochs, seed=seed)


def vit_recipe(shape: tuple[int, ...], classes: int, seed: int, epochs: float) -> Retrain:
    """How a small vision transformer is trained on pictures of a shape ``(height, width)``."""
    return Retrain(partial(fresh_vit, classes, shape[0], seed), learning_rate=2e-3, epochs=epochs, seed=seed, adam=True)


def class_problem(
    name: str,
    forgotten: int,
    seed: int,
    directory: Path,
    *,
    train: int,
    valid: int,
    test: int,
    epochs: float,
    recipe: Recipe = resnet_recipe,
) -> Problem:
    """The problem of forgetting one class of an image set; trained networks are kept in ``directory``.

    Parameters
    ----------
    name
        An image set of :func:`thrifty.data.images.images`.
    forgotten
        The class to forget.
    seed
        Of the choice of pictures, the weights and the order of training.
    directory
        Where the original and the retrained network are kept, and the run of a method.
    train, valid, test
        How many pictures to take for training, for choosing settings, and for the scores.
    epochs
        Passes over the training pictures.
    recipe
        Which network, and how it is trained.
    """
    classes = len(images(name).classes)
    if not 0 <= forgotten < classes:
        raise InputError(f"{name} has the classes 0 to {classes - 1}, not {forgotten}")
    full, held_out, final = (Part(data, _is(data, forgotten)) for data in _drawn(name, seed, train, valid, test))
    return _problem(full, held_out, final, recipe(_shape(full), classes, seed, epochs), directory)


def subclass_problem(
    forgotten: int, seed: int, directory: Path, *, train: int, valid: int, test: int, epochs: float
) -> Problem:
    """The problem of forgetting one kind of shoe of Fashion-MNIST whose classes are merged into five kinds.

    The kinds (:data:`KINDS`) take the place of superclasses: the model has never been told boots from sneakers. Merged
    classes rather than clusters of pixels, because a test picture then belongs to what was forgotten or does not, and a
    reader knows what it was. A network retrained without boots still takes most of them for shoes, so that the goal is
    far from zero.

    Parameters
    ----------
    forgotten
        Fashion-MNIST's class to forget.
    seed, directory, train, valid, test, epochs
        As for :func:`class_problem`.
    """
    parts = [
        Part(Labelled(data.x, _KIND_OF[_classes(data)]), _is(data, forgotten))
        for data in _drawn("fashion-mnist", seed, train, valid, test)
    ]
    full, held_out, final = parts
    return _problem(full, held_out, final, resnet_recipe(_shape(full), len(KINDS), seed, epochs), directory)


def random_problem(
    name: str, share: float, seed: int, directory: Path, *, train: int, valid: int, test: int, epochs: float
) -> Problem:
    """The problem of forgetting a random subset of the training pictures, of all classes.

    There are no further pictures of what is forgotten: the subset itself stands for it in ``valid``, and no test
    pictures are judged as forgotten.

    Parameters
    ----------
    name
        An image set.
    share
        Part of the training pictures to forget, between 0 and 1.
    seed, directory, train, valid, test, epochs
        As for :func:`class_problem`.
    """
    full, held_out, final = _drawn(name, seed, train, valid, test)
    order = torch.randperm(len(full), generator=generator(seed, "forget", "subset"))
    gone = torch.zeros(len(full), dtype=torch.bool)
    gone[order[: max(1, round(share * len(full)))]] = True
    recipe = resnet_recipe(_shape(Part(full, gone)), len(images(name).classes), seed, epochs)
    return _problem(Part(full, gone), held_out, final, recipe, directory)


def _drawn(name: str, seed: int, train: int, valid: int, test: int) -> tuple[Labelled, Labelled, Labelled]:
    """Pictures for training, for choosing settings and for the scores."""
    data = images(name)
    chosen = torch.randperm(len(data.train_x), generator=generator(seed, "forget", name))[: train + valid]
    everything = Labelled(pixels(data.train_x[chosen.numpy()]), torch.from_numpy(data.train_y[chosen.numpy()]))
    full = everything.rows(torch.arange(min(train, len(everything) - valid)))
    held_out = everything.rows(torch.arange(len(full), len(everything)))
    return full, held_out, Labelled(pixels(data.test_x[:test]), torch.from_numpy(data.test_y[:test]))


def _problem(
    full: Part, held_out: Part | Labelled, final: Part | Labelled, recipe: Retrain, directory: Path
) -> Problem:
    gone, kept = full.split()
    judged: dict[str, Source] = {"forget": gone, "retain": kept.rows(torch.arange(min(len(kept), _JUDGED)))}
    if isinstance(final, Part):
        judged |= {"test": final.data, **dict(zip(("test_forget", "test_retain"), final.split(), strict=True))}
    else:
        judged["test"] = final
    original, _ = _kept(directory / "original", recipe, full.data)
    retrained, seconds = _kept(directory / "retrained", recipe, kept)
    goal = evaluate(retrained, {name: judged[name] for name in ("forget", "retain", "test")})
    valid = held_out.split() if isinstance(held_out, Part) else (gone, held_out)
    return Problem(
        original,
        {"forget_set": gone, "retain_set": kept, "full_set": full.data},
        dict(zip(("forget", "retain"), valid, strict=True)),
        judged,
        retrained,
        seconds,
        goal["mia"],
        directory,
        recipe.seed,
        retrained_forget=goal["forget_accuracy"],
    )


def _kept(directory: Path, recipe: Retrain, data: Source) -> tuple[nn.Module, float]:
    note, weights = directory / "seconds.json", directory / WEIGHTS
    if not (note.exists() and weights.exists()):
        with one_thread():
            started = time.process_time()
            net = recipe.train(data, torch.device("cpu"))
            seconds = time.process_time() - started
        with replacing(weights) as temporary:
            save_model(net, str(temporary))
        write_json(note, {"seconds": seconds})
    net = recipe.fresh()
    load_model(net, weights)
    return net.eval(), float(json.loads(note.read_text(encoding="utf-8"))["seconds"])


def _classes(data: Labelled) -> Int[Tensor, " N"]:
    assert data.y is not None
    return data.y


def _is(data: Labelled, forgotten: int) -> Bool[Tensor, " N"]:
    return _classes(data) == forgotten


def _shape(part: Part) -> tuple[int, ...]:
    assert isinstance(part.data.x, Tensor)
    return tuple(part.data.x.shape[2:])


def digits(seed: int, quick: bool, directory: Path) -> Problem:
    """Forget the 3 of 8x8 digits."""
    return class_problem("digits", 3, seed, directory, train=1200, valid=230, test=360, epochs=6 if quick else 12)


def _sizes(quick: bool, epochs: float = 10.0) -> dict[str, Any]:
    return {"train": 2000 if quick else 5000, "valid": 1500, "test": 4000, "epochs": epochs / 5 if quick else epochs}


def fashion(seed: int, quick: bool, directory: Path) -> Problem:
    """Forget one class of Fashion-MNIST, another for each seed."""
    return class_problem("fashion-mnist", (3 + 3 * seed) % 10, seed, directory, **_sizes(quick))


def fashion_vit(seed: int, quick: bool, directory: Path) -> Problem:
    """The same with a small vision transformer, which needs more passes."""
    sizes = _sizes(quick, epochs=20.0)
    return class_problem("fashion-mnist", (3 + 3 * seed) % 10, seed, directory, **sizes, recipe=vit_recipe)


def fashion_random(seed: int, quick: bool, directory: Path) -> Problem:
    """Forget a tenth of the training pictures of Fashion-MNIST."""
    return random_problem("fashion-mnist", 0.1, seed, directory, **_sizes(quick))


def fashion_subclass(seed: int, quick: bool, directory: Path) -> Problem:
    """Forget a kind of shoe, another for each of three seeds."""
    return subclass_problem(_SHOES[seed % len(_SHOES)], seed, directory, **_sizes(quick))
