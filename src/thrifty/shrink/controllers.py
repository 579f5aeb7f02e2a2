"""The two policies of N2N: which layers go, and how much smaller the rest becomes. Rollouts are batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.shrink.children import ATTRIBUTES

Form = Literal["bidirectional", "autoregressive", "encoder-decoder"]
Scale = Literal["raw", "log2"]
REMOVE, KEEP = 0, 1


@dataclass(frozen=True, eq=False)
class Rollouts:
    """What a policy did in N episodes.

    Parameters
    ----------
    actions
        int64, [N, layer] or [N, layer, attribute].
    logps
        Log-probability of each, 0 where there was no choice; same shape.
    values
        What a critic expects of each layer, [layer]; ``None`` without one.
    """

    actions: Int[Tensor, " N *action"]
    logps: Float[Tensor, " N *action"]
    values: Float[Tensor, " layer"] | None = None


class _Cells(nn.Module):
    """LSTM cells one above the other, for sequences in which what comes next depends on what was drawn."""

    def __init__(self, inputs: int, hidden: int, depth: int) -> None:
        super().__init__()
        self.cells = nn.ModuleList(nn.LSTMCell(inputs if at == 0 else hidden, hidden) for at in range(depth))
        self.hidden = hidden

    def start(self, batch: int, like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The states before the first step."""
        zeros = like.new_zeros(batch, self.hidden)
        return [(zeros, zeros) for _ in self.cells]

    def forward(
        self, x: Float[Tensor, "N feature"], states: list[tuple[Tensor, Tensor]]
    ) -> tuple[Float[Tensor, "N hidden"], list[tuple[Tensor, Tensor]]]:
        """What the upmost cell says, and the states after the step."""
        after = []
        for cell, state in zip(self.cells, states, strict=True):
            x, memory = cell(x, state)
            after.append((x, memory))
        return x, after


class RemovalPolicy(nn.Module):
    r"""Says of each layer whether it stays: :math:`\pi(a_l \mid h_{l-1}, h_{l+1}, x_l)`.

    Parameters
    ----------
    features
        Numbers that describe a layer.
    hidden, depth
        Size and number of the LSTM's layers.
    form
        ``bidirectional``: actions are independent given an LSTM over all layers. ``autoregressive``: each depends on
        those before. ``encoder-decoder``: one LSTM reads the layers from last to first, another one writes
        probabilities and reads only those it wrote before.
    critic
        Whether to say what reward is expected, for actor-critic.
    scale
        ``raw`` numbers, or ``log2`` of one more.
    """

    def __init__(
        self,
        features: int,
        hidden: int = 30,
        depth: int = 2,
        *,
        form: Form = "bidirectional",
        critic: bool = False,
        scale: Scale = "raw",
    ) -> None:
        super().__init__()
        self.form, self.scale = form, scale
        if form == "bidirectional":
            self.lstm = nn.LSTM(features, hidden, depth, bidirectional=True)
        elif form == "autoregressive":
            self.cells = _Cells(features + 1, hidden, depth)
        else:
            self.lstm = nn.LSTM(features, hidden, depth)
            self.cells = _Cells(2, hidden, depth)
        width = hidden * (2 if form == "bidirectional" else 1)
        self.choose = nn.Linear(width, 2)
        self.critic = nn.Linear(width, 1) if critic else None

    def forward(
        self,
        features: Float[Tensor, "layer feature"],
        free: Bool[Tensor, " layer"],
        count: int,
        actions: Int[Tensor, "N layer"] | None = None,
    ) -> Rollouts:
        """Draws N episodes, or says how likely given ones are.

        Parameters
        ----------
        features
            Of the layers.
        free
            Where there is a choice; the other layers stay.
        count
            How many episodes, N.
        actions
            Those of N episodes, to be judged instead of drawn.
        """
        x = scaled_features(features, self.scale)
        if self.form == "autoregressive":
            return self._one_by_one(x, free, count, actions)
        seen = self._bidirectional(x) if self.form == "bidirectional" else self._decoded(x)
        logits = self.choose(seen).log_softmax(-1)
        drawn = draw(logits.expand(count, -1, -1)) if actions is None else actions
        drawn = drawn.masked_fill(~free, KEEP)
        logps = logits.expand(count, -1, -1).gather(-1, drawn[..., None])[..., 0] * free
        return Rollouts(drawn, logps, None if self.critic is None else self.critic(seen)[:, 0])

    def _bidirectional(self, x: Float[Tensor, "layer feature"]) -> Float[Tensor, "layer width"]:
        found: Tensor = self.lstm(x[:, None])[0]
        return found[:, 0]

    def _decoded(self, x: Float[Tensor, "layer feature"]) -> Float[Tensor, "layer hidden"]:
        _, (h, c) = self.lstm(x.flip(0)[:, None])
        states = list(zip(h.unbind(0), c.unbind(0), strict=True))
        top, said = h[-1], []
        for _ in range(len(x)):
            top, states = self.cells(self.choose(top).softmax(-1), states)
            said.append(top[0])
        return torch.stack(said)

    def _one_by_one(
        self, x: Tensor, free: Bool[Tensor, " layer"], count: int, actions: Int[Tensor, "N layer"] | None
    ) -> Rollouts:
        states, before = self.cells.start(count, x), x.new_full((count, 1), KEEP)
        drawn, logps, seen = [], [], []
        for at in range(len(x)):
            top, states = self.cells(torch.cat([before, x[at].expand(count, -1)], 1), states)
            logits = self.choose(top).log_softmax(-1)
            action = draw(logits) if actions is None else actions[:, at]
            action = action.masked_fill(~free[at], KEEP)
            drawn.append(action)
            logps.append(logits.gather(-1, action[:, None])[:, 0] * free[at])
            seen.append(top.mean(0))
            before = action[:, None].to(x.dtype)
        values = None if self.critic is None else self.critic(torch.stack(seen))[:, 0]
        return Rollouts(torch.stack(drawn, 1), torch.stack(logps, 1), values)


