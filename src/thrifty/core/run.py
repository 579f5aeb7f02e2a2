"""A run: one directory that holds a job's configuration, metrics, checkpoints and result.

``config.json`` says what is run, ``metrics.jsonl`` what was measured at each step, ``checkpoints/`` where to
go on, ``summary.json`` (written last) what came out. A job of several stages has a run within the run for
each. Started again on the same directory with the same configuration, a run goes on from its newest
checkpoint and ends with the same numbers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from filelock import FileLock, Timeout

from thrifty.core import processes, seeding
from thrifty.core.atomic import room_on_disk, write_json
from thrifty.core.checkpoint import Checkpoints
from thrifty.core.errors import ExistsError, InputError, nearest

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger("thrifty")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"


def pick_device(device: str) -> torch.device:
    """``auto`` becomes the accelerator that is there, else the CPU.

    Raises
    ------
    InputError
        When the device does not exist on this machine.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} can't be used here: give --device cpu or auto") from error


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of that name; ``auto`` is bfloat16 where the device multiplies it fast, else float32.

    Raises
    ------
    InputError
        When it is none of auto, float32, bfloat16 and float16.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.bfloat16 if _fast_bfloat16(device) else torch.float32
    if dtype not in _DTYPES:
        raise InputError(f"dtype {dtype!r} is unknown: {nearest(dtype, ['auto', *_DTYPES])}")
    return _DTYPES[dtype]


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Instructions for it make bfloat16 several times faster than float32 on a CPU; elsewhere it is emulated.
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("amx_tile", "avx512_bf16"))
    return device.type == "cpu" and any(check is not None and check() for check in checks)


