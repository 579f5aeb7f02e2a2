"""The two stages of N2N: the search for layers to remove, and the search for smaller ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from thrifty.core.checkpoint import load_tree, save_tree
from thrifty.core.errors import InputError, NotFoundError, RunError
from thrifty.core.loop import loop
from thrifty.core.run import Run
from thrifty.core.threads import one_thread
from thrifty.nets.chain import ChainConfig, parameters
from thrifty.shrink.architecture_search import Scores, Search
from thrifty.shrink.children import Limits, layer_features, removable, removal_child, shrinkable, shrinkage_child
from thrifty.shrink.controllers import KEEP, RemovalPolicy, Rollouts, ShrinkagePolicy
from thrifty.shrink.policy_gradient import History, paper_update, released_update
from thrifty.shrink.students import Students

if TYPE_CHECKING:
    from thrifty.shrink.n2n import N2N

_log = logging.getLogger("thrifty")
POLICIES = "policies"
TABLES = {
    "paper": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "released": (0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
}


def removal_search(method: N2N, config: ChainConfig, students: Students, scores: Scores) -> Search:
    """The search for layers to remove; its policy is new, or that of ``start_from``.

    Parameters
    ----------
    method
        Its settings.
    config
        The network whose layers go.
    students
        Of the teacher.
    scores
        Of networks; those that are new will be added.

    Raises
    ------
    InputError
        When the policy to begin with is not there, or of another shape.
    """
    features, free = layer_features(config.layers, skips=method.skips), removable(config.layers)
    policy = RemovalPolicy(
        features.shape[1], method.hidden, method.depth, form=method.form, critic=method.critic, scale=method.scale
    )
    limits = Limits(students.parameters, method.fewest_channels)
    return _search(method, students, scores)(
        name="removal",
        policy=_begun(policy, method, "removal"),
        optimizer=torch.optim.Adam(policy.parameters(), lr=method.removal_rate),
        features=features,
        free=free if method.fixed_actions == "forced" else torch.ones_like(free),
        child=lambda actions: removal_child(config, actions == KEEP, limits),
    )


def shrinkage_search(method: N2N, config: ChainConfig, students: Students, scores: Scores) -> Search:
    """The search for smaller layers; as :func:`removal_search`."""
    features, free = layer_features(config.layers, skips=method.skips), shrinkable(config.layers)
    table = torch.tensor(TABLES[method.multipliers])
    policy = ShrinkagePolicy(features.shape[1], table, method.hidden, method.depth, scale=method.scale)
    limits = Limits(students.parameters, method.fewest_channels)
    if method.fixed_actions == "sampled":
        free = torch.ones_like(free)
        free[:, 0] = False  # the kind is never scaled, in what the policy sees neither
    return _search(method, students, scores)(
        name="shrinkage",
        policy=_begun(policy, method, "shrinkage"),
        optimizer=torch.optim.Adam(policy.parameters(), lr=method.shrinkage_rate),
        features=features,
        free=free,
        child=lambda actions: shrinkage_child(config, table[actions], limits),
    )


def _search(method: N2N, students: Students, scores: Scores) -> Callable[..., Search]:
    def reward(accuracy: Tensor, parameters: Tensor, iteration: int) -> Tensor:
        return method.rewards(students, accuracy, parameters, method.relaxed(iteration))

    def reinforce(
        judge: Callable[[Tensor], Rollouts],
        drawn: Rollouts,
        rewards: Tensor,
        history: History,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        if method.update == "paper":
            paper_update(drawn, rewards, history, optimizer, method.baseline_decay)
        else:
            released_update(drawn, rewards, history, optimizer, judge)

    return partial(Search, scores=scores, reward=reward, reinforce=reinforce, rollouts=method.rollouts)


def _begun(policy: nn.Module, method: N2N, name: str) -> nn.Module:
    if method.start_from is None:
        return policy
    file = Path(method.start_from) / POLICIES / f"{name}.safetensors"
    if not file.exists():
        raise NotFoundError(f"{method.start_from} holds no policy for {name}: give the directory of a run of n2n")
    try:
        policy.load_state_dict(load_tree(file))
    except RuntimeError as error:
        raise InputError(
            f"{file} is a policy of another shape: give form, critic, skips, hidden, depth and multipliers as that run"
        ) from error
    return policy


def train_policy(search: Search, iterations: int, stage: Run, run: Run) -> Search:
    """Trains the policy of a search.

    Parameters
    ----------
    search
        What is trained; its ``history`` then has the rewards, and its ``scores`` what was tried.
    iterations
        Updates of the policy.
    stage
        For checkpoints and metrics.
    run
        The policy is kept in its ``policies``.
    """
    with one_thread():
        loop(search.update, stage, iterations, search.state(), save_every=10, label=search.name)
    save_tree(run.directory / POLICIES / f"{search.name}.safetensors", search.policy.state_dict())
    return search


def best_student(method: N2N, search: Search, students: Students) -> tuple[ChainConfig, dict[str, Any]]:
    """The network with the largest reward among all that were tried, and what a search came to.

    Parameters
    ----------
    method
        Its constraints are hard here; where nothing keeps to them, they are left out, and that is said.
    search
        That was trained.
    students
        Of the teacher.

    Raises
    ------
    RunError
        When no child could exist.
    """
    tried = search.scores.networks(students.config)
    if not tried:
        raise RunError("no smaller network could be made of this teacher: every child was invalid or no smaller")
    accuracies = torch.tensor([accuracy for _, accuracy in tried])
    sizes = torch.tensor([float(parameters(config)) for config, _ in tried])
    rewards = method.rewards(students, accuracies, sizes)
    if float(rewards.max()) == -1:
        _log.warning("none of the %d networks tried keeps to the constraint: going on with the best", len(tried))
        rewards = method.rewards(students, accuracies, sizes, 1.0)
    at = int(rewards.argmax())
    return tried[at][0], {
        "mean_rewards": search.history.means(),
        "reward": float(rewards[at]),
        "accuracy": float(accuracies[at]),
        "parameters": int(sizes[at]),
        "trained": len(tried),
    }
