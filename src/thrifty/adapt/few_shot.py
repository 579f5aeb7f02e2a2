"""What few-shot methods share: their protocol, how features are made comparable, and the nearest support mean."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes
from thrifty.adapt.nmc import normalise_rows
from thrifty.adapt.transductive import Fixed, SoftAssignment, TransductiveResult, TransductiveSolver
from thrifty.core.errors import InputError, nearest

if TYPE_CHECKING:
    from typing import Self

    from thrifty.adapt.few_shot_job import Pool
    from thrifty.adapt.inputs import Inputs
    from thrifty.core.run import Run

Normalization = Literal["centred", "unit", "none"]


def preprocess(episodes: Episodes, normalization: Normalization, *, shift_query: bool = False) -> Episodes:
    """The features as transductive methods compare them.

    .. math:: x \\leftarrow \\frac{x - \\bar x}{\\|x - \\bar x\\|}, \\qquad
              q \\leftarrow q + \\mathrm{mean}(\\text{support}) - \\mathrm{mean}(\\text{query})

    Parameters
    ----------
    episodes
        The tasks.
    normalization
        centred: minus the episodes' ``centre`` (where they bring none, the mean of an episode's own points), then
        scaled to length one ("CL2N"); unit: scaled only ("L2N"); none: as they are ("UN").
    shift_query
        Move each episode's queries so that their mean is the support's. Right when queries and support hold the classes
        in the same proportion, harmful otherwise.
    """
    support, query = episodes.support, episodes.query
    if normalization not in get_args(Normalization):
        hint = nearest(str(normalization), get_args(Normalization))
        raise InputError(f"normalization {normalization!r} is unknown: {hint}")
    if normalization == "centred":
        centre = episodes.centre
        if centre is None:
            both = support.shape[1] + query.shape[1]
            own = (support.sum(1, keepdim=True) + query.sum(1, keepdim=True)) / both
            support, query = support - own, query - own
        else:
            centre = centre.to(support)
            support, query = support - centre, query - centre
    if normalization != "none":
        zero = int((~support.any(2)).sum()) + int((~query.any(2)).sum())
        if zero:
            message = f"{zero} feature vectors are all zero: they have no direction and stay zero"
            warnings.warn(message, UserWarning, stacklevel=2)
        support, query = normalise_rows(support), normalise_rows(query)
    if shift_query:
        query = query + (support.mean(1, keepdim=True) - query.mean(1, keepdim=True))
    return episodes.with_features(support, query)


class FewShotMethod(ABC):
    """What labels the queries of episodes: a dataclass of settings with ``solve``."""

    paper_id: ClassVar[str]
    learns: ClassVar[bool] = False
    """Whether :meth:`learn` learns something from validation episodes."""
    usual: ClassVar[Design] = Design()
    """The episodes that the method is made for."""

    @property
    def takes_scores(self) -> bool:
        """Whether the method works on a score for each class in the place of features."""
        return False

    def ready(self, episodes: Episodes) -> Episodes:
        """Episodes of features as the method takes them: themselves unless it works on something else."""
        return episodes

    def learn(self, validation: Episodes, run: Run) -> FewShotMethod | Self:  # noqa: ARG002
        """The method as it is after validation episodes of other classes; itself where there is nothing to learn."""
        return self

    def facts(self) -> dict[str, Any]:
        """What is worth knowing of what was learnt, as JSON."""
        return {}

    def pool(self, inputs: Inputs, run: Run) -> Pool | None:  # noqa: ARG002
        """What episodes are drawn from, where the method trains an encoder of its own; ``None`` where it does not."""
        return None

    @abstractmethod
    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes."""


@dataclass(frozen=True)
class Prototypes(FewShotMethod):
    """The nearest support mean, each query by itself: what transductive methods are measured against.

    Parameters
    ----------
    normalization
        See :func:`preprocess`.
    """

    normalization: Normalization = "centred"

    def solve(self, episodes: Episodes) -> TransductiveResult:
        """Labels the queries of all episodes."""
        solver = TransductiveSolver(SoftAssignment(), Fixed(), rounds=0, tolerance=None)
        return solver.solve(episodes, partial(preprocess, normalization=self.normalization))
