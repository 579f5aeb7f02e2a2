"""A smaller model: prune, sparsify, search, distil, extract."""

from thrifty.shrink.baselines import CutUnits, Magnitude, SparseGPT, Wanda
from thrifty.shrink.calibration import windows_of
from thrifty.shrink.cric import HESSOCRIC
from thrifty.shrink.decoder_storing import load_decoder, save_decoder
from thrifty.shrink.dhspg import DHSPG
from thrifty.shrink.directions import Direction
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP
from thrifty.shrink.hesso import HESSO
from thrifty.shrink.hesso_optimizer import HESSOOptimizer
from thrifty.shrink.measure import perplexity
from thrifty.shrink.n2n import N2N
from thrifty.shrink.otov2 import OTOv2
from thrifty.shrink.robot_nas import RoBoT
from thrifty.shrink.zero_cost import zero_cost_metrics
from thrifty.shrink.zero_groups import GroupSet, construct_subnet, output_difference, partition_groups

__all__ = [
    "DHSPG",
    "FLAP",
    "HESSO",
    "HESSOCRIC",
    "N2N",
    "CutUnits",
    "DSnoT",
    "Direction",
    "GroupSet",
    "HESSOOptimizer",
    "Magnitude",
    "OTOv2",
    "RoBoT",
    "SparseGPT",
    "Wanda",
    "construct_subnet",
    "load_decoder",
    "output_difference",
    "partition_groups",
    "perplexity",
    "save_decoder",
    "windows_of",
    "zero_cost_metrics",
]
