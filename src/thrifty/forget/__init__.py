"""Remove data or a skill from a trained model."""

from thrifty.forget.baselines import BadTeacher, FineTune, GradientAscent, Retrain
from thrifty.forget.dmm import DMM
from thrifty.forget.evaluate import agreement, divergence, membership, predict
from thrifty.forget.importance import Importances
from thrifty.forget.interventions import attach, attached, detach, load_unlearned, save_unlearned
from thrifty.forget.laf import LAF
from thrifty.forget.npo import NPO
from thrifty.forget.skill_unlearning import SkillUnlearning
from thrifty.forget.ssd import SSD

__all__ = [
    "DMM",
    "LAF",
    "NPO",
    "SSD",
    "BadTeacher",
    "FineTune",
    "GradientAscent",
    "Importances",
    "Retrain",
    "SkillUnlearning",
    "agreement",
    "attach",
    "attached",
    "detach",
    "divergence",
    "load_unlearned",
    "membership",
    "predict",
    "save_unlearned",
]
