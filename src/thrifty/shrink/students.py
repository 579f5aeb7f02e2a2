"""Students of one teacher: what they learn from, how each is scored, and how the one that was found is trained."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.core.loop import Shuffled, fit
from thrifty.core.run import Run
from thrifty.core.schedules import warmup_cosine
from thrifty.core.seeding import generator
from thrifty.core.threads import one_thread
from thrifty.nets.chain import ChainConfig, ChainNet, parameters
from thrifty.nets.chain_reading import read_chain
from thrifty.nets.distillation import Lessons, distil
from thrifty.shrink.architecture_search import key_of
from thrifty.shrink.candidates import initialised
from thrifty.shrink.pictures import Pictures, accuracy, answers, as_pictures, check_classes

_log = logging.getLogger("thrifty")


class Schooling(Protocol):
    """How students are trained; see :class:`thrifty.shrink.n2n.N2N`."""

    @property
    def child_epochs(self) -> float: ...
    @property
    def child_rate(self) -> float: ...
    @property
    def child_decay(self) -> float: ...
    @property
    def hard_labels(self) -> float: ...
    @property
    def examples(self) -> int | None: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def student_epochs(self) -> float: ...


@dataclass(frozen=True, eq=False)
class Students:
    """The students of a teacher.

    Parameters
    ----------
    schooling
        How they are trained.
    config
        The teacher's layers.
    accuracy, parameters
        The teacher's accuracy on ``valid``, and its size.
    lessons
        All training pictures with what the teacher says of them.
    few
        Those of them that children learn from.
    valid
        Pictures that they are judged by.
    device
        Where they are trained.
    seed
        Of their weights and order.
    """

    schooling: Schooling
    config: ChainConfig
    accuracy: float
    parameters: int
    lessons: Lessons
    few: Lessons
    valid: Pictures
    device: torch.device
    seed: int

    @classmethod
    def of(cls, schooling: Schooling, teacher: nn.Module, train: Any, valid: Any, run: Run) -> Students:
        """Reads the teacher's layers, and asks it once for each picture.

        Parameters
        ----------
        schooling
            How students are trained.
        teacher
            A classifier.
        train, valid
            Pictures with their classes, to learn from and to be judged by.
        run
            For the seed.

        Raises
        ------
        InputError
            When the teacher can't be read, the pictures do not fit it, or it knows none of the held-out ones.
        """
        learnt, held = as_pictures(train, "training pictures"), as_pictures(valid, "held-out pictures")
        device = next(teacher.parameters()).device
        said = answers(teacher, learnt)
        for pictures, name in ((learnt, "training pictures"), (held, "held-out pictures")):
            check_classes(pictures, said.shape[1], name)
        known = accuracy(teacher, held)
        if known == 0:
            raise InputError(
                "the teacher puts no held-out picture into its class: number the classes as the teacher does"
            )
        config = read_chain(teacher, learnt.inputs(torch.arange(min(2, len(learnt)))).to(device))
        size, read = sum(parameter.numel() for parameter in teacher.parameters()), parameters(config)
        if size != read:
            _log.warning(
                "the teacher has %d parameters, a network of the layers that were read %d: shortcuts are made anew, "
                "and what is no layer of a chain has no part in students",
                size,
                read,
            )
        order = torch.randperm(len(learnt), generator=generator(run.seed, "examples"))
        few = order[: schooling.examples]
        lessons = Lessons(learnt.inputs, said, learnt.y, schooling.hard_labels)
        part = Lessons(learnt.part(few).inputs, said[few], learnt.y[few], schooling.hard_labels)
        return cls(schooling, config, known, size, lessons, part, held, device, run.seed)

    @property
    def teacher(self) -> dict[str, float]:
        """The teacher's accuracy and size."""
        return {"accuracy": self.accuracy, "parameters": self.parameters}

    def score(self, config: ChainConfig) -> float:
        """The accuracy of a student of that shape on held-out pictures, after few passes from new weights.

        The same for the same shape: weights and order depend on the shape and the seed. One that diverges has 0.
        """
        student = self.fresh(config)
        try:
            with one_thread():
                distil(
                    student,
                    self.few,
                    epochs=self.schooling.child_epochs,
                    batch_size=self.schooling.batch_size,
                    learning_rate=self.schooling.child_rate,
                    weight_decay=self.schooling.child_decay,
                    seed=self.seed,
                )
                return accuracy(student, self.valid)
        except NonFiniteError:
            return 0.0

    def fresh(self, config: ChainConfig) -> nn.Module:
        """A student with new weights."""
        return initialised(lambda: ChainNet(config), self.seed, key_of(config)).to(self.device)

    def taught(self, config: ChainConfig, run: Run) -> nn.Module:
        """A student trained for long on all training pictures; killed, the run goes on with it."""
        student = self.fresh(config)
        order = Shuffled(len(self.lessons), self.schooling.batch_size, self.seed, last="drop")
        steps = max(1, round(self.schooling.student_epochs * order.per_epoch))
        optimizer = torch.optim.Adam(
            student.parameters(), lr=self.schooling.child_rate, weight_decay=self.schooling.child_decay
        )

        def loss(pupil: nn.Module, rows: Tensor) -> Tensor:
            return self.lessons.loss(pupil, rows)

        with one_thread():
            fit(
                loss,
                student,
                order,
                optimizer,
                run,
                steps,
                clip_norm=None,
                schedule=warmup_cosine(steps),
                label="student",
            )
        return student.eval()
