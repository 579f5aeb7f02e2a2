"""Tune a language model from ratings, preferences, sources or verifiers."""

from thrifty.align.a_lol import ALoL
from thrifty.align.asking import Sampling
from thrifty.align.base import Objective, Training
from thrifty.align.dpo import DPO
from thrifty.align.grpo import GRPO, ppo_clip
from thrifty.align.log import read_log
from thrifty.align.one_shot_rlvr import OneShotRLVR
from thrifty.align.openchat import OpenChat
from thrifty.align.ppo import PPO
from thrifty.align.pure import PURE
from thrifty.align.raft import RAFT
from thrifty.align.sft import SFT
from thrifty.align.topr import TOPR
from thrifty.align.tpo import TPO
from thrifty.align.training import iterate, train

__all__ = [
    "DPO",
    "GRPO",
    "PPO",
    "PURE",
    "RAFT",
    "SFT",
    "TOPR",
    "TPO",
    "ALoL",
    "Objective",
    "OneShotRLVR",
    "OpenChat",
    "Sampling",
    "Training",
    "iterate",
    "ppo_clip",
    "read_log",
    "train",
]
