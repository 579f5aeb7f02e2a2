"""What every agent of this room is: settings that create it, ``update(batch)`` and ``act(observation)``.

The settings are a frozen dataclass (:class:`AgentConfig`); ``create`` builds the agent, ``fit`` trains it on
episodes. An agent takes observations and actions in the environment's own unit: normalisation and scaling to
[-1, 1] are its own business.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.control.episodes import Episodes
from thrifty.control.sampling import UniformBatches
from thrifty.control.transitions import Spaces
from thrifty.core.loop import loop
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.nets.normaliser import Normaliser

Actor = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]
"""``actor(observations [N, ds], rewards [N]) -> actions [N, da]``: N episodes under way at once; the rewards are those
of the step before, 0 at first."""


class Policy(Protocol):
    """Whatever can play N episodes side by side."""

    def start(self, count: int) -> Actor:
        """An actor for ``count`` fresh episodes."""
        ...


class Relabeller(Protocol):
    """Fills in what episodes lack: actions (inverse dynamics) or rewards (a learned or computed judge)."""

    def relabel(self, episodes: Episodes) -> Episodes:
        """The same episodes, complete; what was there before stays."""
        ...


class Agent(ABC):
    """A policy with whatever it learns from; subclasses add their networks and one ``update``.

    Parameters
    ----------
    config
        The settings it was created with.
    spaces
        What it sees and may do.
    networks
        All weights under their names, the observations' ``normaliser`` among them.
    device
        Where they live.
    """

    stepwise: ClassVar[bool] = True
    """Whether ``act`` on one observation is all there is to the policy, or it also looks at what came before."""

    def __init__(
        self, config: AgentConfig, spaces: Spaces, networks: Mapping[str, nn.Module], device: torch.device | str
    ) -> None:
        self.config, self.spaces, self.device = config, spaces, torch.device(device)
        self.networks = nn.ModuleDict(networks).to(self.device)
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.updates = 0
        low, high = torch.tensor(spaces.low), torch.tensor(spaces.high)
        self._centre, self._half = ((high + low) / 2).to(self.device), ((high - low) / 2).to(self.device)

    @abstractmethod
    def update(self, batch: Any) -> dict[str, Tensor]:
        """Learns from one batch; returns what is worth logging."""

    @abstractmethod
    def policy(self, observation: Float[Tensor, "batch observation"]) -> Float[Tensor, "batch action"]:
        """The best-known actions, in [-1, 1], for normalised observations."""

    @torch.no_grad()
    def act(self, observation: Any) -> Any:
        """The action for one observation ``[ds]`` or for many ``[N, ds]``, in the environment's unit.

        Parameters
        ----------
        observation
            Array or tensor, as the environment gives it.

        Returns
        -------
        numpy.ndarray or torch.Tensor
            float32 ``[da]`` or ``[N, da]``, of the kind that was given.
        """
        given = torch.as_tensor(observation, dtype=torch.float32).to(self.device)
        rows = given.reshape(-1, self.spaces.observation_dim)
        action = self.from_unit(self.policy(self.normalise(rows)))
        action = action.reshape(*given.shape[:-1], self.spaces.action_dim)
        return action if isinstance(observation, Tensor) else action.cpu().numpy()

    def start(self, count: int) -> Actor:
        """An actor for ``count`` episodes side by side; the default looks at the present observation only."""
        del count
        return lambda observation, _reward: self.act(observation)

    def normalise(self, observation: Float[Tensor, "*batch observation"]) -> Float[Tensor, "*batch observation"]:
        """Observations as the networks see them."""
        normalised: Tensor = self.networks["normaliser"](observation)
        return normalised

    def to_unit(self, action: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Actions of the environment brought to [-1, 1]."""
        return ((action - self._centre) / self._half).clamp(-1, 1)

    def from_unit(self, action: Float[Tensor, "*batch action"]) -> Float[Tensor, "*batch action"]:
        """Actions in [-1, 1] in the environment's unit."""
        return action * self._half + self._centre

    def save(self, directory: str | Path) -> None:
        """Writes the policy into a directory; :func:`thrifty.control.saving.load_policy` reads it."""
        from thrifty.control.saving import save_policy

        save_policy(self, Path(directory))

    def state_dict(self) -> dict[str, Any]:
        """All that the next update depends on."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        return {"networks": dict(self.networks.state_dict()), "optimizers": optimizers, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what :meth:`state_dict` returned."""
        self.networks.load_state_dict(state["networks"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.updates = state["updates"]


@dataclasses.dataclass(frozen=True)
class AgentConfig(ABC):
    """Settings of an agent; subclasses add the hyper-parameters of their paper.

    Parameters
    ----------
    steps
        Updates that :meth:`fit` makes.
    batch_size
        Transitions (or windows) in a batch.
    """

    name: ClassVar[str]

    steps: int = 100_000
    batch_size: int = 256

    @abstractmethod
    def create(
        self, spaces: Spaces, *, normaliser: Normaliser | None = None, device: torch.device | str = "cpu"
    ) -> Agent:
        """An untrained agent, its weights drawn from the global generator.

        Parameters
        ----------
        spaces
            What it sees and may do.
        normaliser
            Statistics of the observations; without it they are taken as they are.
        device
            Where it lives.
        """

    def batches(self, episodes: Episodes, seed: int, device: torch.device | str) -> Callable[[int], Any]:
        """``batches(step)``: what :meth:`Agent.update` gets; here steps drawn uniformly from all episodes."""
        return UniformBatches(episodes.transitions().to(device), self.batch_size, seed)

    def fit(self, episodes: Episodes, run: Run, *, normaliser: Normaliser | None = None) -> Agent:
        """Trains an agent on episodes.

        Parameters
        ----------
        episodes
            All with actions.
        run
            Where metrics and checkpoints go; the same run again goes on from its last checkpoint.
        normaliser
            Statistics of the observations; those of ``episodes`` by default.

        Returns
        -------
        Agent
            The trained agent.

        Raises
        ------
        InputError
            When an episode has no actions.
        NonFiniteError
            When the training diverges.
        """
        batches = self.batches(episodes, derive_seed(run.seed, "batches"), run.device)
        normaliser = normaliser or Normaliser.of(episodes.observations())
        agent = self.create(episodes.spaces(), normaliser=normaliser, device=run.device)
        train(agent, batches, run, self.steps)
        return agent

    def scaled_down(self, width: int) -> Self:
        """The same agent with networks of this width, for small problems and slow machines."""
        return dataclasses.replace(self, hidden=(width, width))  # type: ignore[call-arg]


def train(agent: Agent, batches: Callable[[int], Any], run: Run, steps: int, *, label: str = "train") -> None:
    """Updates an agent ``steps`` times, resumably, on one thread.

    Parameters
    ----------
    agent
        What is trained.
    batches
        ``batches(step)``.
    run
        Where metrics and checkpoints go.
    steps
        Updates in all.
    label
        What the progress bar says.
    """
    every = max(steps // 20, 500)
    with one_thread():
        loop(
            lambda step: agent.update(batches(step)),
            run,
            steps,
            {"agent": agent},
            save_every=every,
            log_every=max(steps // 500, 1),
            label=label,
        )


def adam(module: nn.Module | list[Tensor], lr: float) -> torch.optim.Adam:
    """Adam with all tensors updated in one call."""
    parameters = module if isinstance(module, list) else list(module.parameters())
    return torch.optim.Adam(parameters, lr=lr, fused=True)


def minimise(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One optimizer step down a loss."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
