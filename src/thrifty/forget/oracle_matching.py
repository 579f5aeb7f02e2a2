"""Oracle matching: a model is tuned to what models say that were trained without the forget set."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.forget.base import device_of
from thrifty.forget.matching import Loss, Matching, drawn
from thrifty.forget.retraining import Retraining, like, outputs


@dataclass(frozen=True)
class OracleMatching(Matching):
    """Tunes a classifier to models that were trained without the forget set: what matching reaches at best.

    It is a yardstick, since it trains what it is to save. The targets are the mean of their logits, or with
    ``loss="ce"`` of their probabilities.

    Parameters
    ----------
    oracles
        How many models are trained without the forget set.
    retrain_epochs, retrain_rate
        As for :class:`~thrifty.forget.dmm.DMM`.

    References
    ----------
    Georgiev et al., Attribute-to-Delete: Machine Unlearning via Datamodel Matching, ICLR 2025, arXiv 2410.23232.
    """

    needs: ClassVar[tuple[str, ...]] = ("forget_set", "retain_set")
    needs_labels: ClassVar[bool] = True

    oracles: int = 10
    retrain_epochs: float = 6.0
    retrain_rate: float = 0.1

    def forget(
        self,
        model: nn.Module,
        forget_set: Any,
        retain_set: Any,
        *,
        oracles: Float[Tensor, "oracles queries classes"] | None = None,
        fresh: Callable[[int], nn.Module] | None = None,
    ) -> nn.Module:
        """A copy of the model that says what the oracles say.

        Parameters
        ----------
        model, forget_set, retain_set, fresh
            As for :meth:`thrifty.forget.dmm.DMM.forget`.
        oracles
            Logits of trained ones for all of the forget set and, behind them, of the retain set.

        Raises
        ------
        InputError
            As for :meth:`thrifty.forget.dmm.DMM.forget`.
        """
        draw = drawn()
        pool = self.pool(forget_set, retain_set, draw)
        if oracles is None:
            kept = torch.arange(pool.forgotten, len(pool.full)).expand(self.oracles, -1)
            recipe = Retraining(fresh or like(model), self.retrain_rate, self.retrain_epochs)
            seeds = torch.randint(2**31, (self.oracles,), generator=draw).tolist()
            found = outputs(recipe.train(pool.full, kept, seeds, device_of(model)), pool.queries)
        else:
            found = oracles[:, pool.numbers]
        return self.match(model, pool, oracle_targets(found, self.loss))


def oracle_targets(
    logits: Float[Tensor, "oracles points classes"], loss: Loss = "mse"
) -> Float[Tensor, "points classes"]:
    """The mean of the oracles' logits; for ``"ce"``, logits whose softmax is the mean of their probabilities."""
    if loss == "mse":
        return logits.mean(0)
    return logits.log_softmax(-1).logsumexp(0) - math.log(len(logits))
