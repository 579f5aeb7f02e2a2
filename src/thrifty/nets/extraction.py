"""Features of many inputs: in batches, with progress, computed once and then read from the cache."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from thrifty.core.atomic import replacing
from thrifty.core.errors import DiskFullError, InputError
from thrifty.core.progress import Progress
from thrifty.data.cache import cache_root
from thrifty.nets.encoders import Encoder, ModuleEncoder

log = logging.getLogger("thrifty")
SHARD = 1024
"""Inputs whose features share one file of the cache: what a killed extraction loses at most."""
_RECIPE = "features 1"


def extract(
    encoder: Encoder | nn.Module,
    inputs: Sequence[Any] | NDArray[Any] | Tensor,
    batch_size: int = 64,
    *,
    cache: bool = True,
    label: str = "features",
) -> NDArray[np.float32]:
    """The features of all inputs.

    Features are kept in the folder ``features`` of the cache, by the content of the inputs and the identity of the
    encoder, 1024 inputs a file: asked again, or after an interruption, only what is missing is computed. The folder
    can be deleted at any time.

    Parameters
    ----------
    encoder
        See :func:`thrifty.nets.encoders.load_encoder`. One without an ``identity`` is not cached.
    inputs
        N pictures (array, tensor, paths or PIL images) or texts.
    batch_size
        Inputs that the encoder sees at once.
    cache
        Read and write the cache.
    label
        What the progress bar says.

    Returns
    -------
    ndarray
        float32 ``[N, D]``.

    Raises
    ------
    InputError
        When there is no input, or the encoder gives something else than N finite vectors of one length.
    """
    if not len(inputs):
        raise InputError("there is nothing to extract features from: the data set is empty")
    if batch_size < 1:
        raise InputError(f"batch size must be at least 1, not {batch_size}")
    encode = ModuleEncoder(encoder) if isinstance(encoder, nn.Module) else encoder
    identity = getattr(encode, "identity", None) if cache else None
    shards: list[NDArray[np.float32]] = []
    with Progress(label, len(inputs)) as progress:
        for start in range(0, len(inputs), SHARD):
            shard = inputs[start : start + SHARD]
            path = None if identity is None else _place(identity, shard)
            features = None if path is None else _read(path, len(shard))
            if features is None:
                features = _compute(encode, shard, batch_size, start, progress)
                if path is not None:
                    _write(path, features)
            else:
                progress.update(len(shard), note="from the cache")
            if shards and features.shape[1] != shards[0].shape[1]:
                raise InputError(
                    f"the encoder gave {shards[0].shape[1]} features, then {features.shape[1]}: inputs of one size?"
                )
            shards.append(features)
    return np.concatenate(shards)


def _compute(encode: Encoder, shard: Any, batch_size: int, first: int, progress: Progress) -> NDArray[np.float32]:
    texts = isinstance(shard, (list, tuple)) and all(isinstance(item, str) for item in shard)
    # Texts of like length share a batch, so that little of it is padding.
    order = sorted(range(len(shard)), key=lambda i: len(shard[i])) if texts else list(range(len(shard)))
    found: NDArray[np.float32] | None = None
    for start in range(0, len(shard), batch_size):
        rows = order[start : start + batch_size]
        batch = [shard[i] for i in rows] if texts else shard[rows[0] : rows[-1] + 1]
        with torch.no_grad():
            features = _as_float32(encode(batch), len(rows))
        if found is None:
            found = np.empty((len(shard), features.shape[1]), dtype=np.float32)
        if features.shape[1] != found.shape[1]:
            raise InputError(
                f"the encoder gave {found.shape[1]} features, then {features.shape[1]}: inputs of several sizes?"
            )
        bad = ~np.isfinite(features).all(1)
        if bad.any():
            raise InputError(f"the encoder gave NaN or infinity for input {first + rows[int(bad.argmax())]}")
        found[rows] = features
        progress.update(len(rows))
    assert found is not None
    return found


def _as_float32(features: Any, count: int) -> NDArray[np.float32]:
    array = features.detach().to("cpu", torch.float32).numpy() if isinstance(features, Tensor) else np.asarray(features)
    if array.ndim != 2 or len(array) != count:
        raise InputError(f"the encoder gave an array of shape {list(array.shape)} for {count} inputs, expected [N, D]")
    return array.astype(np.float32, copy=False)


def _place(identity: str, shard: Any) -> Path:
    digest = hashlib.blake2b(f"{_RECIPE}\0{identity}".encode(), digest_size=20)
    for piece in _content(shard):
        digest.update(piece)
    return cache_root() / "features" / f"{digest.hexdigest()}.safetensors"


def _content(shard: Any) -> Iterator[bytes]:
    if isinstance(shard, Tensor):
        shard = shard.detach().cpu().numpy()
    if isinstance(shard, np.ndarray) and shard.dtype.kind != "O":
        yield f"{shard.dtype.str} {shard.shape} ".encode()
        yield np.ascontiguousarray(shard).tobytes()
        return
    for item in shard:
        if isinstance(item, str):
            content = b"text " + item.encode()
        elif isinstance(item, Path):
            content = b"file " + (item.read_bytes() if item.exists() else str(item).encode())
        else:
            array = np.asarray(item)
            content = f"{getattr(item, 'mode', '')} {array.dtype.str} {array.shape} ".encode() + array.tobytes()
        yield len(content).to_bytes(8, "little")
        yield content


def _read(path: Path, count: int) -> NDArray[np.float32] | None:
    if not path.exists():
        return None
    try:
        features = load_file(path)["features"]
    except (SafetensorError, KeyError, OSError):
        log.warning("the cached features %s are damaged: they are computed again", path)
        return None
    return features if features.shape[:1] == (count,) else None


def _write(path: Path, features: NDArray[np.float32]) -> None:
    try:
        with replacing(path) as temporary:
            save_file({"features": features}, temporary)
    except (DiskFullError, PermissionError) as error:
        # The features are in hand: going on without the cache loses nothing.
        log.warning("features are not cached: %s", error)
