"""SS-ORL: offline reinforcement learning from episodes of which most have lost their actions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from thrifty.control.base import Agent, AgentConfig
from thrifty.control.cql import CQL
from thrifty.control.decision_transformer import DecisionTransformer
from thrifty.control.episode import Array
from thrifty.control.episodes import Episodes
from thrifty.control.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, fit_inverse_dynamics
from thrifty.control.td3_bc import TD3BC
from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.nets.normaliser import Normaliser

# The paper's instances SS-TD3BC, SS-CQL and SS-DT.
AGENTS: dict[str, AgentConfig] = {
    "td3-bc": TD3BC(batch_size=5120),
    "cql": CQL(batch_size=5120),
    "dt": DecisionTransformer(batch_size=256),
}

# For a problem of a few numbers and a processor without an accelerator; see `SSORL.scaled_down`.
_SMALL = {
    "idm_width": 128,
    "idm_steps": 3_000,
    "idm_batch_size": 256,
    "idm_learning_rate": 1e-3,
    "agent_steps": 10_000,
    "agent_batch_size": 256,
    "agent_width": 64,
}


@register("ss-orl")
@dataclass(frozen=True)
class SSORL:
    """Fills missing actions in with a learned inverse dynamics model, then trains any offline agent on everything.

    ``p(a_t | s_{t-k}, ..., s_t, s_{t+1})`` is a tanh-squashed diagonal Normal, trained by maximum likelihood on the
    episodes that have actions; each missing action becomes the model's mean; the agent sees all steps alike.

    Parameters
    ----------
    k
        Past observations that the inverse dynamics model sees beside the present and the next one; 0 is the classical
        model, more tells apart what one pair of observations leaves open (a hidden velocity, mixed behaviours).
    ensemble
        How many inverse dynamics models are averaged.
    idm_width
        Width of both hidden layers of the inverse dynamics model.
    idm_steps
        Its updates. The paper does not state them; since the best held-out checkpoint is kept, more cost time only.
    idm_batch_size
        Windows in a batch, for each member.
    idm_learning_rate
        Of Adam.
    dropout
        Before its last layer.
    holdout
        Share of the labelled episodes held out to choose the checkpoint; 0 takes the last one.
    check_every
        Updates between two looks at the held-out episodes.
    rounds
        Rounds of self-training: label, add the most certain labels to the training set (a growing share of them from
        round to round), train again from scratch. The paper sees no clear gain; 0 is off.
    keep
        Share of the proxy-labelled episodes that the agent sees, the most certain first.
    uncertainty
        How certainty is measured: ``"squashed"`` by the variance of the action, ``"gaussian"`` as in the released
        code, which adds the variance before squashing to that of squashed means.
    agent
        The offline learner: ``"td3-bc"``, ``"cql"`` or ``"dt"`` (Decision Transformer).
    agent_steps
        Its updates.
    agent_batch_size
        Its batch; by default the paper's, 5120 steps, or 256 windows for the Decision Transformer.
    agent_width
        Width of its layers; by default the paper's.

    References
    ----------
    Zheng et al., "Semi-Supervised Offline Reinforcement Learning with Action-Free Trajectories", arXiv 2210.06518.
    """

    k: int = 1
    ensemble: int = 1
    idm_width: int = 1024
    idm_steps: int = 20_000
    idm_batch_size: int = 1024
    idm_learning_rate: float = 1e-4
    dropout: float = 0.1
    holdout: float = 0.1
    check_every: int = 10
    rounds: int = 0
    keep: float = 1.0
    uncertainty: Literal["squashed", "gaussian"] = "squashed"
    agent: Literal["td3-bc", "cql", "dt"] = "td3-bc"
    agent_steps: int = 200_000
    agent_batch_size: int | None = None
    agent_width: int | None = None

    def __post_init__(self) -> None:
        if self.k < 0 or self.ensemble < 1 or self.rounds < 0:
            raise InputError(
                f"k and rounds must be at least 0 and ensemble at least 1, not {self.k}, {self.rounds}, {self.ensemble}"
            )
        if not 0 < self.keep <= 1 or not 0 <= self.holdout < 1:
            raise InputError(f"keep must lie in (0, 1] and holdout in [0, 1), not {self.keep} and {self.holdout}")
        if self.agent not in AGENTS:
            raise InputError(f"agent {self.agent!r} is unknown: known: {', '.join(AGENTS)}")

    def scaled_down(self) -> Self:
        """The same method with small networks and few steps, where these were left at their defaults."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        small = {name: value for name, value in _SMALL.items() if getattr(self, name) == defaults[name]}
        return dataclasses.replace(self, **small)  # type: ignore[arg-type]

    def agent_config(self) -> AgentConfig:
        """The settings of the agent."""
        given = AGENTS[self.agent]
        batch_size = given.batch_size if self.agent_batch_size is None else self.agent_batch_size
        given = dataclasses.replace(given, steps=self.agent_steps, batch_size=batch_size)
        return given if self.agent_width is None else given.scaled_down(self.agent_width)

    def inverse_dynamics_config(self) -> InverseDynamicsConfig:
        """The settings of the inverse dynamics model."""
        return InverseDynamicsConfig(
            k=self.k,
            members=self.ensemble,
            hidden=(self.idm_width, self.idm_width),
            dropout=self.dropout,
            learning_rate=self.idm_learning_rate,
            batch_size=self.idm_batch_size,
            steps=self.idm_steps,
            holdout=self.holdout,
            check_every=self.check_every,
            uncertainty=self.uncertainty,
        )

    def label(self, episodes: Episodes, run: Run) -> ProxyLabels:
        """Fills in the missing actions.

        Parameters
        ----------
        episodes
            Those without actions get them; those with actions teach how.
        run
            Each round is a stage of it.

        Raises
        ------
        InputError
            When no episode has actions or none lacks them, or when the episodes are shorter than the window.
        """
        known = episodes.labelled
        if not known.any():
            raise InputError("no episode has actions: the method needs some to learn how observations betray them")
        if known.all():
            raise InputError("all episodes have actions: nothing is missing, train the agent on them directly")
        labelled = episodes.subset(np.flatnonzero(known))
        unlabelled = list(episodes.subset(np.flatnonzero(~known)))
        normaliser = Normaliser.of(episodes.observations())
        config, extra = self.inverse_dynamics_config(), None
        for round_ in range(self.rounds + 1):
            stage = run.stage(f"inverse-dynamics-{round_}")
            model = fit_inverse_dynamics(config, labelled, normaliser, stage, extra)
            if round_ < self.rounds:
                window = model.inputs(unlabelled)
                extra = most_certain(window, *model.predict(window), (round_ + 1) / (self.rounds + 1))
        return ProxyLabels.of(episodes, model)

    def fit(self, episodes: Episodes, run: Run) -> Agent:
        """Fills in the missing actions and trains the agent on all episodes.

        Parameters
        ----------
        episodes
            Some with actions, some without.
        run
            Stages ``inverse-dynamics-0``, ... and ``agent``.

        Returns
        -------
        Agent
            Ready to ``act``.

        Raises
        ------
        InputError
            As :meth:`label`.
        NonFiniteError
            When a training diverges.
        """
        return self.train(self.label(episodes, run), run)

    def train(self, labels: ProxyLabels, run: Run) -> Agent:
        """The second half of :meth:`fit`: the agent, on episodes that are complete."""
        kept = labels.most_certain(self.keep)
        return self.agent_config().fit(kept, run.stage("agent"), normaliser=labels.inverse_dynamics.normaliser)


