"""What sampled answers are worth step by step: a process reward model, and a verifier where there is an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from thrifty.align.asking import Answered, Record
from thrifty.reward.base import Reward, Text, score, shared_columns
from thrifty.reward.steps import StepRewards, to_token_rewards


class StepScorer(Protocol):
    """Whatever scores steps, such as :class:`thrifty.reward.models.ProcessModel`."""

    def steps(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        *,
        completion_ids: Sequence[Sequence[int]] | None = None,
        tokenizer: Any = None,
        truncated: Sequence[bool] | None = None,
    ) -> StepRewards:
        """The score of each step of each completion, and the token at which it ends."""
        ...


@dataclass(frozen=True, eq=False)
class ProcessWorth:
    """A reward with a column for the score of each step, for :class:`~thrifty.align.step_returns.StepReturns`.

    Parameters
    ----------
    scorer
        Scores steps; None for the verifier alone.
    verifier
        Judges final answers: right is a score of 1 or more. None for the steps alone.
    tokenizer
        Of the policy; None where prompts are token ids, and neither scorer nor verifier looks at texts.
    refine
        Makes step rewards of step scores, such as ``ClipDelta(threshold=0.6).shape``; None leaves them.
    answer
        The column of the right answer: records without it are not checked. None checks all.
    """

    scorer: StepScorer | None
    verifier: Reward | None
    tokenizer: Any = None
    refine: Callable[[StepRewards], Float[Tensor, "N K"]] | None = None
    answer: str | None = "answer"

    def columns(self, answered: Answered) -> Mapping[str, Tensor]:
        """The columns of a rollout's answers.

        Returns
        -------
        dict
            ``step_score [N, T]`` and ``step_end [N, T]`` on the last token of each step; ``right [N]`` and
            ``checked [N]`` (whether there was something to check); ``reward [N]``, the least step score plus 1 for a
            right answer, for the log.

        Raises
        ------
        RunError
            When the verifier fails.
        """
        mask = answered.sequences.response_mask.cpu()
        rows = len(mask)
        ids = [row[spoken].tolist() for row, spoken in zip(answered.sequences.input_ids.cpu(), mask, strict=True)]
        right, checked = self._verified(answered, ids)
        if self.scorer is None:
            steps = StepRewards.from_lists([[0.0]] * rows, [[max(len(said) - 1, 0)] for said in ids])
        else:
            cut_off = (~answered.sequences["finished"].bool()).tolist()
            steps = self.scorer.steps(
                answered.prompts, answered.texts, completion_ids=ids, tokenizer=self.tokenizer, truncated=cut_off
            )
        rewards = steps.score if self.refine is None else self.refine(steps)
        nothing = torch.zeros(rows)
        ends = to_token_rewards(steps.step_mask.float(), steps.step_end, mask, nothing, alpha=1.0) > 0
        least = torch.where(steps.step_mask, rewards, float("inf")).amin(1) if rewards.shape[1] else nothing
        return {
            "step_score": to_token_rewards(rewards, steps.step_end, mask, nothing, alpha=1.0),
            "step_end": ends,
            "right": right,
            "checked": checked,
            "reward": least.masked_fill(least.isinf(), 0.0) + right,
        }

    def _verified(self, answered: Answered, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        checked = torch.tensor([self.verifier is not None and self._has_answer(r) for r in answered.records])
        verified = torch.zeros(len(checked))
        rows = checked.nonzero()[:, 0].tolist()
        if self.verifier is not None and rows:
            asked = [answered.records[row] for row in rows]
            found = score(
                self.verifier,
                [answered.prompts[row] for row in rows],
                [answered.texts[row] for row in rows],
                completion_ids=[ids[row] for row in rows],
                columns=shared_columns(asked),
            )
            verified[checked] = (found >= 1).float()
        return verified, checked

    def _has_answer(self, record: Record) -> bool:
        return self.answer is None or record.get(self.answer) not in (None, "")
