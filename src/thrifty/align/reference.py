"""The model that a policy is compared with: itself before training, or another one."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core import sharding
from thrifty.core.errors import InputError
from thrifty.core.sharding import gathered
from thrifty.lm.backbone import evaluating
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")


class Reference:
    """Log-probabilities under the model as it was when this was made, or under another one.

    With adapters, it is the same model with the adapters switched off and takes no memory; else it is a copy.

    Parameters
    ----------
    model
        The policy, before training.
    other
        Another model of the same vocabulary, to be the reference instead.

    Raises
    ------
    InputError
        When the other model has another vocabulary.
    """

    def __init__(self, model: Any, other: Any = None) -> None:
        if other is not None:
            sizes = [part.get_input_embeddings().weight.shape[0] for part in (model, other)]
            if sizes[0] != sizes[1]:
                raise InputError(
                    f"the reference has a vocabulary of {sizes[1]} tokens, the model one of {sizes[0]}: "
                    "give a reference with the same tokenizer"
                )
        self._adapted = other is None and hasattr(model, "disable_adapter")
        if self._adapted:
            self.model = model
        else:
            self.model = copy.deepcopy(model if other is None else other).requires_grad_(False).eval()

    @torch.no_grad()
    def logps(self, batch: Sequences, temperature: float = 1.0) -> Float[Tensor, "N T"]:
        """Log-probability of each response token; 0 elsewhere."""
        with gathered(self.model), self._switched_off(), evaluating(self.model):
            return token_logps(self.model, batch, temperature=temperature)

    @contextlib.contextmanager
    def _switched_off(self) -> Iterator[None]:
        if not self._adapted:
            yield
            return
        with self.model.disable_adapter():
            yield


@torch.no_grad()
def values_after(critic: nn.Module, batch: Sequences) -> Float[Tensor, "N T"]:
    """The critic's value after each token, while it is trained.

    Parameters
    ----------
    critic
        As :meth:`thrifty.align.base.Objective.critic` gives it.
    batch
        On its device.
    """
    with sharding.gathered(critic), evaluating(critic):
        values: Tensor = critic(batch)
    return values


@torch.no_grad()
def column_of_logps(logps: Any, data: Sequences, device: torch.device, rows: int = 32) -> Float[Tensor, "N T"]:
    """Log-probabilities of many sequences, some at a time.

    Parameters
    ----------
    logps
        ``logps(batch)``: of a batch on the device.
    data
        All sequences, on the CPU.
    device
        Where the model is.
    rows
        Sequences at once.
    """
    found = torch.zeros(data.input_ids.shape)
    for start in range(0, len(data), rows):
        part = data.select(slice(start, start + rows)).trim().to(device)
        found[start : start + rows, : part.input_ids.shape[1]] = logps(part).float().cpu()
    return found


def with_behaviour_logps(model: Any, data: Sequences, device: torch.device, temperature: float = 1.0) -> Sequences:
    """Adds ``behaviour_logps`` where there are none, as if the model given had sampled the answers; that is said.

    Parameters
    ----------
    model
        The model before training, on the device.
    data
        Logged sequences; given back as they are when they have the column.
    device
        Where the model is.
    temperature
        At which the answers were sampled.
    """
    if "behaviour_logps" in data.columns:
        return data
    _log.info("the log has no behaviour_logps: the model given is taken for the one that answered")
    with evaluating(model):
        logps = column_of_logps(lambda part: token_logps(model, part, temperature=temperature), data, device)
    return data.with_columns(behaviour_logps=logps)


def with_reference_logps(model: Any, data: Sequences, device: torch.device, temperature: float = 1.0) -> Sequences:
    """Adds ``reference_logps`` under the model as it is now, adapters included, where there are none.

    Parameters
    ----------
    model
        The reference, on the device.
    data
        Logged sequences; given back as they are when they have the column.
    device
        Where the model is.
    temperature
        Of the log-probabilities.
    """
    if "reference_logps" in data.columns:
        return data
    with evaluating(model):
        logps = column_of_logps(lambda part: token_logps(model, part, temperature=temperature), data, device)
    return data.with_columns(reference_logps=logps)
