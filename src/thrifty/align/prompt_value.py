"""What a model can expect to earn on a prompt: a small head on the frozen states of the prompt's tokens."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from thrifty.align.credit import group_statistics
from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled
from thrifty.lm.backbone import backbone, evaluating
from thrifty.lm.sequences import Sequences

HeadKind = Literal["mlp", "attention"]


class PromptValueHead(nn.Module):
    r"""The value of a prompt from the last hidden states of its tokens.

    .. math:: V(x) = V_\text{min} + (V_\text{max} - V_\text{min})\, \sigma(f(h_1, \dots, h_P))

    Parameters
    ----------
    width
        Of the hidden states.
    kind
        ``mlp``: the mean over the tokens, through one hidden layer of the same width. ``attention``: what one learned
        query finds by attention with several heads.
    max_value, min_value
        The largest and the smallest reward there can be.
    heads
        Of the attention, at most; the width must be a multiple of them, so it may be fewer.
    dropout
        In front of each layer.

    Raises
    ------
    InputError
        When no value lies between the two.

    References
    ----------
    Baheti et al., "Leftover Lunch", ICLR 2024, section 3.2; both heads as in its code.
    """

    def __init__(
        self,
        width: int,
        kind: HeadKind = "mlp",
        *,
        max_value: float = 1.0,
        min_value: float = 0.0,
        heads: int = 8,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not max_value > min_value:
            raise InputError(f"max_value must be above min_value, not {max_value:g} and {min_value:g}")
        self.max_value, self.min_value = max_value, min_value
        self.dropout = nn.Dropout(dropout)
        self.query: nn.Parameter | None = None
        if kind == "attention":
            self.query = nn.Parameter(torch.randn(1, 1, width))
            self.attention = nn.MultiheadAttention(width, math.gcd(heads, width), dropout=dropout, batch_first=True)
        else:
            self.hidden = nn.Linear(width, width)
        self.last = nn.Linear(width, 1)

    def forward(self, hidden: Float[Tensor, "N P D"], prompt_mask: Bool[Tensor, "N P"]) -> Float[Tensor, " N"]:
        """The value of each prompt.

        Parameters
        ----------
        hidden
            Last hidden states of the prompt's tokens; what stands in the padding does not matter.
        prompt_mask
            True for real tokens.
        """
        if self.query is not None:
            query = self.query.expand(len(hidden), -1, -1)
            found, _ = self.attention(query, hidden, hidden, key_padding_mask=~prompt_mask, need_weights=False)
            pooled = self.dropout(found[:, 0])
        else:
            real = prompt_mask[:, :, None]
            kept = self.dropout(torch.where(real, hidden, 0.0))
            pooled = kept.sum(1) / real.sum(1).clamp(min=1)
            pooled = self.dropout(torch.relu(self.hidden(pooled)))
        share = torch.sigmoid(self.last(pooled)[:, 0])
        return self.min_value + (self.max_value - self.min_value) * share


def prompt_lengths(data: Sequences) -> Tensor:
    """Tokens before the first one that the model spoke, for each row; all of them where it said nothing."""
    spoke = data.response_mask.any(1)
    return torch.where(spoke, data.response_mask.int().argmax(1), data.lengths)


@torch.no_grad()
def prompt_states(model: Any, data: Sequences, device: torch.device, rows: int = 32) -> list[Float[Tensor, "P D"]]:
    """Last hidden states of the tokens of each row's prompt, on the CPU; the model is frozen and in evaluation mode.

    Parameters
    ----------
    model
        A causal language model.
    data
        Sequences; what the model spoke is not looked at.
    device
        Where the model is.
    rows
        Prompts at once.
    """
    found: list[Tensor] = []
    parts, lengths = backbone(model), prompt_lengths(data).tolist()
    with evaluating(model):
        for start in range(0, len(data), rows):
            some = lengths[start : start + rows]
            ids = data.input_ids[start : start + rows, : max(some)].to(device)
            real = data.attention_mask[start : start + rows, : max(some)].to(device)
            if parts is not None:
                states = parts.states(ids)
            else:
                shown = model(input_ids=ids, attention_mask=real.long(), output_hidden_states=True, use_cache=False)
                states = shown.hidden_states[-1][:, -ids.shape[1] :]
            found += [row[:length].cpu() for row, length in zip(states, some, strict=True)]
    return found


def values_of(head: PromptValueHead, states: Sequence[Tensor], rows: int = 256) -> Float[Tensor, " N"]:
    """The head's values of prompts, given the states of each.

    Parameters
    ----------
    head
        In training or evaluation mode as it stands.
    states
        From :func:`prompt_states`.
    rows
        Prompts at once.
    """
    found = []
    for start in range(0, len(states), rows):
        some = [row.float() for row in states[start : start + rows]]
        lengths = torch.tensor([len(row) for row in some])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        found.append(head(pad_sequence(some, batch_first=True), mask))
    return torch.cat(found)


def fit_value_head(
    head: PromptValueHead,
    states: Sequence[Tensor],
    reward: Float[Tensor, " N"],
    *,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
) -> list[float]:
    r"""Fits a head to rewards, by :math:`\frac1N \sum_i (V(x_i) - R_i)^2`; it is left as in its best epoch.

    Parameters
    ----------
    head
        Trained in place, and put into evaluation mode.
    states
        Of each prompt, from :func:`prompt_states`.
    reward
        Of one answer of the reference to each.
    epochs
        Passes over the prompts; the one with the lowest training error counts.
    learning_rate
        Of AdamW.
    batch_size
        Prompts in a step.
    seed
        Of order and dropout.

    Returns
    -------
    list of float
        The mean squared error in each epoch.
    """
    order = Shuffled(len(states), batch_size, seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=0.0)
    errors: list[float] = []
    best = copy.deepcopy(head.state_dict())
    head.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(epochs):
            total = 0.0
            for step in range(order.per_epoch):
                rows = order(epoch * order.per_epoch + step).tolist()
                loss = ((values_of(head, [states[row] for row in rows]) - reward[rows]) ** 2).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            errors.append(total / len(states))
            if errors[-1] == min(errors):
                best = copy.deepcopy(head.state_dict())
    head.load_state_dict(best)
    head.eval()
    return errors


@torch.no_grad()
def prompt_values(head: PromptValueHead, model: Any, data: Sequences, device: torch.device) -> Float[Tensor, " N"]:
    """The value of each row's prompt, computed once for the rows that share one (by the column ``group``)."""
    if "group" in data.columns:
        _, place = data["group"].unique(return_inverse=True)
        first = torch.full((int(place.max()) + 1,), len(data)).scatter_reduce(0, place, torch.arange(len(data)), "amin")
    else:
        place = first = torch.arange(len(data))
    return values_of(head, prompt_states(model, data.select(first), device))[place]


def mean_rewards(reward: Float[Tensor, " N"], group: Tensor) -> Float[Tensor, " N"]:
    """What was logged in place of a value: the mean reward of the prompt's answers, of all answers where it has one."""
    mean, _, count = group_statistics(reward, group)
    return torch.where(count > 1, mean, reward.mean())
