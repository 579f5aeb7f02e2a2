"""The stochastic Decision Transformer: actions as the continuation of (return to go, state, action) sequences.

Chen et al., "Decision Transformer", arXiv 2106.01345; the stochastic form with a learnt entropy temperature is that of
Zheng et al., "Online Decision Transformer", arXiv 2202.05607.

The released code averages its entropy estimate over all tokens, pads included, so that the temperature answers to
how much padding a batch holds; here pads count in none of the averages.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.control.base import Actor, Agent, AgentConfig, adam, minimise
from thrifty.control.cql import Temperature
from thrifty.control.episodes import Episodes
from thrifty.control.sampling import WindowBatches, Windows
from thrifty.control.transitions import Spaces
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.gaussian import bounded_log_std, squashed_log_prob, squashed_sample
from thrifty.nets.lamb import Lamb
from thrifty.nets.normaliser import Normaliser
from thrifty.nets.transformer import CausalTransformer


@dataclass(frozen=True)
class DecisionTransformer(AgentConfig):
    """Return-conditioned sequence model with a tanh-Gaussian head.

    Parameters
    ----------
    context
        K: steps it looks back on, the present one included.
    width
        Features of a token.
    layers, heads
        Blocks, and attention heads of each.
    dropout
        In the blocks.
    learning_rate, weight_decay
        Of LAMB; the temperature has Adam at the same rate.
    warmup
        Steps over which the learning rate rises.
    clip_norm
        Largest norm of the gradient.
    return_scale
        What returns to go are multiplied by before they are embedded.
    target_return
        The return asked for when acting; by default the best among the training episodes.
    target_entropy
        What the entropy is tuned to, in nats; minus the number of action dimensions by default.
    state_weight
        Weight of predicting the next state as well. Above 0, episodes without actions take part, their actions masked
        (the joint baseline for action-free data).
    """

    name: ClassVar[str] = "dt"

    context: int = 20
    width: int = 512
    layers: int = 4
    heads: int = 4
    dropout: float = 0.1
    learning_rate: float = 1e-4
    weight_decay: float = 1e-3
    warmup: int = 10_000
    clip_norm: float = 0.25
    return_scale: float = 1e-3
    target_return: float | None = None
    target_entropy: float | None = None
    state_weight: float = 0.0

    def create(
        self, spaces: Spaces, *, normaliser: Normaliser | None = None, device: torch.device | str = "cpu"
    ) -> DecisionTransformerAgent:
        normaliser = normaliser or Normaliser.identity(spaces.observation_dim)
        return DecisionTransformerAgent(self, spaces, normaliser, device)

    def batches(self, episodes: Episodes, seed: int, device: torch.device | str) -> Callable[[int], Windows]:
        if not episodes.labelled.all() and self.state_weight <= 0:
            raise InputError(
                f"{int((~episodes.labelled).sum())} of {len(episodes)} episodes have no actions: fill them in first, "
                "or give a state weight above 0 to model them by masking"
            )
        return WindowBatches(episodes, self.context, self.batch_size, seed, device)

    def fit(self, episodes: Episodes, run: Run, *, normaliser: Normaliser | None = None) -> Agent:
        if self.target_return is None:
            best = float(episodes.returns().max())
            return dataclasses.replace(self, target_return=best).fit(episodes, run, normaliser=normaliser)
        return super().fit(episodes, run, normaliser=normaliser)

    def scaled_down(self, width: int) -> DecisionTransformer:
        return dataclasses.replace(self, width=width, layers=2, heads=2, warmup=min(self.warmup, self.steps // 10))


def sequence_loss(
    log_prob: Float[Tensor, "batch k"],
    entropy: Float[Tensor, "batch k"],
    labelled: Bool[Tensor, "batch k"],
    valid: Bool[Tensor, "batch k"],
    temperature: Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """``-(mean log p(a) + temperature mean H)``, over tokens that exist and whose action is known.

    Parameters
    ----------
    log_prob
        Log-likelihood of the logged action at each step.
    entropy
        An estimate of the policy's entropy at each step.
    labelled, valid
        Which steps have a known action; which exist at all.
    temperature
        Weight of the entropy.

    Returns
    -------
    tuple
        The loss, and the mean entropy.
    """
    mean_entropy = entropy[valid].mean()
    count = labelled.sum().clamp_min(1)
    return -(torch.where(labelled, log_prob, 0.0).sum() / count + temperature * mean_entropy), mean_entropy


class SequenceModel(nn.Module):
    """Embeds (return to go, state, action) triples, runs the transformer, reads actions off the state tokens."""

    def __init__(self, config: DecisionTransformer, spaces: Spaces) -> None:
        super().__init__()
        width = config.width
        self.embed_return = nn.Linear(1, width)
        self.embed_state = nn.Linear(spaces.observation_dim, width)
        self.embed_action = nn.Linear(spaces.action_dim, width)
        self.unknown_action = nn.Parameter(torch.zeros(width))
        self.position = nn.Embedding(config.context, width)
        self.before = nn.LayerNorm(width)
        self.body = CausalTransformer(width, config.layers, config.heads, config.dropout)
        self.mean = nn.Linear(width, spaces.action_dim)
        self.log_std = nn.Linear(width, spaces.action_dim)
        self.next_state = nn.Linear(width, spaces.observation_dim)
        for head in (self.mean, self.log_std):
            nn.init.orthogonal_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        state: Float[Tensor, "batch k observation"],
        action: Float[Tensor, "batch k action"],
        scaled_return: Float[Tensor, "batch k"],
        valid: Bool[Tensor, "batch k"],
        known: Bool[Tensor, "batch k"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log standard deviation of each action before squashing, and the next states."""
        batch, steps, _ = state.shape
        acted = torch.where(known[..., None], self.embed_action(action), self.unknown_action)
        triples = torch.stack([self.embed_return(scaled_return[..., None]), self.embed_state(state), acted], 2)
        # Positions count from the right, so that a short history means the same with pads and without.
        back = torch.arange(steps - 1, -1, -1, device=state.device)
        tokens = self.before(triples + self.position(back)[:, None]).view(batch, 3 * steps, -1)
        out = self.body(tokens, valid.repeat_interleave(3, 1)).view(batch, steps, 3, -1)
        seen_state, seen_action = out[:, :, 1], out[:, :, 2]
        return self.mean(seen_state), bounded_log_std(self.log_std(seen_state)), self.next_state(seen_action)


