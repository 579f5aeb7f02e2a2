"""What reward models are trained on: labels of steps from rollouts, and the losses of both kinds of model.

Section 4 of "On Designing Effective RL Reward at Training Time for LLM Reasoning" (arXiv 2410.15115) trains its
outcome model on final answers, and its process model on step labels as Math-Shepherd (arXiv 2312.08935) makes them.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from thrifty.reward.classifiers import judged


def rollout_labels(
    right: Bool[Tensor, "B K R"], step_mask: Bool[Tensor, "B K"], kind: Literal["hard", "soft"] = "hard"
) -> Float[Tensor, "B K"]:
    """Labels of steps from completions sampled after each of them; 0 in the padding.

    Parameters
    ----------
    right
        Whether each of R completions of the response up to and including step k ends in the right answer.
    step_mask
        True for the steps there are.
    kind
        ``hard``: 1 where any completion is right; ``soft``: the share of right ones.
    """
    label = right.any(2).float() if kind == "hard" else right.float().mean(2)
    return label * step_mask


def outcome_loss(logits: Float[Tensor, "B L"], correct: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Binary cross-entropy of an outcome model's logits (one label, or two: bad and good) with right answers.

    Parameters
    ----------
    logits
        L is 1 or 2.
    correct
        1 where the final answer is right, else 0.
    """
    return F.binary_cross_entropy_with_logits(judged(logits, "logit"), correct.float())


def process_loss(
    logits: Float[Tensor, "B K L"], label: Float[Tensor, "B K"], step_mask: Bool[Tensor, "B K"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy of a process model's logits with step labels: the mean over all steps.

    Parameters
    ----------
    logits
        At each step's separator; L is 1 or 2.
    label
        In [0, 1], from :func:`rollout_labels` or from people.
    step_mask
        True for the steps there are.
    """
    loss = F.binary_cross_entropy_with_logits(judged(logits, "logit"), label.float(), reduction="none")
    return torch.where(step_mask, loss, 0.0).sum() / step_mask.sum().clamp(min=1)
