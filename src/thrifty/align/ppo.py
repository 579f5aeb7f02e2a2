"""Proximal policy optimisation with a value model: reinforcement learning from verifiable rewards as in TULU 3.

The four slots: sequences are sampled by the policy, one to a prompt; worth is whether a verifier accepts the answer;
credit is generalised advantage estimation with a learnt value of every state; the loss is the clipped policy gradient,
and beside it the clipped error of the values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.align.asking import Sampling
from thrifty.align.base import Objective, Training
from thrifty.align.credit import at_last_token, generalised_advantage, whiten
from thrifty.align.critic import ValueModel, without_dropout
from thrifty.align.policy_gradient import aggregate, clipped_policy_loss, policy_ratio
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

Place = Literal["after", "last"]


@dataclass(frozen=True)
class PPO(Objective):
    r"""Maximises :math:`\mathbb{E}[\alpha\, v(x, y) - \beta\, \mathrm{KL}(\pi \| \pi_\text{ref})]`, v = 1 if verified.

    .. math::
        r_t = -\beta (\log\pi_t - \log\pi_{\text{ref},t}) + [t = \text{end}]\, s, \qquad
        \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t+1}, \qquad R_t = A_t + V_t

        L = \overline{\max(-\hat A\rho,\, -\hat A\,\mathrm{clip}(\rho, 1-\epsilon, 1+\epsilon))}
          + \tfrac{c}{2}\, \overline{\max((V - R)^2,\, (V_\text{clip} - R)^2)}

    with :math:`s = \alpha v`, or the penalty where the answer did not end, and :math:`\hat A` whitened over all tokens
    of the rollout, after the returns were taken. The divergence is in the reward only. Policy and value model have an
    optimizer group and a gradient norm of their own, and dropout is off. Rollouts are learnt from as soon as they are
    sampled; the authors' code trains on those before the latest, because it samples on other machines meanwhile, and
    whitens on each of them by itself.

    Parameters
    ----------
    alpha
        What a verified answer earns; ``reward`` of the data, in [0, 1], is multiplied by it. Multiplied together with
        ``beta`` and the penalty it changes nothing for the policy, whose advantages are whitened.
    beta
        Weight of the divergence from the reference.
    non_stop_penalty
        The score of an answer that did not end by itself, in place of its own, also if it is right; ``None`` leaves it.
    min_length
        Tokens below which an answer counts as one that did not end.
    score_position
        ``after``: the score is earned one position after the last token, which has a value and a return too; in the
        longest answers of a rollout, which leave no room for it in the authors' code, on the last token. ``last``: on
        the last token of all.
    discount, trace
        Gamma and lambda.
    clip
        How far the ratio may leave 1 before its gradient vanishes.
    value_clip
        How far a value may leave the one that it had when the answer was sampled.
    value_coefficient
        c.
    value_learning_rate
        Of the value model; the policy's when ``None``.
    temperature
        At which answers are sampled.
    value_start
        What the value model starts from: a reward model (:class:`~thrifty.align.critic.ValueModel`, or a decoder of
        transformers that classifies sequences) with the policy's tokenizer. By default a copy of the policy, with a
        head that expects nothing.

    Raises
    ------
    InputError
        When a coefficient is out of range.

    References
    ----------
    Lambert et al., "TULU 3", arXiv 2411.15124, section 6 and the authors' ``ppo_vllm_thread_ray_gtrl.py``; Schulman et
    al., arXiv 1707.06347 (PPO) and 1506.02438 (advantages).
    """

    training: ClassVar[Training] = Training(
        learning_rate=3e-7, schedule="linear", batch_size=224, micro_batch_size=16, epochs=1.0
    )
    sampling: ClassVar[Sampling] = Sampling(samples=1, prompts_per_rollout=224, updates_per_rollout=4, passes=4)
    """One answer to each prompt; four passes over each rollout, each in one step."""

    alpha: float = 10.0
    beta: float = 0.05
    non_stop_penalty: float | None = -10.0
    min_length: int = 0
    score_position: Place = "after"
    discount: float = 1.0
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    value_learning_rate: float | None = None
    temperature: float = 1.0
    value_start: Any = None

    def __post_init__(self) -> None:
        for name in ("alpha", "clip", "value_clip", "value_coefficient", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be within [0, 1], not {getattr(self, name):g}")
        if self.beta < 0:
            raise InputError(f"beta must be at least 0, not {self.beta:g}")
        if self.score_position not in ("after", "last"):
            raise InputError(f"score_position must be after or last, not {self.score_position!r}")

    def needs(self) -> frozenset[str]:
        """Who answered, the reference, and what the critic expected then."""
        return frozenset({"behaviour_logps", "reference_logps", "values"})

    def critic(self, model: nn.Module) -> ValueModel:
        """A value model, from ``value_start`` or from the policy; switches the dropout of both off."""
        without_dropout(model)
        return without_dropout(ValueModel.of(model if self.value_start is None else self.value_start))

    def prepare(self, data: Sequences) -> Sequences:
        """Adds ``advantage`` for the policy, and ``returns`` with ``valued`` (where they count) for the value model.

        Parameters
        ----------
        data
            With ``reward [N]`` in [0, 1], ``finished [N]``, ``behaviour_logps``, ``reference_logps`` and ``values
            [N, T]``.
        """
        mask = data.response_mask
        ended = data["finished"].bool() & (data.response_lengths >= self.min_length)
        rewards, valued = rlvr_token_reward(
            data["behaviour_logps"],
            data["reference_logps"],
            mask,
            data["reward"].float(),
            ended,
            alpha=self.alpha,
            beta=self.beta,
            non_stop_penalty=self.non_stop_penalty,
            score_position=self.score_position,
        )
        before = F.pad(data["values"], (1, 0))  # what is valued after a token is valued before the next
        advantages, returns = generalised_advantage(rewards, before, valued, self.discount, self.trace)
        return data.with_columns(
            advantage=whiten(advantages[:, :-1], mask),
            returns=returns[:, 1:],
            valued=valued[:, 1:],
            counts=mask.any(1),
        )

    def teaches(self, batch: Sequences) -> Bool[Tensor, " N"]:
        """Answers with at least one token."""
        return batch["counts"]

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The policy's loss of a part of a step's answers, with the divergence from the reference by its tokens and the
        share of tokens whose ratio was clipped."""
        mask = batch.response_mask
        logps = token_logps(model, batch, temperature=self.temperature)
        ratio = policy_ratio(logps, batch["behaviour_logps"], mask)
        losses = clipped_policy_loss(ratio, batch["advantage"], self.clip)
        tokens = mask.sum().clamp(min=1)
        divergence = ((logps.detach() - batch["reference_logps"]) * mask).sum() / tokens
        clipped = (((ratio.detach() - 1).abs() > self.clip) & mask).sum() / tokens
        return Loss(
            aggregate(losses, mask, "token", whole.response_mask), {"divergence": divergence, "clipped": clipped}
        )

    def value_loss(self, critic: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The value model's loss of a part of a step's answers, with the mean squared error."""
        valued, returns = batch["valued"], batch["returns"]
        values = critic(batch)
        losses = clipped_value_loss(values, batch["values"], returns, self.value_clip)
        error = aggregate((values.detach() - returns) ** 2, valued, "token")
        value = self.value_coefficient * 0.5 * aggregate(losses, valued, "token", whole["valued"])
        return Loss(value, {"value_error": error})


def rlvr_token_reward(
    logps: Float[Tensor, "N T"],
    reference_logps: Float[Tensor, "N T"],
    mask: Bool[Tensor, "N T"],
    verified: Float[Tensor, " N"],
    ended: Bool[Tensor, " N"],
    *,
    alpha: float = 10.0,
    beta: float = 0.05,
    non_stop_penalty: float | None = -10.0,
    score_position: Place = "after",
) -> tuple[Float[Tensor, "N T+1"], Bool[Tensor, "N T+1"]]:
    r""":math:`r_t = -\beta (\log\pi_t - \log\pi_{\text{ref},t})`, and the score at the end.

    Parameters
    ----------
    logps, reference_logps
        Of each token, under the policy that sampled and under the reference.
    mask
        The response tokens.
    verified
        1 for an accepted answer, 0 for another.
    ended
        Whether the answer ended by itself.
    alpha, beta, non_stop_penalty, score_position
        As for :class:`PPO`.

    Returns
    -------
    tuple
        Rewards, with one more column so that the score may stand after a row's last token; and which positions have a
        value: the response tokens, and that of the score.
    """
    score = alpha * verified
    if non_stop_penalty is not None:
        score = torch.where(ended, score, non_stop_penalty)
    valued = F.pad(mask, (0, 1))
    if score_position == "after":
        lengths, columns = mask.sum(1), torch.arange(valued.shape[1], device=mask.device)
        last = (columns * valued).amax(1)
        room = (lengths < lengths.max()) & (lengths > 0)
        valued = valued | ((columns == last[:, None] + 1) & room[:, None])
    divergence = F.pad((logps - reference_logps) * mask, (0, 1))
    return -beta * divergence + at_last_token(score, valued), valued


def clipped_value_loss(
    values: Float[Tensor, "N T"], old_values: Float[Tensor, "N T"], returns: Float[Tensor, "N T"], clip: float = 0.2
) -> Float[Tensor, "N T"]:
    r""":math:`\max((V - R)^2,\; (V_\text{old} + \mathrm{clip}(V - V_\text{old}, -\epsilon, \epsilon) - R)^2)`.

    Parameters
    ----------
    values, old_values
        Of the value model now (the gradient flows through these) and when the answers were sampled.
    returns
        What is learnt.
    clip
        :math:`\epsilon`.
    """
    near = old_values + (values - old_values).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (near - returns) ** 2)
