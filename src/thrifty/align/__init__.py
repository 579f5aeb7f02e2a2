"""Tune a language model from ratings, preferences, sources or verifiers."""

from thrifty.align.base import Training
from thrifty.align.clip import PPOClip
from thrifty.align.log import read_log
from thrifty.align.sft import SFT
from thrifty.align.topr import TOPR
from thrifty.align.training import iterate, train

__all__ = ["SFT", "TOPR", "PPOClip", "Training", "iterate", "read_log", "train"]
