"""A smaller model: prune, sparsify, search, distil, extract."""

from thrifty.shrink.baselines import CutUnits, Magnitude, SparseGPT, Wanda
from thrifty.shrink.calibration import windows_of
from thrifty.shrink.decoder_storing import load_decoder, save_decoder
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP
from thrifty.shrink.measure import perplexity

__all__ = [
    "FLAP",
    "CutUnits",
    "DSnoT",
    "Magnitude",
    "SparseGPT",
    "Wanda",
    "load_decoder",
    "perplexity",
    "save_decoder",
    "windows_of",
]
