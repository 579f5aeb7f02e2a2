"""New classes, tasks and domains on a pretrained model, with a handful of labels or none."""

from thrifty.adapt.accumulator import ClassAccumulator
from thrifty.adapt.evaluation import StreamResult, run_stream
from thrifty.adapt.head import StreamingHead
from thrifty.adapt.nmc import NMC
from thrifty.adapt.stream import Stream, class_incremental, domain_incremental, overlapping

__all__ = [
    "NMC",
    "ClassAccumulator",
    "Stream",
    "StreamResult",
    "StreamingHead",
    "class_incremental",
    "domain_incremental",
    "overlapping",
    "run_stream",
]
