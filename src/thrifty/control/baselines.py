"""The point mass with hidden velocity under the coupled protocol, and what one would do there without SS-ORL."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from thrifty.control.base import Agent, AgentConfig
from thrifty.control.collection import Collection, collected, reference_returns
from thrifty.control.episodes import Episodes
from thrifty.control.evaluation import evaluate, normalised
from thrifty.control.protocols import Split, coupled_split, label_mse
from thrifty.control.ss_orl import SSORL
from thrifty.control.td3_bc import TD3BC
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.nets.normaliser import Normaliser

Metrics = dict[str, float]


@dataclass(frozen=True)
class Problem:
    """What all arms of one seed share.

    Parameters
    ----------
    collection
        Where the episodes came from.
    truth
        All of them, with their true actions.
    split
        Who keeps the actions.
    random, expert
        Returns of the two reference behaviours.
    directory
        For the arms' runs.
    seed
        Of the arms.
    quick
        A tenth of the steps.
    """

    collection: Collection
    truth: Episodes
    split: Split
    random: float
    expert: float
    directory: Path
    seed: int
    quick: bool

    @property
    def hidden(self) -> Episodes:
        """All episodes, in their order, most without actions."""
        return self.split.hide(self.truth)

    @property
    def labelled(self) -> Episodes:
        """Those that keep their actions."""
        return self.truth.subset(self.split.labelled)

    def sized(self, method: SSORL) -> SSORL:
        """The method at the size of this problem: the same for every arm."""
        small = method.scaled_down()
        if not self.quick:
            return small
        return dataclasses.replace(small, idm_steps=small.idm_steps // 10, agent_steps=small.agent_steps // 10)

    def run(self, arm: str, train: Callable[[Run], Agent]) -> tuple[Agent, Metrics]:
        """Trains an arm in a run of its own and plays 100 episodes: ``return`` is 0 for random, 100 for the expert."""
        config = {"arm": arm, "quick": self.quick}
        with Run(self.directory / arm, seed=self.seed, device="cpu", config=config) as run:
            agent = train(run)
        seed = derive_seed(self.seed, "evaluation") % 2**31
        score = evaluate(agent, self.collection.env, 100, seed).mean
        return agent, {"return": normalised(score, self.random, self.expert)}


def point_mass(seed: int, quick: bool, directory: Path) -> Problem:
    """200 episodes of three skills; a tenth, drawn from the worse half, keeps its actions."""
    collection = Collection(seed=seed)
    truth = collected(collection, directory)
    random, expert = reference_returns(collection)
    return Problem(collection, truth, coupled_split(truth, 0.1, 0.5, seed), random, expert, directory, seed, quick)


def semi_supervised(method: SSORL, problem: Problem, arm: str) -> Metrics:
    """SS-ORL: return, and the error of its labels.

    Parameters
    ----------
    method
        At its defaults, or with what makes the arm another one.
    problem
        The data.
    arm
        Name of its run.

    Returns
    -------
    dict
        ``return``; ``label_mse`` over all unlabelled episodes with its decimal logarithm, and ``label_mse_in`` and
        ``label_mse_out`` over those of the labelled ones' quality and over the others.
    """
    sized, hidden = problem.sized(method), problem.hidden
    with Run(problem.directory / f"{arm}-labels", seed=problem.seed, device="cpu", config={"arm": arm}) as run:
        labels = sized.label(hidden, run)
    _, metrics = problem.run(arm, lambda run: sized.train(labels, run))
    split = problem.split
    parts = {"label_mse": split.unlabelled, "label_mse_in": split.in_distribution}
    parts["label_mse_out"] = split.out_of_distribution
    errors = {name: label_mse(problem.truth, labels.episodes, numbers) for name, numbers in parts.items()}
    return metrics | errors | {"log10_label_mse": math.log10(errors["label_mse"])}


def _agent(problem: Problem, episodes: Episodes, arm: str, config: AgentConfig | None = None) -> Metrics:
    settings = config or problem.sized(SSORL()).agent_config()
    # Observations are known everywhere, so every arm may normalise with all of them.
    normaliser = Normaliser.of(problem.truth.observations())
    return problem.run(arm, lambda run: settings.fit(episodes, run.stage("agent"), normaliser=normaliser))[1]


def labelled_only(problem: Problem) -> Metrics:
    """The same agent on the episodes that have actions."""
    return _agent(problem, problem.labelled, "labelled only")


def oracle(problem: Problem) -> Metrics:
    """The same agent on all episodes with all true actions."""
    return _agent(problem, problem.truth, "oracle")


def behaviour_cloning(problem: Problem) -> Metrics:
    """Imitation of the episodes that have actions: the agent with no weight on the value."""
    config = problem.sized(SSORL()).agent_config()
    assert isinstance(config, TD3BC)
    return _agent(problem, problem.labelled, "behaviour cloning", dataclasses.replace(config, alpha=0.0))
