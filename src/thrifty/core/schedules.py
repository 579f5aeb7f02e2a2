"""Schedules: what the learning rate is multiplied by at a step."""

from __future__ import annotations

import math
from collections.abc import Callable


def warmup_constant(warmup: int) -> Callable[[int], float]:
    """A schedule that rises over ``warmup`` steps and stays."""
    return lambda step: min(1.0, (step + 1) / max(warmup, 1))


def warmup_linear(steps: int, warmup: int = 0) -> Callable[[int], float]:
    """A schedule that rises from 0 over ``warmup`` steps and falls linearly to 0 at ``steps``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / max(warmup, 1)
        return max(0.0, (steps - step) / max(steps - warmup, 1))

    return factor


def warmup_cosine(steps: int, warmup: int = 0, final: float = 0.0) -> Callable[[int], float]:
    """A schedule that rises from 0 over ``warmup`` steps and falls along a cosine to ``final``."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / max(warmup, 1)
        share = min(1.0, (step - warmup) / max(steps - warmup, 1))
        return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share))

    return factor
