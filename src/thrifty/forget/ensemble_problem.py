"""A problem on which forgetting is judged by distributions over many models: alike pictures, and small networks.

All models of a kind are one stack, so that a way of forgetting runs on all originals at once.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.loop import Shuffled
from thrifty.core.seeding import derive_seed, generator
from thrifty.data.images import images
from thrifty.forget.attribution.datamodels import Datamodels
from thrifty.forget.baselines import descend
from thrifty.forget.data import Labelled
from thrifty.forget.klom import klom_summary, margins
from thrifty.forget.picture_problems import fresh
from thrifty.forget.retraining import Retraining, cross_entropies, outputs, said
from thrifty.nets.stacked import Stacked, clip_each_
from thrifty.nets.vision import ResNetConfig, pixels

CONFIG = ResNetConfig(10, width=8, blocks=(1, 1), stem_stride=2)
_CPU = torch.device("cpu")
S = TypeVar("S")


@dataclass(frozen=True)
class Sizes:
    """How large the problem is.

    Parameters
    ----------
    training, held_out
        Pictures that models are trained on, and that none is trained on.
    forgotten
        Pictures of one class that are to be forgotten: those furthest along its first principal component.
    models
        Originals, and as many oracles, whose margins are compared.
    choosing
        Originals on which settings are chosen, against oracles of their own.
    datamodels
        Models that are trained on parts of the data.
    epochs
        Passes of every model over its data.
    """

    training: int = 300
    held_out: int = 200
    forgotten: int = 10
    models: int = 64
    choosing: int = 24
    datamodels: int = 1024
    epochs: float = 12.0

    @property
    def parts(self) -> list[int]:
        """How many are to be forgotten, kept, and held out."""
        return [self.forgotten, self.training - self.forgotten, self.held_out]


@dataclass(frozen=True, eq=False)
class Contest:
    """Originals, what they must forget, and models that never saw it.

    Parameters
    ----------
    points
        All pictures: the forget set, the rest of the training data, held-out ones.
    sizes
        How many there are of what.
    originals, choosing
        Models trained on everything: those that are judged, and those on which settings are chosen.
    oracles, others
        What models trained without the forget set say about the points, [N, P, C]: those that are compared with in the
        end, and those in choosing.
    effects
        What each example of the forget set adds to each logit of the points, by datamodels, [F, P, C].
    """

    points: Labelled
    sizes: Sizes
    originals: Stacked
    choosing: Stacked
    oracles: Float[Tensor, "oracles points classes"]
    others: Float[Tensor, "oracles points classes"]
    effects: Float[Tensor, "forgotten points classes"]

    @property
    def y(self) -> Int[Tensor, " points"]:
        """The classes of the points."""
        assert self.points.y is not None
        return self.points.y

    @property
    def forget_set(self) -> Labelled:
        """What is to be forgotten."""
        return self.points.rows(torch.arange(self.sizes.forgotten))

    @property
    def retain_set(self) -> Labelled:
        """The rest of the training data."""
        return self.points.rows(torch.arange(self.sizes.forgotten, self.sizes.training))

    def scores(self, said: Float[Tensor, "models points classes"]) -> dict[str, float]:
        """How far what models say is from the oracles, on each set; held-out pictures: the second half."""
        return self._judged(said, self.oracles, slice(self.sizes.training + self.sizes.held_out // 2, None))

    def merit(self, said: Float[Tensor, "models points classes"]) -> float:
        """Mean KLoM over the three sets in choosing (less is better); held-out pictures: the first half."""
        half = slice(self.sizes.training, self.sizes.training + self.sizes.held_out // 2)
        found = self._judged(said, self.others, half)
        return sum(found[f"{name}_klom"] for name in ("forget", "retain", "test")) / 3

    def _judged(self, said: Tensor, oracles: Tensor, held_out: slice) -> dict[str, float]:
        mine, theirs = margins(said, self.y), margins(oracles, self.y)
        gone, training = self.sizes.forgotten, self.sizes.training
        parts = {"forget": slice(gone), "retain": slice(gone, training), "test": held_out}
        return {
            f"{name}_{metric}": value
            for name, part in parts.items()
            for metric, value in klom_summary(mine[:, part], theirs[:, part]).items()
        }


def contest(seed: int, directory: Path, sizes: Sizes) -> Contest:
    """The problem of a seed: which digit, which pictures, which networks. Datamodels' outputs are kept.

    Parameters
    ----------
    seed
        Of everything.
    directory
        Where the outputs of retrained models are kept.
    sizes
        How large it is.
    """
    points = alike_digits(seed, sizes)
    training = points.rows(torch.arange(sizes.training))
    recipe = Retraining(partial(fresh, CONFIG), epochs=sizes.epochs)
    everything, kept = torch.arange(sizes.training), torch.arange(sizes.forgotten, sizes.training)

    def train(rows: Tensor, count: int, name: str) -> Stacked:
        seeds = [derive_seed(seed, name, number) % 2**31 for number in range(count)]
        return recipe.train(training, rows.expand(count, -1), seeds, _CPU)

    originals = train(everything, sizes.models, "original")
    attributor = Datamodels(sizes.datamodels, 0.75, "least-squares", epochs=sizes.epochs)
    return Contest(
        points,
        sizes,
        originals,
        train(everything, sizes.choosing, "choosing"),
        outputs(train(kept, sizes.models, "oracle"), points),
        outputs(train(kept, sizes.models, "other oracle"), points),
        attributor.attribute(
            originals,
            training,
            points,
            torch.arange(sizes.forgotten),
            draw=generator(seed, "datamodels"),
            fresh=partial(fresh, CONFIG),
            directory=directory / "datamodels",
        ),
    )


def alike_digits(seed: int, sizes: Sizes) -> Labelled:
    """Digits of which the first are alike: what is to be forgotten, then the rest to train on, then held-out ones.

    Parameters
    ----------
    seed
        Of the choice.
    sizes
        How many.
    """
    data = images("digits")
    chosen = torch.randperm(len(data.train_x), generator=generator(seed, "contest"))
    chosen = chosen[: sizes.training + sizes.held_out]
    drawn = Labelled(pixels(data.train_x[chosen.numpy()]), torch.from_numpy(data.train_y[chosen.numpy()]))
    assert drawn.y is not None
    assert isinstance(drawn.x, Tensor)
    same = (drawn.y[: sizes.training] == (3 + 2 * seed) % 10).nonzero()[:, 0]
    far = same[first_component(drawn.x[same].flatten(1)).argsort(descending=True)]
    gone = torch.zeros(len(drawn), dtype=torch.bool).index_fill_(0, far[: sizes.forgotten], True)
    return drawn.rows(torch.cat([gone.nonzero()[:, 0], (~gone).nonzero()[:, 0]]))


def first_component(x: Float[Tensor, "examples features"]) -> Float[Tensor, " examples"]:
    """Where examples lie along the direction in which they differ most; its larger end is the positive one."""
    centred = x - x.mean(0)
    place = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[0]
    return place * place[place.abs().argmax()].sign()


def best(settings: Sequence[S], judge: Callable[[S], Tensor], problem: Contest) -> S:
    """The setting whose models are nearest to the oracles in choosing; ``judge`` says what they say of the points."""
    return min(settings, key=lambda setting: problem.merit(judge(setting)))


def tuned(
    models: Stacked,
    loss: Callable[[nn.Module, int], Float[Tensor, " models"]],
    learning_rate: float,
    steps: int,
    *,
    adam: bool = False,
    training: bool = True,
) -> Stacked:
    """Copies of stacked models after so many steps on losses of their own.

    Parameters
    ----------
    models
        They stay as they are.
    loss
        Each model's loss at a step.
    learning_rate
        Of SGD with momentum 0.9, or of Adam.
    steps
        How many.
    adam
        Adam in place of SGD.
    training
        Whether batch normalisation uses the statistics of the batch.
    """
    changed = copy.deepcopy(models).train(training)
    optimizer: torch.optim.Optimizer = (
        torch.optim.Adam(changed.parameters(), lr=learning_rate)
        if adam
        else torch.optim.SGD(changed.parameters(), lr=learning_rate, momentum=0.9)
    )
    clip = partial(clip_each_, changed, 1.0)
    descend(changed, lambda members, step: loss(members, step).sum(), optimizer, steps, clip=clip)
    return changed.eval()


def ascent(models: Stacked, forget_set: Labelled, learning_rate: float, steps: int) -> Stacked:
    """Climbs the loss of the forget set; batch normalisation keeps its statistics."""
    assert forget_set.y is not None
    y = forget_set.y
    return tuned(models, lambda m, _: -cross_entropies(said(m, forget_set.x), y), learning_rate, steps, training=False)


def descent(models: Stacked, retain_set: Labelled, learning_rate: float, steps: int, batch_size: int = 64) -> Stacked:
    """Trains on, on what is kept."""
    order = Shuffled(len(retain_set), batch_size, last="drop")

    def loss(members: nn.Module, step: int) -> Tensor:
        batch = retain_set.rows(order(step))
        assert batch.y is not None
        return cross_entropies(said(members, batch.x), batch.y)

    return tuned(models, loss, learning_rate, steps)


def scrub(
    models: Stacked,
    forget_set: Labelled,
    retain_set: Labelled,
    learning_rate: float,
    steps: int,
    *,
    batch_size: int = 64,
    near: float = 0.5,
) -> Stacked:
    r"""SCRUB: away from the original on the forget set, near to it (and to the labels) on the retain set.

    In the first half every fourth step maximises :math:`KL(\text{original} \| \text{student})` on the forget set; all
    other steps minimise ``near`` times that on retained batches, plus their cross-entropy.

    References
    ----------
    Kurmanji et al., Towards Unbounded Machine Unlearning, NeurIPS 2023, arXiv 2302.09880.
    """
    order = Shuffled(len(retain_set), batch_size, last="drop")

    def loss(members: nn.Module, step: int) -> Tensor:
        away = step % 4 == 0 and step < steps // 2
        batch = forget_set if away else retain_set.rows(order(step))
        with torch.no_grad():
            wanted = said(models, batch.x).log_softmax(-1)
        found = said(members, batch.x)
        each = functional.kl_div(found.log_softmax(-1), wanted, reduction="none", log_target=True).sum(-1).mean(-1)
        assert batch.y is not None
        return -each if away else near * each + cross_entropies(found, batch.y)

    return tuned(models, loss, learning_rate, steps, adam=True)
