"""One reward for rows that name different verifiers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from thrifty.core.errors import InputError
from thrifty.reward.base import Reward, score
from thrifty.reward.verifiers import verifier


def by_row(default: Reward | None) -> Reward:
    """A reward that scores each row by the verifier that it names in its column ``verifier``, or by the default.

    Parameters
    ----------
    default
        For data without the column, and rows where it is null.

    Raises
    ------
    InputError
        By the reward, when a row names none and there is no default.
    """

    def rowwise(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        names = columns.pop("verifier", [None] * len(completions))
        scores = torch.zeros(len(completions))
        for name in dict.fromkeys(names):
            reward = default if name is None else verifier(name)
            if reward is None:
                raise InputError("answers can't be checked: give --reward, or name one in the data's column 'verifier'")
            at = [number for number, other in enumerate(names) if other == name]
            part = {column: [values[i] for i in at] for column, values in columns.items()}
            ids = part.pop("completion_ids", None)
            scores[at] = score(
                reward, [prompts[i] for i in at], [completions[i] for i in at], completion_ids=ids, columns=part
            )
        return [float(value) for value in scores.tolist()]

    return rowwise