class DecisionTransformerAgent(Agent):
    """A trained or untrained Decision Transformer; made by :meth:`DecisionTransformer.create`."""

    config: DecisionTransformer
    stepwise: ClassVar[bool] = False

    def __init__(
        self, config: DecisionTransformer, spaces: Spaces, normaliser: Normaliser, device: torch.device | str
    ) -> None:
        self.model, self.temperature = SequenceModel(config, spaces), Temperature(0.1)
        networks = {"normaliser": normaliser, "model": self.model, "temperature": self.temperature}
        super().__init__(config, spaces, networks, device)
        self.target_entropy = -float(spaces.action_dim) if config.target_entropy is None else config.target_entropy
        rate, decay = config.learning_rate, config.weight_decay
        self.optimizers = {
            "model": Lamb(self.model.parameters(), lr=rate, weight_decay=decay),
            "temperature": adam(self.temperature, rate),
        }

    def update(self, batch: Windows) -> dict[str, Tensor]:
        """One step of the model and of the temperature."""
        c = self.config
        self.networks.train()
        action, state = self.to_unit(batch.action), self.normalise(batch.observation)
        scaled = batch.return_to_go * c.return_scale
        mean, log_std, next_state = self.model(state, action, scaled, batch.valid, batch.labelled)
        log_prob = squashed_log_prob(action, mean, log_std)
        entropy = -squashed_sample(mean, log_std)[1]
        temperature = self.temperature().detach()
        loss, mean_entropy = sequence_loss(log_prob, entropy, batch.labelled, batch.valid, temperature)
        logged = {"entropy": mean_entropy.detach(), "temperature": temperature}
        if c.state_weight > 0:
            error = (next_state - self.normalise(batch.next_observation)).square().mean(-1)
            state_loss = error[batch.valid].mean()
            loss = loss + c.state_weight * state_loss
            logged["state_loss"] = state_loss.detach()
        optimizer = self.optimizers["model"]
        for group in optimizer.param_groups:
            group["lr"] = c.learning_rate * min(1.0, (self.updates + 1) / max(c.warmup, 1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), c.clip_norm)
        optimizer.step()
        minimise(self.optimizers["temperature"], self.temperature.loss(mean_entropy, self.target_entropy))
        self.updates += 1
        return {"loss": loss.detach(), **logged}

    def policy(self, observation: Tensor) -> Tensor:
        """The first action of an episode that starts with this observation."""
        return self._next(observation[:, None], self._asked(len(observation))[:, None], [])

    def start(self, count: int) -> Actor:
        """An actor that remembers the last K steps and takes each reward off the return it still asks for."""
        states: list[Tensor] = []
        actions: list[Tensor] = []
        togo: list[Tensor] = []

        @torch.no_grad()
        def act(observation: NDArray[np.float32], reward: NDArray[np.float32]) -> NDArray[np.float32]:
            earned = torch.as_tensor(reward, dtype=torch.float32, device=self.device)
            togo.append(togo[-1] - earned if togo else self._asked(count))
            states.append(self.normalise(torch.as_tensor(observation, dtype=torch.float32, device=self.device)))
            for history, length in ((states, 0), (togo, 0), (actions, 1)):
                del history[: max(len(history) + length - self.config.context, 0)]
            action = self._next(torch.stack(states, 1), torch.stack(togo, 1), actions)
            actions.append(action)
            chosen: NDArray[np.float32] = self.from_unit(action).cpu().numpy()
            return chosen

        return act

    def _asked(self, count: int) -> Tensor:
        return torch.full((count,), self.config.target_return or 0.0, device=self.device)

    def _next(self, states: Tensor, togo: Tensor, past: list[Tensor]) -> Tensor:
        """The mean action after ``states [N, t]``, with the t - 1 actions before it."""
        self.networks.eval()
        present = torch.zeros(len(states), self.spaces.action_dim, device=self.device)
        actions = torch.stack([*past, present], 1)
        valid = torch.ones(actions.shape[:2], dtype=torch.bool, device=self.device)
        known = valid.clone()
        known[:, -1] = False
        mean, _, _ = self.model(states, actions, togo * self.config.return_scale, valid, known)
        return torch.tanh(mean[:, -1])
