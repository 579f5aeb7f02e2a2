"""An encoder trained without labels classifies better from few examples with BECLR's memory and its transport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

from thrifty.adapt.beclr import BECLR
from thrifty.adapt.beclr_learner import BECLRLearner
from thrifty.adapt.beclr_training import Pretraining
from thrifty.adapt.design import Design
from thrifty.adapt.dyce import DyCEMemory
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.few_shot import FewShotMethod, Prototypes
from thrifty.claims.harness import Claim, Condition
from thrifty.core.loop import Shuffled
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.nets.picture_encoders import picture_encoder
from thrifty.nets.representations import encoded
from thrifty.nets.two_views import TwoViews
from thrifty.represent.pictures import read_pictures
from thrifty.represent.two_view_baselines import BYOL

SIZE, WIDTH, BATCH = 14, 8, 128
CLASSES = (4, 3, 3)  # of each set: to train on, to choose settings with, to be judged on
BASE, HELD = 400, 300  # pictures of each class
EPOCHS, EPISODES = 12, 1000
ONE, FIVE = Design(ways=5, shots=1, queries=75), Design(ways=5, shots=5, queries=75)

# For 300 steps: the paper's teacher (0.995) would hardly move, and masks are for pictures of 224 pixels.
_COMMON: Mapping[str, Any] = {
    "epochs": EPOCHS,
    "training_batch": BATCH,
    "width": 128,
    "views": "drawing",
    "memory_start": 0.25,
    "teacher_momentum": 0.9,
    "mask_ratio": 0.0,
    "mask_spread": 0.0,
}
_DYCE: Mapping[str, Any] = {**_COMMON, "prototypes": 40, "memory": 1600}
# As many settings for each way of training; learning rates are at 256 pictures a batch.
_RATES = ({"learning_rate": 0.5}, {"learning_rate": 0.25})
_NEIGHBOURS = ({"learning_rate": 0.5, "neighbours": 1}, {"learning_rate": 0.5, "neighbours": 3})
_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "DyCE": _DYCE,
    "released": {**_DYCE, "pairing": "released"},
    "plain memory": {**_DYCE, "prototypes": 1},
    "none": {**_COMMON, "neighbours": 0},
}

Pictures = tuple[UInt8[Tensor, "N 1 H W"], NDArray[np.int64]]
Learner = BECLRLearner | TwoViews


@dataclass(frozen=True, eq=False)
class Problem:
    """Unlabelled pictures to train on, and pictures of other classes to choose settings with and to be judged on.

    Parameters
    ----------
    base, validation, novel
        Pictures and classes; the classes of ``base`` only say afterwards what neighbours were worth.
    directory
        Where runs are kept while they last.
    seed
        Of weights, orders and episodes.
    epochs, settings, episodes
        How long, how many settings to choose from, on how many episodes.
    trained
        What was trained so far: learners by kind.
    """

    base: Pictures
    validation: Pictures
    novel: Pictures
    directory: Path
    seed: int
    epochs: int
    settings: int
    episodes: int
    trained: dict[str, Learner] = field(default_factory=dict)

    def learner(self, kind: str) -> Learner:
        """A trained learner of that kind: with the setting whose nearest prototypes do best on validation."""
        if kind not in self.trained:
            choices = _RATES if kind in ("none", "BYOL") else _NEIGHBOURS
            found = [_train(self, kind, choice) for choice in choices[: self.settings]]
            scores = [_accuracy(Prototypes(), self._drawn(each, self.validation, ONE, "choose")) for each in found]
            self.trained[kind] = found[int(np.argmax(scores))]
        return self.trained[kind]

    def tasks(self, kind: str, design: Design) -> Episodes:
        """The final episodes, through the encoder of a kind."""
        return self._drawn(self.learner(kind), self.novel, design, "judge")

    def _drawn(self, learner: Learner, pictures: Pictures, design: Design, purpose: str) -> Episodes:
        encoder, seed = learner.encoder, derive_seed(self.seed, purpose)
        centre = encoded(encoder, self.base[0]).mean(0)
        return draw_episodes(
            encoded(encoder, pictures[0]), pictures[1], design, self.episodes, seed=seed, centre=centre
        )


def _train(problem: Problem, kind: str, choice: Mapping[str, Any]) -> Learner:
    torch.manual_seed(problem.seed)
    encoder = picture_encoder("resnet", 1, SIZE, WIDTH)
    with Run(problem.directory / "run", seed=problem.seed, device="cpu", overwrite=True) as run:
        if kind == "BYOL":
            byol = BYOL(
                epochs=problem.epochs,
                batch_size=BATCH,
                learning_rate=choice["learning_rate"] * BATCH / 256,
                weight_decay=1e-4,
                schedule="cosine",
                teacher_momentum=0.9,
                teacher_momentum_end=1.0,
                hidden=128,
                predictor_hidden=128,
                views="drawing",
                statistics="joint",
            )
            return byol.train(problem.base[0], run, encoder, save_every=None)
        settings = {**_SETTINGS[kind], **choice, "epochs": problem.epochs}
        return Pretraining(**settings).train(problem.base[0], run, encoder, save_every=None)


def _prepare(seed: int, quick: bool, directory: Path) -> Problem:
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(derive_seed(seed, "beclr"))
    parts: list[list[Pictures]] = [[], [], []]
    counts = (60, 100, 100) if quick else (BASE, HELD, HELD)
    for number, name in enumerate(("fashion-mnist", "mnist")):
        found = read_pictures(name, SIZE)
        assert found.y is not None
        labels = found.y.numpy()
        groups = np.split(random.permutation(10), np.cumsum(CLASSES)[:-1])
        for part, group, count in zip(parts, groups, counts, strict=True):
            rows = np.concatenate([random.permutation(np.flatnonzero(labels == label))[:count] for label in group])
            part.append((found.x[torch.from_numpy(rows)], 10 * number + labels[rows]))
    base, validation, novel = (
        (torch.cat([x for x, _ in part]), np.concatenate([y for _, y in part])) for part in parts
    )
    if quick:
        return Problem(base, validation, novel, directory, seed, 6, 1, 100)
    return Problem(base, validation, novel, directory, seed, EPOCHS, 2, EPISODES)


def _accuracy(method: FewShotMethod, episodes: Episodes) -> float:
    return float(episodes.accuracy(method.solve(episodes).labels).mean())


def purity(learner: Learner, base: Pictures, seed: int) -> float:
    """The share of neighbours in the teacher's memory that are other pictures of the same class; 0 without one."""
    if isinstance(learner, TwoViews) or not len(learner.memories):
        return 0.0
    memory, (x, labels) = learner.memories[0], base
    order = Shuffled(len(x), BATCH, seed, last="drop")
    assert isinstance(memory, DyCEMemory)
    # Each batch enters as the first views of its pictures, then the second ones.
    sources = torch.stack([order(int(number) // (2 * BATCH))[int(number) % BATCH] for number in memory.arrivals])
    with torch.no_grad():
        z: Float[Tensor, "N D"] = learner.teacher(x.float() / 127.5 - 1)
        found = sources[memory.neighbours(z).rows]
    same = torch.from_numpy(labels)[found] == torch.from_numpy(labels).unsqueeze(1)
    others = found != torch.arange(len(x)).unsqueeze(1)
    return float(same[others].float().mean())


def _arm(kind: str, method: FewShotMethod) -> Callable[[Problem], Mapping[str, float]]:
    def run(problem: Problem) -> Mapping[str, float]:
        learner = problem.learner(kind)
        return {
            "one_shot": _accuracy(method, problem.tasks(kind, ONE)),
            "five_shot": _accuracy(method, problem.tasks(kind, FIVE)),
            "purity": purity(learner, problem.base, problem.seed),
        }

    return run


_OPTA, _LOGISTIC = BECLR(), BECLR(passes=0)

CLAIM = Claim(
    paper_id="beclr",
    says=(
        "Without any label for training, a clustered memory that enlarges the batch (DyCE) makes a better few-shot "
        "encoder, and optimal transport of the prototypes onto the queries (OpTA) adds to it; together they beat "
        "training on two views alone."
    ),
    setting=(
        "A small residual network learns from 3,200 unlabelled pictures (14 pixels) of 4 kinds of clothing and 4 "
        "digits, 12 epochs; 1,000 episodes of 5 of 6 other kinds and digits, 75 balanced queries. Each way of training "
        "has two settings to choose from (learning rate 0.5 or 0.25; 1 or 3 neighbours), by nearest prototypes on 6 "
        "further classes. The memory holds a quarter of an epoch's views. purity: share of its neighbours that are of "
        "the same class (chance 0.125)."
    ),
    prepare=_prepare,
    arms={
        "beclr": _arm("DyCE", _OPTA),
        "without DyCE": _arm("none", _OPTA),
        "without OpTA": _arm("DyCE", _LOGISTIC),
        "without both": _arm("none", _LOGISTIC),
        "plain memory": _arm("plain memory", _OPTA),
        "released pairing": _arm("released", _OPTA),
        "BYOL with OpTA": _arm("BYOL", _OPTA),
        "BYOL prototypes": _arm("BYOL", Prototypes()),
    },
    metrics=["one_shot", "five_shot", "purity"],
    conditions=[
        Condition("one_shot", "beclr", "without DyCE"),
        Condition("one_shot", "beclr", "without OpTA"),
        Condition("one_shot", "beclr", "BYOL prototypes"),
        Condition("five_shot", "beclr", "BYOL prototypes"),
        Condition("one_shot", "without DyCE", "without both"),
    ],
    tried=(
        "One run each, before this setting was fixed. The paper's teacher momentum (0.995) in 300 steps: the encoder "
        "became worse than an untrained one (one shot 0.534 against 0.594). Masks of 2 pixels on drawings of 14: 0.658 "
        "instead of 0.775, so there are none. 200 Latin letters as base classes, many of which differ by accents: 1.8% "
        "of the neighbours showed the same letter, and the memory cost 7 points of one-shot accuracy (0.708 against "
        "0.781, nearest of the moved prototypes). Clothing and digits, where 62% of the neighbours are of the same "
        "class: 0.708 with 3 neighbours, 0.692 with 1, 0.706 from a plain memory and 0.651 in the released pairing, "
        "against 0.756 without a memory; transport gave 1.6 to 4.8 points, and took 1 in the released pairing. The "
        "base classes, the learning rates, the teacher's momentum and the absence of masks were chosen by these runs, "
        "for all arms alike."
    ),
)
