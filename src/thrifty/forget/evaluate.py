"""What remains of the forget set, what is lost of the rest: one evaluation for every method.

The yardstick is the model retrained without the forget set: its accuracy on the forget set and its membership score
are the goal, not zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.forget.base import check_inputs, check_labels, device_of, logits
from thrifty.forget.data import Labelled, Texts, as_source, stream
from thrifty.forget.texts import predicted, response_logits
from thrifty.lm.backbone import evaluating


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says about each example of a set.

    Parameters
    ----------
    nll
        Negative log-likelihood of the true class in nats, [N]; of texts, the mean over response tokens.
    correct
        1 where the most likely class is the true one, [N]; of texts, the share of such response tokens.
    entropy
        Entropy of the predicted distribution in nats, [N]; of texts, the mean over response tokens.
    is_text
        Whether the examples are texts.
    """

    nll: Float[Tensor, " examples"]
    correct: Float[Tensor, " examples"]
    entropy: Float[Tensor, " examples"]
    is_text: bool = False


@torch.no_grad()
def predict(model: nn.Module, data: Any, batch_size: int = 256, name: str = "data") -> Predictions:
    """Asks a model about every example of a set.

    Parameters
    ----------
    model
        A classifier or a causal language model; its mode is put back.
    data
        Any data of the room, with labels.
    batch_size
        Examples asked about at once.
    name
        What messages call the data.

    Raises
    ------
    InputError
        For empty or unlabelled data, labels that are no classes, or inputs that are not finite.
    """
    rows: list[Tensor] = []
    examples, is_text = 0, False
    with evaluating(model):
        for given in stream(data, batch_size, name=name):
            check_inputs(given, examples)
            batch = given.to(device_of(model))
            is_text = isinstance(batch, Texts)
            rows.append(_of_texts(model, batch) if isinstance(batch, Texts) else _of_inputs(model, batch, examples))
            examples += len(batch)
    nll, correct, entropy = torch.cat(rows, 1).cpu()
    return Predictions(nll, correct, entropy, is_text)


def _of_inputs(model: nn.Module, batch: Labelled, before: int) -> Tensor:
    logps = logits(model, batch.x).log_softmax(-1)
    if batch.y is None:
        raise InputError("these data have no labels: give pairs (x, y)")
    check_labels(batch.y, logps.shape[1], before)
    y = batch.y.long()
    return torch.stack(
        [functional.nll_loss(logps, y, reduction="none"), (logps.argmax(-1) == y).float(), entropies(logps)]
    )


def _of_texts(model: nn.Module, batch: Texts) -> Tensor:
    rows = []
    for found, tokens in response_logits(model, batch.sequences):
        logps = found.log_softmax(-1)
        chosen = logps.gather(1, tokens[:, None])[:, 0]
        rows.append(torch.stack([-chosen, (logps.argmax(-1) == tokens).float(), entropies(logps)]))
    mask = predicted(batch.sequences)
    owner = mask.nonzero()[:, 0]
    sums = torch.zeros(3, len(mask), device=mask.device).index_add_(1, owner, torch.cat(rows, 1))
    return sums / mask.sum(1).clamp(min=1)


def entropies(logps: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Entropy of each row of log-probabilities, in nats."""
    return -(logps.exp() * logps.clamp(min=torch.finfo(logps.dtype).min)).sum(-1)


def membership(
    retain: Float[Tensor, " retain"], test: Float[Tensor, " test"], forget: Float[Tensor, " forget"]
) -> float:
    """The share of the forget set that a membership attack takes for training data.

    The attack is a logistic regression on the entropy of the predictions, trained to tell retained training data
    from test data, both classes weighted equally.

    Parameters
    ----------
    retain, test, forget
        Prediction entropy of each example, in nats.

    Returns
    -------
    float
        From 0 to 1; the goal is the value of the retrained model.

    References
    ----------
    Chundawat et al., Can Bad Teaching Induce Forgetting?, AAAI 2023, arXiv 2205.08096.
    """
    from sklearn.linear_model import LogisticRegression

    x = torch.cat([retain, test]).double().numpy()[:, None]
    y = np.concatenate([np.ones(len(retain)), np.zeros(len(test))])
    attack = LogisticRegression(class_weight="balanced").fit(x, y)
    return float(attack.predict(forget.double().numpy()[:, None]).mean())


def divergence(model: nn.Module, reference: nn.Module, data: Any, batch_size: int = 256) -> float:
    """Mean KL divergence of a model's predictions from a reference's, ``KL(reference || model)``.

    Parameters
    ----------
    model, reference
        Two models over the same classes or vocabulary.
    data
        Where they are compared; labels are not looked at.
    batch_size
        Examples asked about at once.

    Returns
    -------
    float
        In nats, an example's (a response token's) mean.
    """
    total, count = 0.0, 0
    for mine, theirs in _side_by_side(model, reference, data, batch_size):
        total += float(
            functional.kl_div(mine.log_softmax(-1), theirs.log_softmax(-1), reduction="sum", log_target=True)
        )
        count += len(mine)
    return total / count


def agreement(model: nn.Module, reference: nn.Module, data: Any, batch_size: int = 256) -> float:
    """The share of examples (of texts, response tokens) for which two models find the same class most likely.

    Parameters are those of :func:`divergence`.
    """
    same = [
        (mine.argmax(-1) == theirs.argmax(-1)).float()
        for mine, theirs in _side_by_side(model, reference, data, batch_size)
    ]
    return float(torch.cat(same).mean())


@torch.no_grad()
def _side_by_side(
    model: nn.Module, reference: nn.Module, data: Any, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The logits of two models for the same examples, some at a time."""
    with evaluating(model), evaluating(reference):
        for given in stream(data, batch_size):
            batch = given.to(device_of(model))
            if isinstance(batch, Texts):
                pairs = (response_logits(each, batch.sequences) for each in (model, reference))
                for (mine, _), (theirs, _) in zip(*pairs, strict=True):
                    yield mine, theirs
            else:
                yield logits(model, batch.x), logits(reference, batch.x)


def evaluate(
    model: nn.Module,
    sets: Mapping[str, Any],
    *,
    reference: nn.Module | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """Accuracy on every set, the membership attack, and the distance to the retrained model.

    Parameters
    ----------
    model
        A classifier or a causal language model.
    sets
        Name to data. Each gets ``<name>_accuracy``, and ``<name>_nll`` for texts. The attack needs ``forget``,
        ``retain`` and ``test``.
    reference
        The model retrained without the forget set: ``forget_kl`` is the distance to it.
    batch_size
        Examples asked about at once.

    Returns
    -------
    dict
        Shares from 0 to 1, likelihoods and distances in nats, and ``mia`` (see :func:`membership`).
    """
    sources = {name: as_source(data, f"{name} set") for name, data in sets.items()}
    found = {name: predict(model, source, batch_size, f"{name} set") for name, source in sources.items()}
    scores: dict[str, float] = {}
    for name, said in found.items():
        scores[f"{name}_accuracy"] = float(said.correct.mean())
        if said.is_text:
            scores[f"{name}_nll"] = float(said.nll.mean())
    if {"forget", "retain", "test"} <= set(found):
        scores["mia"] = membership(found["retain"].entropy, found["test"].entropy, found["forget"].entropy)
    if reference is not None:
        scores["forget_kl"] = divergence(model, reference, sources["forget"], batch_size)
    return scores
