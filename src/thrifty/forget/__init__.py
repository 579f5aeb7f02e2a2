"""Remove data or a skill from a trained model."""

from thrifty.forget.baselines import BadTeacher, FineTune, GradientAscent, Retrain
from thrifty.forget.evaluate import agreement, divergence, membership, predict
from thrifty.forget.importance import Importances
from thrifty.forget.ssd import SSD

__all__ = [
    "SSD",
    "BadTeacher",
    "FineTune",
    "GradientAscent",
    "Importances",
    "Retrain",
    "agreement",
    "divergence",
    "membership",
    "predict",
]
