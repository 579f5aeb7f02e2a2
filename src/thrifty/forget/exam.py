"""An exam in the manner of TOFU: questions on what is to be forgotten, what is kept, and what was always known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.forget import tofu
from thrifty.forget.authors import Question
from thrifty.forget.base import device_of
from thrifty.lm.backbone import evaluating
from thrifty.lm.logps import token_logps
from thrifty.lm.records import from_records
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences

_PROBABILITY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "retain": lambda right, _: tofu.answer_probability(right),
    "real_authors": tofu.choice_probability,
    "world_facts": tofu.choice_probability,
}
KNOWN = tuple(_PROBABILITY)
"""Sets whose marks make the model's utility."""
LONGEST = 24
"""Tokens of an answer, at most."""


@dataclass(frozen=True, eq=False)
class Exam:
    """Questions in the form in which a model is asked them.

    Parameters
    ----------
    tokenizer
        Of the model.
    questions
        By set: ``forget``, ``retain``, ``real_authors``, ``world_facts``.
    rows
        By set, of each question the answer, the same in other words, and the wrong answers, one after the other.
    """

    tokenizer: Any
    questions: Mapping[str, Sequence[Question]]
    rows: Mapping[str, Sequences]

    @classmethod
    def of(cls, tokenizer: Any, questions: Mapping[str, Sequence[Question]]) -> Exam:
        """The exam of these questions."""
        rows = {
            name: from_records(
                [
                    {"prompt": one.question, "completion": text}
                    for one in asked
                    for text in (one.answer, one.other_answer, *one.wrong)
                ],
                tokenizer,
            )
            for name, asked in questions.items()
        }
        return cls(tokenizer, questions, rows)

    @torch.no_grad()
    def losses(self, model: nn.Module, name: str) -> Float[Tensor, "question answer"]:
        """Losses of each question's answer, of the same in other words, and of the wrong answers, in this order."""
        rows, found = self.rows[name], []
        with evaluating(model):
            for first in range(0, len(rows), 256):
                part = rows.select(slice(first, first + 256)).trim().to(device_of(model))
                found.append(tofu.answer_losses(token_logps(model, part), part.response_mask).cpu())
        return torch.cat(found).view(len(self.questions[name]), -1)

    def recall(self, model: nn.Module, name: str) -> float:
        """Mean ROUGE-L recall of the greedy answers."""
        asked = self.questions[name]
        prompts = [one.question for one in asked]
        said = sample(model, self.tokenizer, prompts, max_new_tokens=LONGEST, greedy=True).texts(self.tokenizer)
        pairs = zip(said, asked, strict=True)
        return sum(tofu.rouge_l_recall(text, one.answer) for text, one in pairs) / len(asked)

    def truth_ratio(self, model: nn.Module) -> Float[Tensor, " question"]:
        """The truth ratios on the forget set."""
        return _truth_ratio(self.losses(model, "forget"))

    def marks(self, model: nn.Module, retained: Float[Tensor, " question"]) -> dict[str, float]:
        """All that TOFU measures.

        Parameters
        ----------
        model
            Any model of the tokenizer.
        retained
            Truth ratios on the forget set, of the model that never saw it.
        """
        losses = {name: self.losses(model, name) for name in ("forget", *KNOWN)}
        parts = {}
        for name, probability in _PROBABILITY.items():
            parts[f"{name}_probability"] = float(probability(losses[name][:, 0], losses[name][:, 2:]))
            parts[f"{name}_truth"] = float(tofu.retain_truth_score(_truth_ratio(losses[name])))
            parts[f"{name}_recall"] = self.recall(model, name)
        ratio = _truth_ratio(losses["forget"])
        return {
            "model_utility": tofu.model_utility(parts),
            "forget_quality": tofu.forget_quality(ratio, retained),
            "forget_distance": tofu.forget_distance(ratio, retained),
            "forget_probability": float(tofu.answer_probability(losses["forget"][:, 0])),
            "forget_truth": float(tofu.forget_truth_score(ratio)),
            "forget_recall": self.recall(model, "forget"),
            "retain_loss": float(losses["retain"][:, 0].mean()),
            **parts,
        }


def _truth_ratio(losses: Float[Tensor, "question answer"]) -> Float[Tensor, " question"]:
    return tofu.truth_ratio(losses[:, 1], losses[:, 2:])