class Run:
    """One job's directory, seed, device and precision.

    Creating a run seeds every global generator from ``seed``, so that what follows (building a model, say)
    is the same each time.

    Under ``torchrun`` or ``accelerate launch`` every process makes the same run. The first one owns the directory
    (which all must see) and writes; in the others ``log``, ``finish`` and the like do nothing, and ``main`` is False.

    Parameters
    ----------
    directory
        Where everything goes; made if missing.
    seed
        The seed of everything.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` ...
    dtype
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``: what language models are loaded in.
    config
        What is run, as JSON-able values. A directory that holds an unfinished run of the same configuration
        is gone on with; anything else that is there stays untouched and raises.
    overwrite
        Delete a run that is there instead.
    keep
        How many of the newest checkpoints stay.

    Raises
    ------
    ExistsError
        When the directory holds a finished run, a run of another configuration, or other files, or when
        another process is running there.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        seed: int = 0,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        config: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        keep: int = 2,
    ) -> None:
        self.directory = Path(directory)
        self.seed = seed
        self.device = processes.connect(pick_device(device))
        self.main = processes.is_main()
        self.dtype = pick_dtype(dtype, self.device)
        self.config: dict[str, Any] = json.loads(json.dumps({**(config or {}), "seed": seed}))
        self._lock = FileLock(self.directory / ".lock")
        processes.on_main(lambda: self._claim(overwrite))
        self._keep = keep
        self._stages: list[Run] = []
        self._begin()

    def _begin(self) -> None:
        self.checkpoints = Checkpoints(self.directory / "checkpoints", self._keep)
        self._writer: SummaryWriter | None = None
        seeding.seed_everything(self.seed)

    def _claim(self, overwrite: bool) -> None:
        with room_on_disk(self.directory):
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except (FileExistsError, NotADirectoryError) as error:
                raise ExistsError(f"{self.directory} is a file: give another output directory") from error
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ExistsError(
                f"{self.directory} is in use by another process: give another output directory"
            ) from error
        try:
            self._check(overwrite)
        except BaseException:
            self._lock.release()
            raise

    def _check(self, overwrite: bool) -> None:
        there = [path for path in self.directory.iterdir() if path.name != ".lock" and path.suffix != ".tmp"]
        file = self.directory / CONFIG
        if there and overwrite:
            if not file.exists():
                raise ExistsError(f"{self.directory} holds files that are no run: they are not overwritten")
            for path in there:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            there = []
        if not there:
            write_json(file, self.config)
            return
        if not file.exists():
            raise ExistsError(f"{self.directory} exists and holds no run: give another output directory")
        if (self.directory / SUMMARY).exists():
            raise ExistsError(f"{self.directory} holds a finished run: give another output directory, or --overwrite")
        before = read_config(self.directory)
        if before != self.config:
            names = sorted(k for k in {*before, *self.config} if before.get(k) != self.config.get(k))
            raise ExistsError(
                f"{self.directory} holds an unfinished run with other settings ({', '.join(names)}): "
                "give the same ones to go on with it, another output directory, or --overwrite"
            )

    def stage(self, name: str) -> Run:
        """The run of one stage of this job: a directory within, with a seed of its own.

        Entering a stage seeds all global generators anew, so that a job that finds its first stage finished
        still draws the same numbers in its second.
        """
        child = object.__new__(Run)
        child.directory = self.directory / name
        child.seed = seeding.derive_seed(self.seed, name)
        child.device, child.dtype, child.config, child.main = self.device, self.dtype, self.config, self.main
        child._lock, child._keep, child._stages = self._lock, self._keep, []
        processes.on_main(lambda: child.directory.mkdir(exist_ok=True))
        child._begin()
        self._stages.append(child)
        return child

    def generator(self, name: str) -> torch.Generator:
        """A generator of its own for one named part of the run, on the CPU."""
        return seeding.generator(self.seed, name)

    def log(self, step: int, **scalars: float | torch.Tensor) -> None:
        """Appends one line to ``metrics.jsonl`` and to TensorBoard's log.

        Parameters
        ----------
        step
            The step that the values belong to.
        scalars
            Numbers or one-element tensors.
        """
        if not self.main:
            return
        values = {name: float(value) for name, value in scalars.items()}
        line = json.dumps({"step": step} | {k: v if math.isfinite(v) else None for k, v in values.items()})
        path = self.directory / METRICS
        with room_on_disk(path), path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        writer = self._tensorboard()
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    def _tensorboard(self) -> SummaryWriter:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.directory / "tensorboard"), max_queue=1000, flush_secs=30)
        return self._writer

    def save(self, step: int, state: Any, *, wait: bool = False) -> None:
        """Writes a checkpoint atomically, in the background unless ``wait``.

        Parameters
        ----------
        step
            The number of finished steps.
        state
            A tree of tensors and plain values (see :mod:`thrifty.core.checkpoint`). The state of all global
            generators and the place in the metrics file are kept with it.
        wait
            Return only when it is on the disk.
        """
        rng = processes.gather(seeding.rng_state())
        if not self.main:
            return
        path = self.directory / METRICS
        tree = {"state": state, "rng": rng, "metrics": path.stat().st_size if path.exists() else 0}
        self.checkpoints.save(step, tree, wait=wait)

    def latest(self) -> tuple[int, Any] | None:
        """The newest whole checkpoint as ``(step, state)``, or ``None``.

        Puts all global generators back to where they were, and takes back the metrics logged after it.

        Raises
        ------
        InputError
            When it was written by another number of processes.
        """
        found = self.checkpoints.latest()
        if self.main:
            self._truncate_metrics(0 if found is None else found[1]["metrics"])
        if found is None:
            return None
        step, tree = found
        if len(tree["rng"]) != processes.world():
            raise InputError(
                f"{self.directory} was begun by {len(tree['rng'])} processes, not {processes.world()}: "
                "start as many to go on with it, or give another output directory"
            )
        seeding.set_rng_state(tree["rng"][processes.rank()])
        return step, tree["state"]

    def _truncate_metrics(self, size: int) -> None:
        path = self.directory / METRICS
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``, which marks the run as finished, and lets go of the directory."""
        self.checkpoints.wait()
        if self.main:
            write_json(self.directory / SUMMARY, {**summary, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
        self.close()

    def close(self) -> None:
        """Waits for what is being written and lets another process use the directory."""
        for stage in self._stages:
            stage.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        try:
            self.checkpoints.wait()
        finally:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_config(directory: Path) -> dict[str, Any]:
    """The configuration of the run in a directory.

    Raises
    ------
    InputError
        When there is none, or it can't be read.
    """
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{directory} is no run: it has no readable {CONFIG}") from error
    if not isinstance(config, dict):
        raise InputError(f"{directory / CONFIG} should hold an object")
    return config


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, a torn last line left out; empty where nothing was logged."""
    path = directory / METRICS
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
