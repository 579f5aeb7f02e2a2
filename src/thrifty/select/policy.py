"""A linear policy that answers in one of several forms, and the reinforcement learning that trains it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Policy(NamedTuple):
    """Two linear softmax heads: an answer, and the form in which it is given. Form 0 is the one that is checked.

    Attributes
    ----------
    answer
        ``[D, A]``.
    form
        ``[D + 1, F]``, on the inputs and a constant; with F = 1 there is but one form.
    """

    answer: Float[Tensor, "D A"]
    form: Float[Tensor, "D1 F"]

    def log_probabilities(self, x: Float[Tensor, "B D"]) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B F"]]:
        """Of the answers and of the forms."""
        return (x @ self.answer).log_softmax(1), (with_constant(x) @ self.form).log_softmax(1)


class Examples(NamedTuple):
    """Inputs ``[N, D]`` and their reference answers ``[N]``."""

    x: Float[Tensor, "N D"]
    y: Int[Tensor, " N"]

    def rows(self, indices: Int[Tensor, " M"]) -> Examples:
        """Some of them."""
        return Examples(self.x[indices], self.y[indices])


def reinforce(
    policy: Policy,
    reference: Policy,
    batch: Examples,
    draw: torch.Generator,
    *,
    learning_rate: float,
    kl: float,
    samples: int = 8,
) -> tuple[Policy, Float[Tensor, "B G"]]:
    r"""One step of REINFORCE with advantages normalised in the group of a prompt's samples.

    .. math::
        \theta \leftarrow \theta + \eta \nabla \tfrac1B \textstyle\sum_b \left[ \tfrac1G \sum_g A_{bg} \log \pi(a_{bg})
        - \kappa\, \mathrm{KL}(\pi \| \pi_\mathrm{ref}) \right], \qquad
        A = \frac{R - \mathrm{mean}_g R}{\mathrm{std}_g R + 10^{-6}}

    Parameters
    ----------
    policy, reference
        What learns, and what it is held to.
    batch
        Prompts with their reference answers; a sample is right (R = 1) when the answer is it, in form 0.
    draw
        Where the samples come from.
    learning_rate
        eta.
    kl
        kappa.
    samples
        G.

    Returns
    -------
    Policy, Tensor
        After the step, and R.
    """
    size = len(batch.x)
    log_probabilities = policy.log_probabilities(batch.x)
    references = reference.log_probabilities(batch.x)
    answer, form = (torch.multinomial(lp.exp(), samples, replacement=True, generator=draw) for lp in log_probabilities)
    reward = ((answer == batch.y[:, None]) & (form == 0)).float()
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    heads = []
    inputs = (batch.x, with_constant(batch.x))
    for weight, x, lp, ref, chosen in zip(policy, inputs, log_probabilities, references, (answer, form), strict=True):
        # Advantages add up to 0 in a group, so the gradient of log-softmax is what the chosen entries get.
        push = torch.zeros_like(lp).scatter_add_(1, chosen, advantage) / samples
        ratio = lp - ref
        pull = lp.exp() * (ratio - (lp.exp() * ratio).sum(1, keepdim=True))
        heads.append(weight + learning_rate * x.T @ (push - kl * pull) / size)
    return Policy(*heads), reward


def greedy_accuracy(policy: Policy, examples: Examples) -> float:
    """Share of examples whose likeliest answer and form are right."""
    answer, form = policy.log_probabilities(examples.x)
    return float(((answer.argmax(1) == examples.y) & (form.argmax(1) == 0)).float().mean())


def sampled_accuracy(policy: Policy, examples: Examples) -> float:
    """Mean probability of the right answer in the right form: accuracy of samples at temperature 1."""
    answer, form = policy.log_probabilities(examples.x)
    return float((answer.gather(1, examples.y[:, None])[:, 0] + form[:, 0]).exp().mean())


def with_constant(x: Float[Tensor, "B D"]) -> Float[Tensor, "B D1"]:
    """Inputs with a 1 behind them."""
    return torch.cat([x, x.new_ones(len(x), 1)], 1)
