"""What NPO stands beside: gradient ascent, DPO and KTO with refusals, and the divergence that holds what is kept."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

Direction = Literal["ref||policy", "policy||ref"]


def ascent_loss(logps: Float[Tensor, "row time"], mask: Bool[Tensor, "row time"]) -> Float[Tensor, ""]:
    """Gradient ascent: the mean log-probability of all answer tokens, to be minimised; its negative is cross-entropy.

    As in the authors' code it is a mean over tokens, so that the same learning rate moves less than NPO's sums do.

    Parameters
    ----------
    logps
        Log-probability of each token.
    mask
        True at answer tokens; at least one.
    """
    return (logps * mask).sum() / mask.sum()


def retain_kl(
    logits: Float[Tensor, "token vocab"], reference_logits: Float[Tensor, "token vocab"], direction: Direction
) -> Float[Tensor, " token"]:
    """KL divergence between the model's and the reference's prediction of each next token, in nats.

    Parameters
    ----------
    logits, reference_logits
        Of the model being trained, and of the one before unlearning.
    direction
        ``ref||policy``: the expectation is under the reference; ``policy||ref``: under the model.
    """
    mine, theirs = logits.log_softmax(-1), reference_logits.log_softmax(-1)
    first, second = (theirs, mine) if direction == "ref||policy" else (mine, theirs)
    return (first.exp() * (first - second)).sum(-1)


def dpo_loss(
    refusal: Float[Tensor, " row"],
    reference_refusal: Float[Tensor, " row"],
    forget: Float[Tensor, " row"],
    reference_forget: Float[Tensor, " row"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    r"""DPO with a refusal for the chosen answer, scaled as NPO is.

    .. math::
        -\frac2\beta \operatorname{mean} \log \sigma\!\left(\beta \left[
        \log \frac{\pi_\theta(r|x)}{\pi_{ref}(r|x)} - \log \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}\right]\right)

    Parameters
    ----------
    refusal, reference_refusal
        Log-probability of each refusal r (summed over its tokens), now and before training.
    forget, reference_forget
        The same of the answer y that it takes the place of.
    beta
        Inverse temperature.
    """
    margin = (refusal - reference_refusal) - (forget - reference_forget)
    return -2 / beta * functional.logsigmoid(beta * margin).mean()


def kto_loss(
    refusal: Float[Tensor, " row"],
    reference_refusal: Float[Tensor, " row"],
    forget: Float[Tensor, " row"],
    reference_forget: Float[Tensor, " row"],
    *,
    beta: float = 0.1,
    log: bool = False,
) -> Float[Tensor, ""]:
    r"""KTO for undesired answers alone, whose zero point is how far the refusals have moved.

    .. math::
        1 - \frac2\beta \operatorname{mean} s\!\left(z - \beta \log \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}\right),
        \qquad z = \operatorname{mean} \log \frac{\pi_\theta(r|x)}{\pi_{ref}(r|x)} \text{ (no gradient)}

    with s the logistic function or its logarithm. As in NPO's released code, z is not multiplied by beta.

    Parameters
    ----------
    refusal, reference_refusal, forget, reference_forget, beta
        As for :func:`dpo_loss`.
    log
        Whether s is the logarithm.
    """
    zero = (refusal - reference_refusal).detach().mean()
    value = zero - beta * (forget - reference_forget)
    squashed = functional.logsigmoid(value) if log else torch.sigmoid(value)
    return 1 - 2 / beta * squashed.mean()
