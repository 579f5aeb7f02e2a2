"""Which channels of a model go together: traced once without values, for any PyTorch model."""

from thrifty.shrink.graph.build import dependency_graph
from thrifty.shrink.graph.groups import DependencyGraph, Group, Keep, Kept, Slices

__all__ = ["DependencyGraph", "Group", "Keep", "Kept", "Slices", "dependency_graph"]
