"""Training a process reward model on labelled steps: its head first, then all of it.

As in "Stop Summation" (arXiv 2504.15275), whose model is Qwen2.5-Math-7B on the labels of PRM800K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.align.base import Training
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.run import Run
from thrifty.data.fetch import fetch
from thrifty.reward.classifiers import check_kind, judged, longest
from thrifty.reward.labels import process_loss
from thrifty.reward.models import ProcessModel
from thrifty.reward.step_format import StepFormat, StepRow

HEAD = Training(
    learning_rate=1e-4, batch_size=128, epochs=3.0, weight_decay=0.1, betas=(0.9, 0.95), schedule="linear"
)  # fmt: skip
"""The paper's first stage, in which only the head is trained."""
WHOLE = Training(
    learning_rate=1e-6, batch_size=128, epochs=1.0, weight_decay=0.1, betas=(0.9, 0.95), schedule="linear"
)  # fmt: skip
"""Its second stage, in which everything is."""


def new_process_model(name: str | Path, *, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """A language model's body with a fresh head of two classes (bad, good), and its tokenizer.

    Parameters
    ----------
    name
        A language model: a folder, a named model, or a hub id.
    dtype
        Of the weights; None keeps the stored one.

    Raises
    ------
    NotFoundError
        When there is no such model.
    InputError
        When transformers knows no token classifier of its kind.
    """
    import safetensors
    import transformers

    folder = fetch(str(name))
    messages = transformers.utils.logging
    before, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity_error()  # that the head is fresh is no news
    messages.disable_progress_bar()
    try:
        model = transformers.AutoModelForTokenClassification.from_pretrained(
            folder, num_labels=2, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=False,
            local_files_only=True,
        )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (ValueError, OSError, KeyError, safetensors.SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} can't be loaded as the body of a token classifier: {first}") from error
    finally:
        messages.set_verbosity(before)
        if bars:
            messages.enable_progress_bar()
    return model, tokenizer


def train_process_model(
    model: Any,
    tokenizer: Any,
    records: Sequence[Mapping[str, Any]],
    run: Run,
    *,
    form: StepFormat | None = None,
    head: Training | None = HEAD,
    whole: Training | None = WHOLE,
    save_every: int | None = 200,
) -> ProcessModel:
    r"""Trains a token classifier on labelled steps, in two stages; resumable.

    .. math::
        L = -\frac{1}{\sum_i n_i} \sum_{i,k} y_{ik} \log p_{ik} + (1 - y_{ik}) \log (1 - p_{ik}), \qquad
        p_{ik} = \mathrm{softmax}(\text{logits at the separator of step } k)_1

    Parameters
    ----------
    model
        A token classifier of transformers with two labels (or one), such as :func:`new_process_model` gives; trained
        in place.
    tokenizer
        Its tokenizer.
    records
        TRL's stepwise records: ``prompt``, ``completions`` (the steps, without separators) and ``labels`` (for each
        step true or false, 1 or 0, or a share in between).
    run
        The stages are its stages ``head`` and ``whole``.
    form
        How steps are read; the trained model must be given them in the same way.
    head, whole
        How long and how fast the head alone and then everything is trained; ``None`` leaves the stage out.
    save_every
        Steps between checkpoints.

    Returns
    -------
    ProcessModel
        The trained model as a reward.

    Raises
    ------
    InputError
        When the model is of another kind, or a record lacks a column or a label, or has a wrong one: it is named.
    """
    check_kind(model, ["token classifier"], labels=(1, 2))
    form = form or StepFormat()
    data = _Labelled(records, tokenizer, form, longest(model))
    body = getattr(model, model.base_model_prefix)
    model.to(run.device)
    for name, training in (("head", head), ("whole", whole)):
        if training is not None:
            body.requires_grad_(name == "whole")
            _fit(model, data, training, run.stage(name), save_every)
    body.requires_grad_(True)
    return ProcessModel(model.eval(), tokenizer, form)


class _Labelled:
    """Tokens of labelled steps."""

    def __init__(
        self, records: Sequence[Mapping[str, Any]], tokenizer: Any, form: StepFormat, most: int | None
    ) -> None:
        if not len(records):
            raise InputError("there are no labelled steps to train on: the data set is empty")
        self.rows: list[StepRow] = []
        self.labels: list[list[float]] = []
        for number, record in enumerate(records, start=1):
            for column in ("prompt", "completions", "labels"):
                if column not in record:
                    there = ", ".join(record) or "nothing"
                    raise InputError(f"record {number} has no column {column!r} (it has: {there})")
            steps, labels = list(record["completions"]), [_label(value, number) for value in record["labels"]]
            if not steps or len(steps) != len(labels):
                raise InputError(
                    f"record {number} has {len(steps)} steps in completions and {len(labels)} labels: give one for each"
                )
            self.rows.append(form.row(tokenizer, record["prompt"], steps, most))
            self.labels.append(labels)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, numbers: Sequence[int], device: torch.device) -> _Batch:
        """Some of the records, padded."""
        rows, labels = [self.rows[n] for n in numbers], [self.labels[n] for n in numbers]
        width, most = max(len(row.ids) for row in rows), max(len(row.reads) for row in rows)
        ids, reads = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), most, dtype=torch.long)
        attention, mask = torch.zeros_like(ids), torch.zeros(len(rows), most, dtype=torch.bool)
        label = torch.zeros(len(rows), most)
        for at, row in enumerate(rows):
            ids[at, : len(row.ids)] = torch.tensor(row.ids)
            attention[at, : len(row.ids)] = 1
            reads[at, : len(row.reads)] = torch.tensor(row.reads)
            mask[at, : len(row.reads)] = True
            label[at, : len(row.reads)] = torch.tensor(labels[at])
        return _Batch(*(part.to(device) for part in (ids, attention, reads, mask, label)))


@dataclass(frozen=True, eq=False)
class _Batch:
    ids: Tensor
    attention: Tensor
    reads: Tensor
    mask: Tensor
    label: Tensor


def _fit(model: nn.Module, data: _Labelled, training: Training, run: Run, save_every: int | None) -> None:
    order = Shuffled(len(data), training.batch_size, run.seed, last="fill")
    steps, parts = training.steps(len(data)), math.ceil(order.batch_size / training.micro_batch_size)

    def part_of(index: int) -> tuple[_Batch, int]:
        numbers = order(index // parts)
        mine = numbers.tensor_split(parts)[index % parts].tolist()
        return data.batch(mine, run.device), sum(len(data.labels[number]) for number in numbers.tolist())

    def loss(net: nn.Module, given: tuple[_Batch, int]) -> Loss:
        batch, in_whole = given
        logits = net(input_ids=batch.ids, attention_mask=batch.attention).logits
        logits = logits.gather(1, batch.reads[..., None].expand(-1, -1, logits.shape[-1]))
        # The mean is over the steps of the whole batch, of which this is a part.
        value = process_loss(logits, batch.label, batch.mask) * (batch.mask.sum() / in_whole)
        found = (judged(logits.detach(), "logit") > 0) == (batch.label > 0.5)
        return Loss(value, {"accuracy": (found & batch.mask).sum() / batch.mask.sum()})

    fit(
        loss, model, part_of, training.build_optimizer, run, steps, clip_norm=training.clip_norm, accumulate=parts,
        combine="sum", schedule=training.factors(steps), save_every=save_every,
    )  # fmt: skip


def _label(value: Any, record: int) -> float:
    if isinstance(value, bool) or (isinstance(value, int | float) and 0 <= value <= 1):
        return float(value)
    raise InputError(f"record {record} has the label {value!r}, expected true or false, or a number from 0 to 1")
