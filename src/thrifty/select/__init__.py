"""Which examples are worth training on or labelling."""

from thrifty.select.history import AccuracyHistory
from thrifty.select.limr import LIMR, LimResult, lim_scores
from thrifty.select.logs import read_history
from thrifty.select.rank import difficulty_band, linear_scores, pass_rate, rank_by_history, std_scores
from thrifty.select.simcore import CoresetSelection, OpenSet, SimCore, simcore_select

__all__ = [
    "LIMR",
    "AccuracyHistory",
    "CoresetSelection",
    "LimResult",
    "OpenSet",
    "SimCore",
    "difficulty_band",
    "lim_scores",
    "linear_scores",
    "pass_rate",
    "rank_by_history",
    "read_history",
    "simcore_select",
    "std_scores",
]
