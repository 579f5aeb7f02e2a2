"""Which action led from here to there: inverse dynamics over several past observations, with its uncertainty.

The window of step t is ``s_{t-k}, ..., s_t, s_{t+1}``. Before an episode's first step there is nothing: the first
observation is repeated, which is what a world at rest would have shown. (The released code pads with zero states before
normalisation, which become ``-mean / std``.) Training and labelling share :func:`windows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.control.base import adam, minimise
from thrifty.control.episode import Array, Episode
from thrifty.control.episodes import Episodes
from thrifty.control.sampling import UniformIndices
from thrifty.control.transitions import Spaces
from thrifty.core.errors import InputError
from thrifty.core.loop import loop
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.nets.gaussian import EDGE, bounded_log_std, squashed_log_prob, squashed_std
from thrifty.nets.mlp import EnsembleMLP
from thrifty.nets.normaliser import Normaliser

_CHUNK = 65536  # windows labelled at a time


def windows(observations: Float[Tensor, "steps_and_last observation"], k: int) -> Float[Tensor, "steps features"]:
    """Row t is ``s_{t-k}, ..., s_t, s_{t+1}`` side by side; before the first, the first is repeated.

    Parameters
    ----------
    observations
        ``[T + 1, ds]`` of one episode.
    k
        How many past observations stand before the present one.

    Returns
    -------
    Tensor
        ``[T, (k + 2) ds]``.
    """
    steps = len(observations) - 1
    index = torch.arange(steps)[:, None] + torch.arange(-k, 2)
    return observations[index.clamp_min(0)].flatten(1)


def mixture(
    means: Float[Tensor, "members *batch action"], stds: Float[Tensor, "members *batch action"]
) -> tuple[Float[Tensor, "*batch action"], Float[Tensor, "*batch action"]]:
    """Mean and variance of an even mixture: ``mu = mean_m mu_m``, ``mean_m sigma_m^2 + mean_m mu_m^2 - mu^2``.

    Parameters
    ----------
    means, stds
        Of each member.

    Returns
    -------
    tuple
        Mean, and variance (never negative).
    """
    mean = means.mean(0)
    return mean, stds.square().mean(0) + (means - mean).square().mean(0)


@dataclass(frozen=True)
class InverseDynamicsConfig:
    """Size and training of an inverse dynamics model.

    Parameters
    ----------
    k
        Past observations beside the present and the next; 0 is the classical model.
    members
        How many models are trained side by side.
    hidden
        Widths of the hidden layers, of mean and of standard deviation each.
    dropout
        Before the last layer.
    learning_rate
        Of Adam.
    batch_size
        Windows in a batch, drawn for each member by itself.
    steps
        Updates.
    holdout
        Share of the labelled episodes held out to choose the best checkpoint; 0 takes the last one.
    check_every
        Updates between two looks at the held-out episodes.
    uncertainty
        ``"squashed"``: with the standard deviation of the action itself. ``"gaussian"``: with that of the Normal before
        squashing, as the released code has it, though the means are squashed.
    """

    k: int = 1
    members: int = 1
    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.1
    learning_rate: float = 1e-4
    batch_size: int = 1024
    steps: int = 20_000
    holdout: float = 0.1
    check_every: int = 10
    uncertainty: Literal["squashed", "gaussian"] = "squashed"


class InverseDynamics(nn.Module):
    """An ensemble of ``p(a_t | s_{t-k}, ..., s_{t+1})``: tanh-squashed Normals over actions in [-1, 1].

    Parameters
    ----------
    config
        Sizes.
    spaces
        Of the environment.
    normaliser
        Statistics of the observations, labelled and unlabelled.
    """

    def __init__(self, config: InverseDynamicsConfig, spaces: Spaces, normaliser: Normaliser) -> None:
        super().__init__()
        self.config, self.spaces, self.normaliser = config, spaces, normaliser
        # The means of all members, then their log standard deviations: 2M perceptrons in one product.
        features = (config.k + 2) * spaces.observation_dim
        self.net = EnsembleMLP(
            2 * config.members, features, spaces.action_dim, config.hidden, dropout=config.dropout, init="orthogonal"
        )
        low, high = torch.tensor(spaces.low), torch.tensor(spaces.high)
        self.register_buffer("centre", (low + high) / 2, persistent=False)
        self.register_buffer("scale", (high - low) / 2, persistent=False)

    centre: Tensor
    scale: Tensor

    def forward(self, window: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations ``[M, B, da]`` before squashing, of ``[B, F]`` or ``[M, B, F]``."""
        mean, raw = self.net(window.repeat(2, 1, 1) if window.dim() == 3 else window).chunk(2)
        return mean, bounded_log_std(raw)

    def inputs(self, episodes: Sequence[Episode]) -> Float[Tensor, "steps features"]:
        """The normalised windows of all steps of these episodes."""
        device = self.centre.device
        rows = [windows(self.normaliser(torch.from_numpy(e.observations).to(device)), self.config.k) for e in episodes]
        return torch.cat(rows)

    def targets(self, episodes: Sequence[Episode]) -> Float[Tensor, "steps action"]:
        """Their actions, in [-1, 1]."""
        given = np.concatenate([e.actions for e in episodes if e.actions is not None])
        actions = torch.from_numpy(given).to(self.centre.device)
        return ((actions - self.centre) / self.scale).clamp(-1 + EDGE, 1 - EDGE)

    def negative_log_likelihood(self, window: Tensor, action: Tensor) -> Float[Tensor, " members"]:
        """``-mean_t sum_d log p(a_t | .)`` of each member."""
        mean, log_std = self(window)
        return -squashed_log_prob(action.expand_as(mean), mean, log_std).mean(-1)

    @torch.no_grad()
    def predict(self, window: Float[Tensor, "batch features"]) -> tuple[Tensor, Tensor]:
        """The most likely actions ``[B, da]`` in [-1, 1], and the uncertainty ``[B]`` of each."""
        self.eval()
        means, variances = [], []
        for part in window.split(_CHUNK):
            mean, log_std = self(part)
            std = squashed_std(mean, log_std) if self.config.uncertainty == "squashed" else log_std.exp()
            mean, variance = mixture(torch.tanh(mean), std)
            means.append(mean)
            variances.append(variance.mean(-1))
        return torch.cat(means), torch.cat(variances)

    def label(self, episodes: Sequence[Episode]) -> list[tuple[Array, Array]]:
        """Actions ``[T, da]`` in the environment's unit and uncertainty ``[T]`` for each episode."""
        lengths = [episode.steps for episode in episodes]
        with one_thread():
            unit, uncertainty = self.predict(self.inputs(episodes))
        actions = (unit * self.scale + self.centre).cpu().split(lengths)
        pairs = zip(actions, uncertainty.cpu().split(lengths), strict=True)
        return [(action.numpy(), doubt.numpy()) for action, doubt in pairs]


