"""Searches for a small network with a policy: draw children, train and score them, reinforce."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.nets.chain import ChainConfig, Layer, parameters
from thrifty.shrink.controllers import Rollouts
from thrifty.shrink.policy_gradient import History

Reward = Callable[[Float[Tensor, " N"], Float[Tensor, " N"], int], Float[Tensor, " N"]]


class Update(Protocol):
    """How a policy is updated; ``judge(actions)`` says how likely actions are now."""

    def __call__(
        self,
        judge: Callable[[Tensor], Rollouts],
        drawn: Rollouts,
        rewards: Tensor,
        history: History,
        optimizer: torch.optim.Optimizer,
    ) -> None: ...


@dataclass(eq=False)
class Scores:
    """The accuracy of each network that was trained, each once; part of a run's state.

    Parameters
    ----------
    score
        Trains a network of that shape from new weights and returns its accuracy on held-out examples.
    """

    score: Callable[[ChainConfig], float]
    known: dict[str, float] = field(default_factory=dict)

    def __call__(self, config: ChainConfig) -> float:
        """The accuracy, remembered where the network is known."""
        key = key_of(config)
        if key not in self.known:
            self.known[key] = self.score(config)
        return self.known[key]

    def networks(self, like: ChainConfig) -> list[tuple[ChainConfig, float]]:
        """All networks that were scored, for pictures of the same kind, in the order in which they were."""
        return [
            (ChainConfig(tuple(Layer(*row) for row in json.loads(key)), like.channels, like.size), accuracy)
            for key, accuracy in self.known.items()
        ]

    def state_dict(self) -> dict[str, Any]:
        """What is known."""
        return {"networks": list(self.known), "accuracies": list(self.known.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes the place of what is known."""
        self.known = dict(zip(state["networks"], state["accuracies"], strict=True))


def key_of(config: ChainConfig) -> str:
    """A network's layers as text."""
    return json.dumps(config.layers)


@dataclass(eq=False)
class Search:
    """One stage: a policy, what it sees, and what becomes of its actions.

    Parameters
    ----------
    name
        Of the stage.
    policy
        Drawn from and trained.
    optimizer
        Over its parameters.
    features, free
        What the policy sees of each layer, and where it has a choice.
    child
        The network that the actions of one episode make, or ``None`` where it can't exist.
    scores
        Of networks.
    reward
        ``reward(accuracies, parameters, iteration)`` of children that exist; others get -1.
    reinforce
        Updates the policy.
    rollouts
        Episodes of an iteration.
    """

    name: str
    policy: nn.Module
    optimizer: torch.optim.Optimizer
    features: Tensor
    free: Tensor
    child: Callable[[Tensor], ChainConfig | None]
    scores: Scores
    reward: Reward
    reinforce: Update
    rollouts: int
    history: History = field(default_factory=History)

    def update(self, iteration: int) -> dict[str, float]:
        """One iteration; returns what to log."""
        drawn: Rollouts = self.policy(self.features, self.free, self.rollouts)
        children = [self.child(actions) for actions in drawn.actions.cpu()]
        rewards, found = rewarded(children, self.scores, self.reward, iteration)
        self.reinforce(self._judge, drawn, rewards, self.history, self.optimizer)
        self.history.rewards.append(rewards.tolist())
        return {"reward": float(rewards.mean()), "best_reward": float(rewards.max())} | found

    def _judge(self, actions: Tensor) -> Rollouts:
        judged: Rollouts = self.policy(self.features, self.free, len(actions), actions)
        return judged

    def state(self) -> dict[str, Any]:
        """All that the next iteration depends on."""
        return {
            "policy": self.policy,
            "optimizer": self.optimizer,
            "history": self.history,
            "scores": self.scores,
        }


def rewarded(
    children: Sequence[ChainConfig | None], scores: Scores, reward: Reward, iteration: int
) -> tuple[Float[Tensor, " N"], dict[str, float]]:
    """The reward of each child, -1 where there is none, and what is worth logging of those that exist.

    Parameters
    ----------
    children
        Of one iteration.
    scores
        Trains those that are new.
    reward
        Of those that exist.
    iteration
        Which one it is.
    """
    rewards = torch.full((len(children),), -1.0)
    real = [(at, child) for at, child in enumerate(children) if child is not None]
    logged = {"children": float(len(scores.known)), "valid_share": len(real) / len(children)}
    if not real:
        return rewards, logged
    accuracies = torch.tensor([scores(child) for _, child in real])
    sizes = torch.tensor([float(parameters(child)) for _, child in real])
    rewards[[at for at, _ in real]] = reward(accuracies, sizes, iteration)
    return rewards, logged | {
        "children": float(len(scores.known)),
        "accuracy": float(accuracies.mean()),
        "parameters": float(sizes.mean()),
    }
