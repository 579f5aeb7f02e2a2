"""Tune a language model from ratings, preferences, sources or verifiers."""

from thrifty.align.base import Objective, Training
from thrifty.align.dpo import DPO
from thrifty.align.grpo import GRPO, ppo_clip
from thrifty.align.log import read_log
from thrifty.align.rollouts import Sampling
from thrifty.align.sft import SFT
from thrifty.align.topr import TOPR
from thrifty.align.training import iterate, train

__all__ = [
    "DPO",
    "GRPO",
    "SFT",
    "TOPR",
    "Objective",
    "Sampling",
    "Training",
    "iterate",
    "ppo_clip",
    "read_log",
    "train",
]
