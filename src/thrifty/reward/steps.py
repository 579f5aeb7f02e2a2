"""A response as steps: where each one ends, what it is scored, and its reward on the token where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.core.errors import InputError

BLANK_LINE = "\n\n"
LINE = "\n"


@dataclass(frozen=True, eq=False)
class StepRewards:
    """The scores (or rewards) of the steps of some responses, and where each step ends.

    Parameters
    ----------
    score
        Of each step, 0 in the padding.
    step_mask
        True for the steps there are: the first K of each row.
    step_end
        Index of each step's last token **within the response** (0 is the response's first token), 0 in the padding.
        A separator belongs to the step that it ends.
    truncated
        True where the response was cut off, so that its last step is unfinished and its score means nothing; False
        throughout when not given.

    Raises
    ------
    InputError
        When shapes do not agree, a score is not finite, or a mask has a gap.
    """

    score: Float[Tensor, "B K"]
    step_mask: Bool[Tensor, "B K"]
    step_end: Int[Tensor, "B K"]
    truncated: Bool[Tensor, " B"] | None = None

    def __post_init__(self) -> None:
        shape = self.score.shape
        if self.score.ndim != 2 or not self.score.is_floating_point():
            raise InputError(f"score must be floats [B, K], got {self.score.dtype} {tuple(shape)}")
        if self.step_mask.shape != shape or self.step_mask.dtype != torch.bool:
            raise InputError(f"step_mask must be bool {tuple(shape)} like score, got {tuple(self.step_mask.shape)}")
        if self.step_end.shape != shape or self.step_end.is_floating_point():
            raise InputError(f"step_end must be integers {tuple(shape)} like score, got {tuple(self.step_end.shape)}")
        if self.truncated is not None and self.truncated.shape != shape[:1]:
            raise InputError(f"truncated must have shape {tuple(shape[:1])}, got {tuple(self.truncated.shape)}")
        if bool((self.step_mask[:, 1:] & ~self.step_mask[:, :-1]).any()):
            raise InputError("step_mask has a gap: the steps of a row come first, the padding after them")
        bad = (~self.score.isfinite() & self.step_mask).any(1).nonzero()[:, 0].tolist()
        if bad:
            raise InputError(f"response {bad[0]} has a step score that is not finite")

    def __len__(self) -> int:
        return self.score.shape[0]

    @property
    def counts(self) -> Int[Tensor, " B"]:
        """Steps of each response."""
        return self.step_mask.sum(1)

    @staticmethod
    def from_lists(
        scores: Sequence[Sequence[float]],
        ends: Sequence[Sequence[int]] | None = None,
        truncated: Sequence[bool] | None = None,
    ) -> StepRewards:
        """Pads lists of step scores and step ends; without ends, each step counts as one token.

        Raises
        ------
        InputError
            When a response has another number of ends than of scores.
        """
        ends = [range(len(row)) for row in scores] if ends is None else ends
        shape = (len(scores), max((len(row) for row in scores), default=0))
        score, mask = torch.zeros(shape), torch.zeros(shape, dtype=torch.bool)
        end = torch.zeros(shape, dtype=torch.long)
        if len(ends) != len(scores):
            raise InputError(f"{len(ends)} lists of step ends for {len(scores)} responses: give one for each")
        for number, (row, where) in enumerate(zip(scores, ends, strict=True)):
            if len(row) != len(where):
                raise InputError(f"response {number} has {len(row)} step scores and {len(where)} step ends")
            score[number, : len(row)] = torch.tensor(list(row), dtype=torch.float32)
            end[number, : len(row)] = torch.tensor(list(where), dtype=torch.long)
            mask[number, : len(row)] = True
        return StepRewards(score, mask, end, None if truncated is None else torch.tensor(list(truncated)))


@dataclass(frozen=True)
class Steps:
    """The steps of one response: their texts without separators, and the index of each one's last token."""

    texts: list[str]
    ends: list[int]


def split_text(text: str, separator: str = BLANK_LINE) -> list[str]:
    """The steps of a text, without separators; steps of white space only are left out.

    A text without separator is one step.
    """
    return [piece for piece, _ in _pieces(text, separator)]


def split_tokens(ids: Sequence[Sequence[int]], tokenizer: Any, separator: str = BLANK_LINE) -> list[Steps]:
    """The steps of sampled responses, with the token at which each one ends.

    A step ends at the token that completes its separator; the last one at the response's last token, its
    end-of-sequence token included. What follows the last separator counts as a step only if it says something. A
    response without separator, or that says nothing, is one step; one without tokens has none.

    Every token is decoded a bounded number of times, however many steps there are.

    Parameters
    ----------
    ids
        The tokens of each response.
    tokenizer
        Of the model that sampled them.
    separator
        A blank line, or any other string.

    Raises
    ------
    InputError
        When the separator is empty.
    """
    marks = _marking_ids(ids, tokenizer, separator)
    return [_split_one([int(token) for token in row], tokenizer, separator, marks) for row in ids]


