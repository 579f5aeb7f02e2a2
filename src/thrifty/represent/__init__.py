"""Features of pictures without labels, and classifiers from few of them."""

from thrifty.represent.classifier_baselines import DataAugmentation, IndependentEnsemble, MultiTask, Plain
from thrifty.represent.directpred import DirectPred, DirectPredictor
from thrifty.represent.saving import load_classifier, save_classifier
from thrifty.represent.sla import SLA, LabelAugmentation
from thrifty.represent.two_view_baselines import BYOL, SimSiam

__all__ = [
    "BYOL",
    "SLA",
    "DataAugmentation",
    "DirectPred",
    "DirectPredictor",
    "IndependentEnsemble",
    "LabelAugmentation",
    "MultiTask",
    "Plain",
    "SimSiam",
    "load_classifier",
    "save_classifier",
]
