"""FLAP and DSnoT on SmolLM2 beside the plain way, in time and peak memory.

The plain way hooks the whole model and runs it on batches of the same size: once for FLAP, once a layer for DSnoT,
whose layers see what the pruned layers before them give. Both ways make the same choices from the same statistics.
Memory is that of a fresh process beyond the loaded model, which is changed in place there.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from thrifty.bench._measure import paired, peak_in_fresh_process, peak_of, row
from thrifty.bench._shrink_plain import plain_dsnot, plain_flap
from thrifty.core.run import pick_dtype
from thrifty.lm.load import load_lm
from thrifty.shrink.dsnot import DSnoT
from thrifty.shrink.flap import FLAP

MODEL = "smollm2-135m-instruct"
LEAST_SPEEDUP, MOST_MEMORY = 1.5, 0.5
_WINDOW = 256
_BATCH = 4096 // _WINDOW


def language_rows(quick: bool) -> list[dict[str, Any]]:
    """Measures on SmolLM2-135M-Instruct in the dtype that the machine does fast.

    Parameters
    ----------
    quick
        Fewer windows and one pair.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    rows = []
    model, size = _model(), "quick" if quick else "full"
    for job, label in (("flap", "FLAP"), ("dsnot", "DSnoT")):
        ours, plain = (partial(_timed, job, way, model, quick) for way in ("ours", "plain"))
        found = paired(ours, plain, 1 if quick or job == "dsnot" else 3)
        rows.append(row(f"{label} / plain, times as fast", found, "s", least=LEAST_SPEEDUP, inverse=True))
        mine, theirs = (peak_in_fresh_process(__name__, job, way, size) for way in ("ours", "plain"))
        rows.append(row(f"{label} / plain, peak memory", [(mine, theirs)], "GB", most=MOST_MEMORY))
    return rows


def _model() -> Any:
    return load_lm(MODEL, dtype=pick_dtype("auto", torch.device("cpu")))[0]


def _windows(quick: bool) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, 49_000, (_BATCH if quick else 4 * _BATCH, _WINDOW), generator=generator)


def _work(job: str, way: str, model: Any, quick: bool, *, inplace: bool) -> Callable[[], Any]:
    windows = _windows(quick)
    if job == "flap":
        flap = FLAP(sparsity=0.2)
        if way == "ours":
            return lambda: flap.shrink(model, windows, inplace=inplace)
        return lambda: plain_flap(flap, model, windows, _BATCH, inplace=inplace)
    dsnot = DSnoT(sparsity=0.6)
    if way == "ours":
        return lambda: dsnot.shrink(model, windows, inplace=inplace)
    # One layer shows the plain way's peak: all of its passes are alike.
    return lambda: plain_dsnot(dsnot, model, windows, _BATCH, most=1 if inplace else None, inplace=inplace)


def _timed(job: str, way: str, model: Any, quick: bool) -> float:
    """Seconds of the whole method, the copy of the model included."""
    work = _work(job, way, model, quick, inplace=False)
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def peak_memory(job: str, way: str, quick: bool) -> float:
    """Gigabytes that a method takes at most beyond the loaded model; needs a process that has done nothing else."""
    model = _model()
    return peak_of(_work(job, way, model, quick, inplace=True))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(peak_memory(sys.argv[1], sys.argv[2], sys.argv[3] == "quick")))