def rewards_to_go(
    reward: Float[Tensor, "B K"], mask: Bool[Tensor, "B K"], discount: float = 1.0
) -> Float[Tensor, "B K"]:
    r"""The return from each place on, :math:`G_k = \sum_{j \ge k} \gamma^{j-k} r_j`; 0 outside the mask.

    Parameters
    ----------
    reward
        Of each step, or of each token.
    mask
        True for those that there are.
    discount
        :math:`\gamma`.
    """
    reward = reward * mask
    if discount == 1.0:
        return reward.flip(1).cumsum(1).flip(1) * mask
    running, sums = reward.new_zeros(len(reward)), []
    for column in reward.flip(1).unbind(1):
        running = column + discount * running
        sums.append(running)
    return torch.stack(sums[::-1], 1) * mask


def to_token_rewards(
    step_reward: Float[Tensor, "B K"],
    step_end: Int[Tensor, "B K"],
    mask: Bool[Tensor, "B T"],
    outcome: Float[Tensor, " B"],
    *,
    alpha: float,
    outcome_coef: float = 1.0,
) -> Float[Tensor, "B T"]:
    r"""Step rewards times :math:`\alpha` on the last token of each step, the outcome on the response's last token.

    Parameters
    ----------
    step_reward
        0 in the padding.
    step_end
        Index of the step's last token among the response's tokens (the True places of ``mask``, in order). A step that
        ends beyond them was cut off, and its reward is dropped.
    mask
        True where the model spoke; prompts may stand before it, and other turns between.
    outcome
        Reward of the whole response, such as 1 for a right answer.
    alpha
        Weight of the step rewards.
    outcome_coef
        Weight of the outcome.
    """
    length = mask.sum(1, keepdim=True)
    # Positions of the response's tokens in order, then the others.
    position = torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)
    reward = torch.zeros(mask.shape, dtype=step_reward.dtype, device=mask.device)
    if not mask.shape[1]:
        return reward
    there = step_end < length
    where = position.gather(1, torch.where(there, step_end, 0))
    reward = reward.scatter_add(1, where, alpha * step_reward * there)
    last = position.gather(1, (length - 1).clamp(min=0))
    return reward.scatter_add(1, last, outcome_coef * outcome[:, None].to(reward.dtype)) * mask


def _pieces(text: str, separator: str) -> list[tuple[str, int]]:
    """Each step's text and the number of characters up to the end of its separator; at least one piece."""
    if not separator:
        raise InputError("the separator of steps is empty: give a blank line, a line end or another string")
    pieces: list[tuple[str, int]] = []
    start = 0
    for piece in text.split(separator):
        stop = min(start + len(piece) + len(separator), len(text))
        if piece.strip():
            pieces.append((piece.strip("\r\n"), stop))
        start = stop
    return pieces or [("", len(text))]


def _marking_ids(ids: Sequence[Sequence[int]], tokenizer: Any, separator: str) -> set[int]:
    """Tokens in whose text a separator could end; all of them where its last character may be split over tokens."""
    unique = sorted({int(token) for row in ids for token in row})
    last = separator[-1:]
    if not last.isascii():
        return set(unique)
    texts = (_decode(tokenizer, [token]) for token in unique)
    return {token for token, text in zip(unique, texts, strict=True) if last in text}


def _split_one(row: list[int], tokenizer: Any, separator: str, marks: set[int]) -> Steps:
    if not row:
        return Steps([], [])
    text, stops = "", []  # stops: (characters so far, index of the token that brings them there)
    start = 0
    for index, token in enumerate(row):
        final = index == len(row) - 1
        if token not in marks and not final:
            continue
        # One token of context before: some tokenizers drop the space that a text begins with.
        before = _decode(tokenizer, row[start - 1 : start]) if start else ""
        piece = _decode(tokenizer, row[max(start - 1, 0) : index + 1])
        if piece.endswith("\ufffd") and not final:
            continue  # the token ends inside a character
        text += piece[len(before) :]
        stops.append((len(text), index))
        start = index + 1
    pieces = _pieces(text, separator)
    ends, at = [], 0
    for _, stop in pieces:
        while stops[at][0] < stop and at < len(stops) - 1:
            at += 1
        ends.append(stops[at][1])
    if pieces[-1][1] == len(text) and not text.endswith(separator):
        ends[-1] = len(row) - 1
    return Steps([piece for piece, _ in pieces], ends)


def _decode(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
