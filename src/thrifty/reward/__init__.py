"""Where a reward comes from: verifiers, outcome and process reward models, refinements of step scores, mixtures."""

from thrifty.reward.answers import (
    answer_tag_accuracy,
    choice_answer,
    equality,
    exact_answer,
    last_number,
    math_answer,
    think_answer_format,
)
from thrifty.reward.base import Reward, score
from thrifty.reward.lengths import cosine_length, length_limit, length_target
from thrifty.reward.mixture import Mixture, part_means
from thrifty.reward.models import OutcomeModel, ProcessModel
from thrifty.reward.reward_clip_delta import ClipDelta
from thrifty.reward.step_format import StepFormat
from thrifty.reward.steps import StepRewards, split_text, split_tokens, to_token_rewards
from thrifty.reward.verifiers import matches, reading, task_reward, verifier

__all__ = [
    "ClipDelta",
    "Mixture",
    "OutcomeModel",
    "ProcessModel",
    "Reward",
    "StepFormat",
    "StepRewards",
    "answer_tag_accuracy",
    "choice_answer",
    "cosine_length",
    "equality",
    "exact_answer",
    "last_number",
    "length_limit",
    "length_target",
    "matches",
    "math_answer",
    "part_means",
    "reading",
    "score",
    "split_text",
    "split_tokens",
    "task_reward",
    "think_answer_format",
    "to_token_rewards",
    "verifier",
]
