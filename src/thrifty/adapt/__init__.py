"""New classes, tasks and domains on a pretrained model, with a handful of labels or none."""

from thrifty.adapt.accumulator import ClassAccumulator
from thrifty.adapt.beclr import BECLR
from thrifty.adapt.class_graph import Graph
from thrifty.adapt.class_metric import ClassMetric, Complete, Distances
from thrifty.adapt.class_spaces import Euclidean, Grid
from thrifty.adapt.class_tree import Tree
from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.evaluation import StreamResult, run_stream
from thrifty.adapt.few_shot import FewShotMethod, Prototypes
from thrifty.adapt.g_acil import GACIL
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.loki import Loki
from thrifty.adapt.nmc import NMC
from thrifty.adapt.ovor import OVOR
from thrifty.adapt.protocols import few_shot_incremental, mixed, recorded
from thrifty.adapt.stream import Stream, class_incremental, domain_incremental, overlapping
from thrifty.adapt.teen import TEEN
from thrifty.adapt.transductive import TransductiveSolver
from thrifty.adapt.transductive_clustering import TransductiveClustering
from thrifty.adapt.unem import UNEM

__all__ = [
    "BECLR",
    "GACIL",
    "NMC",
    "OVOR",
    "TEEN",
    "UNEM",
    "ClassAccumulator",
    "ClassMetric",
    "Complete",
    "Design",
    "Distances",
    "Episodes",
    "Euclidean",
    "FewShotMethod",
    "Graph",
    "Grid",
    "Loki",
    "Prototypes",
    "Stream",
    "StreamResult",
    "StreamingHead",
    "TransductiveClustering",
    "TransductiveSolver",
    "Tree",
    "class_incremental",
    "domain_incremental",
    "draw_episodes",
    "few_shot_incremental",
    "mixed",
    "overlapping",
    "recorded",
    "run_stream",
]
