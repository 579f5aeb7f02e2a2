"""Checkpoints that survive ``kill -9``: one safetensors file a step, renamed into place when whole.

A checkpoint is a *tree*: dictionaries, lists and tuples of tensors, NumPy arrays and plain values, such as
``state_dict()`` of a module or an optimizer returns. The tensors become the file's tensors; the shape of the
tree travels as JSON in the file's header. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from thrifty.core.atomic import replacing
from thrifty.core.errors import InputError

_log = logging.getLogger("thrifty")
_FILE = re.compile(r"step-(\d{9})\.safetensors")


def save_tree(path: Path, tree: Any) -> None:
    """Writes a tree atomically.

    Parameters
    ----------
    path
        The file to write.
    tree
        Nested ``dict``, ``list`` and ``tuple`` of tensors, arrays, strings, numbers, booleans and ``None``.
        Tensors that share their memory (tied weights) are written once.

    Raises
    ------
    InputError
        When a leaf is of another type.
    DiskFullError
        When there is no room; an older file of that name stays.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(tree, tensors, {}, "")
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"tree": json.dumps(skeleton)})


def load_tree(path: Path) -> Any:
    """Reads what :func:`save_tree` wrote, on the CPU.

    Raises
    ------
    InputError
        When the file is truncated or is no checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            skeleton = json.loads((file.metadata() or {})["tree"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, KeyError, json.JSONDecodeError, OSError) as error:
        raise InputError(f"{path} is not a whole checkpoint ({type(error).__name__}: {error})") from error
    return _restore(skeleton, tensors)


def _flatten(node: Any, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str], name: str) -> Any:
    if isinstance(node, Tensor):
        return {"$tensor": _add(node, tensors, seen, name)}
    if isinstance(node, np.ndarray):
        # A zero-dimensional array would come back as a one-element vector from some versions.
        return {"$array": _add(torch.from_numpy(np.array(node)), tensors, seen, name)}
    if isinstance(node, np.generic):
        return node.item()
    if isinstance(node, dict):
        if all(isinstance(key, str) and not key.startswith("$") for key in node):
            return {key: _flatten(value, tensors, seen, f"{name}/{key}") for key, value in node.items()}
        items = [
            [_flatten(key, tensors, seen, ""), _flatten(value, tensors, seen, f"{name}/{key}")]
            for key, value in node.items()
        ]
        return {"$items": items}
    if isinstance(node, (list, tuple)):
        values = [_flatten(value, tensors, seen, f"{name}/{i}") for i, value in enumerate(node)]
        return {"$tuple": values} if isinstance(node, tuple) else values
    if node is None or isinstance(node, (bool, int, float, str)):
        return node
    raise InputError(f"a checkpoint can't hold a {type(node).__name__} (at {name or 'the top'})")


def _add(tensor: Tensor, tensors: dict[str, Tensor], seen: dict[tuple[Any, ...], str], name: str) -> str:
    tensor = tensor.detach().cpu()
    key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
    if tensor.numel() and key in seen:
        return seen[key]
    tensors[name] = tensor.contiguous()
    seen[key] = name
    return name


def _restore(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, list):
        return [_restore(value, tensors) for value in node]
    if not isinstance(node, dict):
        return node
    if "$tensor" in node:
        return tensors[node["$tensor"]]
    if "$array" in node:
        return tensors[node["$array"]].numpy()
    if "$tuple" in node:
        return tuple(_restore(value, tensors) for value in node["$tuple"])
    if "$items" in node:
        return {_restore(key, tensors): _restore(value, tensors) for key, value in node["$items"]}
    return {key: _restore(value, tensors) for key, value in node.items()}


def snapshot(tree: Any) -> Any:
    """A copy of a tree on the CPU that later in-place updates of the original do not touch.

    Tensors that share their memory share it in the copy as well.
    """
    return _snapshot(tree, {})


def _snapshot(node: Any, seen: dict[tuple[Any, ...], Tensor]) -> Any:
    if isinstance(node, Tensor):
        key = (node.data_ptr(), node.dtype, tuple(node.shape), node.stride())
        if not node.numel() or key not in seen:
            detached = node.detach()
            seen[key] = detached.cpu() if detached.device.type != "cpu" else detached.clone()
        return seen[key]
    if isinstance(node, np.ndarray):
        return node.copy()
    if isinstance(node, dict):
        return {key: _snapshot(value, seen) for key, value in node.items()}
    if isinstance(node, list):
        return [_snapshot(value, seen) for value in node]
    if isinstance(node, tuple):
        return tuple(_snapshot(value, seen) for value in node)
    return node


class Checkpoints:
    """The checkpoints of one run: the newest few are kept, and writing goes on beside the training.

    Parameters
    ----------
    directory
        Where the files ``step-000000050.safetensors`` live.
    keep
        How many of the newest stay; at least 2, so that a damaged newest one has a predecessor.
    """

    def __init__(self, directory: Path, keep: int = 2) -> None:
        self.directory = directory
        self.keep = max(keep, 2)
        self._writer: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, step: int, tree: Any, *, wait: bool = False) -> None:
        """Takes a snapshot of ``tree`` now and writes it in the background.

        Parameters
        ----------
        step
            The number of finished steps that the tree stands for.
        tree
            As for :func:`save_tree`.
        wait
            Return only when the file is on the disk.

        Raises
        ------
        DiskFullError
            When this write (if ``wait``) or the one before it found no room.
        """
        self.wait()
        taken = snapshot(tree)
        self._writer = threading.Thread(target=self._write, args=(step, taken), name="thrifty-checkpoint")
        self._writer.start()
        if wait:
            self.wait()

    def wait(self) -> None:
        """Waits for the write that is under way, and raises what went wrong in it."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def latest(self) -> tuple[int, Any] | None:
        """The newest whole checkpoint as ``(step, tree)``, or ``None``.

        A damaged file is passed over, with a warning that names it and the one used instead.
        """
        self.wait()
        for step, path in reversed(self._files()):
            try:
                return step, load_tree(path)
            except InputError as error:
                _log.warning("%s; using the checkpoint before it", error)
        return None

    def _files(self) -> list[tuple[int, Path]]:
        if not self.directory.is_dir():
            return []
        matches = ((_FILE.fullmatch(path.name), path) for path in self.directory.iterdir())
        return sorted((int(match[1]), path) for match, path in matches if match)

    def _write(self, step: int, tree: Any) -> None:
        try:
            save_tree(self.directory / f"step-{step:09d}.safetensors", tree)
            for _, path in self._files()[: -self.keep]:
                path.unlink(missing_ok=True)
            # What a killed process was writing when it died.
            for path in self.directory.glob(".step-*.tmp"):
                path.unlink(missing_ok=True)
        except BaseException as error:
            self._failure = error
