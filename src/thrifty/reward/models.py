"""Reward models: one score a response (outcome), or one a step (process), by any classifier of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.reward.base import Text, text_of
from thrifty.reward.classifiers import (
    Kind,
    Output,
    check_kind,
    check_output,
    judged,
    load_classifier,
    logits_of,
    longest,
    model_name,
)
from thrifty.reward.response_form import Form, check_form, response_ids
from thrifty.reward.step_format import StepFormat
from thrifty.reward.steps import StepRewards, split_text, split_tokens

Reduction = Literal["min", "mean", "last", "product"]
_STEP_KINDS: tuple[Kind, ...] = ("token classifier", "causal language model")


@dataclass(frozen=True, eq=False)
class OutcomeModel:
    """A sequence classifier as a reward: one score for prompt and completion together.

    Parameters
    ----------
    model
        A sequence classifier of transformers with one label, or two (the second for good).
    tokenizer
        Of the model.
    output
        ``probability`` (of good, by sigmoid or softmax), ``logit`` (of one label; of two, their difference), or
        ``difference`` (probability of good minus that of bad).
    form
        How the text is put: by the ``chat`` template, as one ``text`` (the completion right after the prompt), as a
        ``pair`` of texts (encoders); ``auto`` takes the template where there is one, else one text.
    batch_size
        Texts in one forward pass.

    Raises
    ------
    InputError
        When the model is of another kind, or a setting is unknown.
    """

    model: Any
    tokenizer: Any
    output: Output = "probability"
    form: Form = "auto"
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_kind(self.model, ["sequence classifier"], labels=(1, 2))
        check_output(self.output)
        check_form(self.form)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> OutcomeModel:
        """Loads a sequence classifier by folder or hub id; ``settings`` are those of the class."""
        model, tokenizer = load_classifier(name, ["sequence classifier"], dtype=dtype, device=device)
        return cls(model, tokenizer, **settings)

    @property
    def name(self) -> str:
        """The model's name."""
        return model_name(self.model)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, " N"]:
        """The score of each completion, on the CPU."""
        most = longest(self.model)
        rows = [response_ids(self.tokenizer, *pair, self.form, most) for pair in zip(prompts, completions, strict=True)]
        scores = torch.zeros(len(rows))
        for batch, logits, _ in logits_of(self.model, rows, self.batch_size):
            scores[batch] = judged(logits, self.output).cpu()
        return scores

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **_: Any) -> list[float]:
        """The model as a reward."""
        values: list[float] = self.score(prompts, completions).tolist()
        return values


@dataclass(frozen=True, eq=False)
class ProcessModel:
    r"""A token classifier, or a causal language model with two words, as a reward for every step.

    .. math::
        r_k = \mathrm{softmax}(\text{logits}_k)_1 - \mathrm{softmax}(\text{logits}_k)_0

    read at the separator that ends step k.

    Parameters
    ----------
    model
        A token classifier with one label, or two (the second for good), or a causal language model.
    tokenizer
        Of the model.
    format
        How it reads steps.
    output
        ``difference`` as above, in (-1, 1); ``probability`` of good; ``logit``.
    reduce
        How :meth:`score` makes one number of the steps: ``min``, ``mean``, ``last``, or ``product`` (of probabilities).
    batch_size
        Texts in one forward pass.

    Raises
    ------
    InputError
        When the model is of another kind, a setting is unknown, or a word of the format is not one token.

    References
    ----------
    Cheng et al., "Stop Summation", arXiv 2504.15275 (two-class classifier); Wang et al., "Math-Shepherd", arXiv
    2312.08935 (two words of a language model).
    """

    model: Any
    tokenizer: Any
    format: StepFormat = field(default_factory=StepFormat)
    output: Output = "difference"
    reduce: Reduction = "min"
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_kind(self.model, _STEP_KINDS, labels=(1, 2))
        check_output(self.output)
        if self.reduce not in ("min", "mean", "last", "product"):
            raise InputError(f"reduce is {self.reduce!r}, expected min, mean, last or product")
        if self.causal:
            self.format.words(self.tokenizer)
        self.format.separator_ids(self.tokenizer)

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        **settings: Any,
    ) -> ProcessModel:
        """Loads a model by folder or hub id; ``settings`` are those of the class.

        Raises
        ------
        InputError
            When it is neither a token classifier nor a causal language model.
        """
        model, tokenizer = load_classifier(name, _STEP_KINDS, dtype=dtype, device=device)
        return cls(model, tokenizer, **settings)

    @property
    def causal(self) -> bool:
        """Whether the model is a causal language model, which is asked for two words."""
        return check_kind(self.model, _STEP_KINDS, labels=(1, 2)) == "causal language model"

    @property
    def name(self) -> str:
        """The model's name."""
        return model_name(self.model)

    def steps(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        tokenizer: Any = None,
        truncated: Sequence[bool] | None = None,
    ) -> StepRewards:
        """The score of each step, on the CPU.

        Parameters
        ----------
        prompts, completions
            As for any reward.
        completion_ids, tokenizer
            Tokens of the completions as the policy sampled them, and its tokenizer: the steps are then those of the
            tokens, and ``step_end`` counts them. Without, ``step_end`` counts the tokens that this model reads,
            separators included.
        truncated
            True for completions that were cut off: what their last step scores means nothing.

        Raises
        ------
        InputError
            When tokens come without a tokenizer, or the steps alone are longer than the model reads.
        """
        if completion_ids is None:
            texts = [split_text(text_of(said), self.format.separator) for said in completions]
            ends: list[list[int]] | None = None
        elif tokenizer is None:
            raise InputError("completion_ids need the tokenizer that made them: give tokenizer")
        else:
            split = split_tokens(completion_ids, tokenizer, self.format.separator)
            texts, ends = [steps.texts for steps in split], [steps.ends for steps in split]
        most = longest(self.model)
        rows = [self.format.row(self.tokenizer, *pair, most) for pair in zip(prompts, texts, strict=True)]
        reads = [row.reads for row in rows]
        words = self.format.words(self.tokenizer) if self.causal else slice(None)
        scores: list[list[float]] = [[] for _ in rows]
        for batch, logits, wanted in logits_of(self.model, [row.ids for row in rows], self.batch_size, reads):
            values = judged(logits[..., words], self.output).cpu()
            column = {position: at for at, position in enumerate(wanted)}
            for number, row in zip(batch, values, strict=True):
                scores[number] = row[[column[position] for position in reads[number]]].tolist()
        return StepRewards.from_lists(scores, [row.ends for row in rows] if ends is None else ends, truncated)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, " N"]:
        """One number a completion, made of its steps' scores."""
        steps = self.steps(prompts, completions)
        score, mask = steps.score, steps.step_mask
        if self.reduce == "min":
            return score.masked_fill(~mask, float("inf")).amin(1)
        if self.reduce == "product":
            return score.masked_fill(~mask, 1.0).prod(1)
        if self.reduce == "mean":
            return score.sum(1) / steps.counts
        return score.gather(1, steps.counts[:, None] - 1)[:, 0]

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **_: Any) -> list[float]:
        """The model as a reward."""
        values: list[float] = self.score(prompts, completions).tolist()
        return values