class _Training:
    """Model, optimizer and the best weights so far, as one state to save."""

    def __init__(self, model: InverseDynamics) -> None:
        self.model, self.optimizer = model, adam(model.net, model.config.learning_rate)
        self.best = {name: value.clone() for name, value in model.net.state_dict().items()}
        self.best_nll = torch.full((model.config.members,), torch.inf, device=model.centre.device)

    def state_dict(self) -> dict[str, Any]:
        net, optimizer = self.model.net.state_dict(), self.optimizer.state_dict()
        return {"net": dict(net), "optimizer": optimizer, "best": self.best, "best_nll": self.best_nll}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = self.best_nll.device
        self.model.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = {name: value.to(device) for name, value in state["best"].items()}
        self.best_nll = state["best_nll"].to(device)

    @torch.no_grad()
    def keep_best(self, nll: Tensor) -> None:
        """Takes over the present weights of each member that has become better than it ever was."""
        better = nll < self.best_nll
        self.best_nll = torch.where(better, nll, self.best_nll)
        chosen = better.repeat(2)[:, None, None]
        for name, value in self.model.net.state_dict().items():
            self.best[name] = torch.where(chosen, value, self.best[name])


def fit_inverse_dynamics(
    config: InverseDynamicsConfig,
    labelled: Episodes,
    normaliser: Normaliser,
    run: Run,
    extra: tuple[Tensor, Tensor] | None = None,
) -> InverseDynamics:
    """Trains an inverse dynamics model, and returns each member's best held-out checkpoint.

    (The released code rebinds a local name, so that the last iterate is what it uses; the paper's choice is the best.)

    Parameters
    ----------
    config
        Sizes and budget.
    labelled
        Episodes with actions; whole episodes are held out.
    normaliser
        Statistics of the observations, labelled and unlabelled.
    run
        Where metrics and checkpoints go.
    extra
        More normalised windows and actions in [-1, 1] to train on (pseudo-labels), never held out.

    Raises
    ------
    InputError
        When no episode is as long as the window, or there are too few to hold one out.
    """
    longest = max(episode.steps for episode in labelled)
    if config.k < 0 or config.k >= longest:
        raise InputError(
            f"k is {config.k}, but the longest episode with actions has {longest} steps: give k from 0 to {longest - 1}"
        )
    if config.holdout > 0 and len(labelled) < 2:
        raise InputError("only one episode has actions: give at least two, so that one can be held out, or holdout 0")
    held: Episodes | None = None
    if config.holdout > 0:
        labelled, held = labelled.split(config.holdout, derive_seed(run.seed, "holdout"))
    model = InverseDynamics(config, labelled.spaces(), normaliser).to(run.device)
    inputs, targets = model.inputs(labelled), model.targets(labelled)
    if extra is not None:
        inputs, targets = torch.cat([inputs, extra[0]]), torch.cat([targets, extra[1]])
    held_out = None if held is None else (model.inputs(held), model.targets(held))
    index = UniformIndices(len(inputs), config.members * config.batch_size, derive_seed(run.seed, "batches"))
    training = _Training(model)

    def update(step: int) -> dict[str, Tensor]:
        model.train()
        rows = index(step).to(inputs.device).view(config.members, -1)
        nll = model.negative_log_likelihood(inputs[rows], targets[rows])
        minimise(training.optimizer, nll.sum())
        logged = {"nll": nll.detach().mean()}
        done = step + 1
        if held_out is not None and (done == 1 or done % config.check_every == 0 or done == config.steps):
            model.eval()
            with torch.no_grad():
                held_nll = model.negative_log_likelihood(*held_out)
            training.keep_best(held_nll)
        if held_out is not None:
            logged["best_held_out_nll"] = training.best_nll.mean()
        return logged

    with one_thread():
        every = max(config.steps // 10, 500)
        thin = max(config.steps // 500, 1)
        loop(update, run, config.steps, {"training": training}, save_every=every, log_every=thin, label="label")
    if held_out is not None:
        model.net.load_state_dict(training.best)
    model.eval()
    return model