def most_certain(window: Tensor, action: Tensor, doubt: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """The windows and actions of the least uncertain share of the rows, in their order."""
    count = max(int(share * len(doubt)), 1)
    chosen = torch.argsort(doubt, stable=True)[:count].sort().values
    return window[chosen], action[chosen]


@dataclass(frozen=True)
class ProxyLabels:
    """Completed episodes, and how far to trust them.

    Parameters
    ----------
    episodes
        All with actions; true ones where there were any.
    uncertainty
        Variance of each proxy action (in [-1, 1] units, mean over dimensions) ``[T]``; ``None`` where the actions are
        true.
    inverse_dynamics
        The model that gave them.
    """

    episodes: Episodes
    uncertainty: list[Array | None]
    inverse_dynamics: InverseDynamics

    @classmethod
    def of(cls, episodes: Episodes, model: InverseDynamics) -> ProxyLabels:
        """Labels for the episodes that lack actions."""
        labels = iter(model.label([episode for episode in episodes if episode.actions is None]))
        complete, uncertainty = [], []
        for episode in episodes:
            action, doubt = (episode.actions, None) if episode.actions is not None else next(labels)
            complete.append(dataclasses.replace(episode, actions=action))
            uncertainty.append(doubt)
        return cls(episodes.like(complete), uncertainty, model)

    def most_certain(self, share: float) -> Episodes:
        """All truly labelled episodes and the most certain share of the others (by mean uncertainty), in order."""
        doubts = {n: float(doubt.mean()) for n, doubt in enumerate(self.uncertainty) if doubt is not None}
        ranked = sorted(doubts, key=lambda number: doubts[number])
        dropped = set(ranked[max(round(share * len(ranked)), 1) :])
        return self.episodes.subset(n for n in range(len(self.episodes)) if n not in dropped)