class ShrinkagePolicy(nn.Module):
    r"""Says by what to multiply each attribute of each layer: :math:`\pi(a_t \mid a_{t-1}, h_{t-1}, x_t)`.

    Goes through the attributes of a layer one after the other; what it has drawn for one scales that attribute in what
    it sees at the next.

    Parameters
    ----------
    features
        Numbers that describe a layer; the first five are its attributes.
    table
        What to choose from.
    hidden, depth
        Size and number of the LSTM's cells.
    scale
        ``raw`` numbers, or ``log2`` of one more.
    """

    table: Tensor

    def __init__(
        self, features: int, table: Float[Tensor, " choice"], hidden: int = 30, depth: int = 2, *, scale: Scale = "raw"
    ) -> None:
        super().__init__()
        self.scale = scale
        self.cells = _Cells(features, hidden, depth)
        self.choose = nn.Linear(hidden, len(table))
        self.register_buffer("table", table)

    def forward(
        self,
        features: Float[Tensor, "layer feature"],
        free: Bool[Tensor, "layer attribute"],
        count: int,
        actions: Int[Tensor, "N layer attribute"] | None = None,
    ) -> Rollouts:
        """Draws N episodes of places in the table, or says how likely given ones are.

        Parameters
        ----------
        features
            Of the layers.
        free
            Where there is a choice; the other attributes stay as they are, and what the policy sees of them too.
        count
            How many episodes, N.
        actions
            Those of N episodes, to be judged instead of drawn.
        """
        states = self.cells.start(count, features)
        drawn, logps = [], []
        for at, row in enumerate(features):
            x = row.expand(count, -1)
            for attribute in range(len(ATTRIBUTES)):
                top, states = self.cells(scaled_features(x, self.scale), states)
                logits = self.choose(top).log_softmax(-1)
                chosen = free[at, attribute]
                action = draw(logits) if actions is None else actions[:, at, attribute]
                drawn.append(action)
                logps.append(logits.gather(-1, action[:, None])[:, 0] * chosen)
                factor = torch.where(chosen, self.table[action], 1.0)
                x = torch.cat([x[:, :attribute], x[:, attribute, None] * factor[:, None], x[:, attribute + 1 :]], 1)
        shape = (count, len(features), len(ATTRIBUTES))
        return Rollouts(torch.stack(drawn, 1).view(shape), torch.stack(logps, 1).view(shape))


def scaled_features(x: Float[Tensor, "*batch feature"], scale: Scale) -> Float[Tensor, "*batch feature"]:
    """A layer's numbers as the policy takes them; as they are, channels of a hundred and more saturate it."""
    return (x + 1).log2() if scale == "log2" else x


def draw(logps: Float[Tensor, "*batch choice"]) -> Int[Tensor, "*batch"]:
    """One choice of each distribution, from the global generator."""
    flat = torch.multinomial(logps.detach().flatten(0, -2).exp(), 1)
    return flat.view(logps.shape[:-1])
