"""A critic beside the policy: a language model's body with a head of one number, what is still to be earned."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.align.base import Objective, Training
from thrifty.align.dpo import check_places
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.lm.backbone import backbone, unwrapped
from thrifty.lm.sequences import Sequences
from thrifty.lm.states import response_states
from thrifty.reward.classifiers import Kind, check_kind

_KINDS: tuple[Kind, ...] = ("sequence classifier", "causal language model")


class ValueModel(nn.Module):
    """A number for each state of a conversation in which the model is to speak or has just spoken.

    Parameters
    ----------
    lm
        A causal language model, of which the body is used; it becomes a part of this module. Its head is not trained,
        unless its weights are the embeddings.
    weight
        ``[width]``: the head from states to values; 0 when ``None``, so that at first nothing is expected.
    """

    def __init__(self, lm: Any, weight: Float[Tensor, " width"] | None = None) -> None:
        super().__init__()
        self.lm = lm
        embeddings, head = (part.weight for part in (lm.get_input_embeddings(), lm.get_output_embeddings()))
        if head is not embeddings:
            head.requires_grad_(False)
        value = torch.zeros(embeddings.shape[1]) if weight is None else weight.detach().clone()
        self.weight = nn.Parameter(value.to(embeddings))

    @classmethod
    def of(cls, start: Any) -> ValueModel:
        """A value model with a copy of another model's weights.

        Parameters
        ----------
        start
            A value model, a causal language model (also under PEFT), or a decoder of transformers that classifies
            sequences, with one label or two (the second for good): a reward model.

        Raises
        ------
        InputError
            When it is of another kind.
        """
        if isinstance(start, ValueModel):
            return copy.deepcopy(start)
        if check_kind(start, _KINDS, labels=(1, 2)) == "causal language model":
            return cls(copy.deepcopy(start))
        return cls(*_of_classifier(unwrapped(start)))

    def forward(self, sequences: Sequences) -> Float[Tensor, "row time"]:
        """The value after each token: before each response token, and after it; 0 elsewhere.

        Parameters
        ----------
        sequences
            Right-padded rows on the model's device; each response starts after at least one token.
        """
        mask = sequences.response_mask
        rows, time = mask.shape
        # One more column, so that what is to come after a row's last token has a place.
        ids, ahead = F.pad(sequences.input_ids, (0, 1)), F.pad(mask, (0, 1)) | F.pad(mask, (1, 0))
        values = self.weight.new_zeros(rows * (time + 1), dtype=torch.float32)
        if not bool(mask.any()):
            return values.view(rows, time + 1)[:, 1:]
        parts = backbone(self.lm)
        if parts is None:
            where = ahead.flatten().nonzero()[:, 0]
            states = self._states_by_model(sequences)[ahead[:, 1:]]
        else:
            states, where = response_states(self.lm, parts, ids, ahead, None, True)
        found = states.float() @ self.weight.float()
        return values.index_copy(0, where, found).view(rows, time + 1)[:, 1:]

    def _states_by_model(self, sequences: Sequences) -> Tensor:
        found = self.lm(
            input_ids=sequences.input_ids,
            attention_mask=sequences.attention_mask.long(),
            output_hidden_states=True,
            use_cache=False,
        )
        states: Tensor = found.hidden_states[-1]
        return states


class RewardModelling(Objective):
    r"""Trains a :class:`ValueModel` to score whole answers as pairs order them (Bradley and Terry).

    .. math:: L = -\overline{\log\sigma(V(x, y_w) - V(x, y_l))}, \qquad V \text{ after the last token}

    What is trained is the value model itself: ``train(value_model, RewardModelling(), pairs, run)``.

    References
    ----------
    Ouyang et al., arXiv 2203.02155, equation 1; learning rate and epochs of TULU 3, arXiv 2411.15124.
    """

    training: ClassVar[Training] = Training(learning_rate=3e-6, schedule="linear", batch_size=256)
    rows_per_example: ClassVar[int] = 2

    def prepare(self, data: Sequences) -> Sequences:
        """Pairs as they are: rows chosen, rejected, chosen, ...; raises InputError when they are no pairs."""
        check_places(data, self.rows_per_example)
        return data

    def loss(self, model: nn.Module, batch: Sequences, whole: Sequences) -> Loss:
        """The loss of a part of a step's pairs, with the share that is ordered rightly."""
        scores = last_values(model(batch), batch.response_mask)
        margin = scores[0::2] - scores[1::2]
        value = -F.logsigmoid(margin).sum() / (len(whole) // 2)
        return Loss(value, {"accuracy": (margin.detach() > 0).float().mean()})


def last_values(values: Float[Tensor, "N T"], mask: Bool[Tensor, "N T"]) -> Float[Tensor, " N"]:
    """The value after each row's last response token: a reward model's score of the whole.

    Parameters
    ----------
    values
        From :class:`ValueModel`.
    mask
        The response tokens.
    """
    last = (torch.arange(mask.shape[1], device=mask.device) * mask).amax(1, keepdim=True)
    return values.gather(1, last)[:, 0]


Module = TypeVar("Module", bound=nn.Module)


def without_dropout(model: Module) -> Module:
    """The same model with all its dropout layers switched off for good."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 (modules are not known to have it)
    return model


def _of_classifier(model: Any) -> tuple[Any, Tensor]:
    """A causal language model with a classifier's body, and the head that scores its last state."""
    from transformers import AutoModelForCausalLM

    weight = getattr(getattr(model, "score", None), "weight", None)
    try:
        lm = AutoModelForCausalLM.from_config(model.config, dtype=model.dtype).to(model.device)
        lm.base_model.load_state_dict(model.base_model.state_dict())
    except (ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{type(model).__name__} is no decoder, so it can't value unfinished answers") from error
    if weight is None:
        raise InputError(f"{type(model).__name__} has no head `score`: a decoder that classifies was expected")
    return lm, weight[-1] if len(weight) == 1 else weight[1] - weight[0]
