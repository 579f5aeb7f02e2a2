"""How the command runs SimCore: read target and pool, train a retrieval encoder on the target, select, save."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import NDArray
from torch import Tensor, nn

from thrifty.core.errors import InputError, NotFoundError
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.data.images import images
from thrifty.data.letters import letters
from thrifty.data.records import write_jsonl
from thrifty.nets.augmentations import Augmentation
from thrifty.nets.encoders import evaluating, load_encoder
from thrifty.nets.extraction import extract
from thrifty.nets.nearest import most_similar, unit_rows
from thrifty.nets.picture_encoders import ResNetEncoder, ResNetEncoderConfig
from thrifty.nets.pictures import resized
from thrifty.nets.self_supervised import ViewTraining, train_views
from thrifty.nets.simclr import SimCLR
from thrifty.select.simcore import OpenSet

if TYPE_CHECKING:
    from thrifty.select.simcore import SimCore

WIDTH = 16
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_SETS = ("fashion-mnist", "digits", "mnist")


@dataclass(frozen=True, eq=False)
class Unlabelled:
    """Examples without labels.

    Parameters
    ----------
    inputs
        Features ``[N, D]`` (maybe mapped from a file), pictures as an array, or paths of picture files.
    name
        What to call them.
    """

    inputs: Any
    name: str

    @property
    def features(self) -> bool:
        """Whether they are features already."""
        return isinstance(self.inputs, np.ndarray) and self.inputs.ndim == 2

    def describe(self, row: int) -> str:
        """How a file calls an example: its path, else its number."""
        return str(self.inputs[row]) if isinstance(self.inputs, list) else str(row)


def read_unlabelled(data: str) -> Unlabelled:
    """Features or pictures of the user's.

    Parameters
    ----------
    data
        ``letters``, ``fashion-mnist``, ``digits`` or ``mnist``; an NPY file, which is mapped and not read as a whole,
        or an NPZ file with an array ``x``: features ``[N, D]`` or pictures ``[N, H, W]`` or ``[N, H, W, 3]``; or a
        folder of pictures, also in sub-folders.

    Raises
    ------
    NotFoundError
        When there is no such data.
    InputError
        When it is empty, or of another kind.
    """
    if data == "letters":
        return Unlabelled(letters().images, data)
    if data in _SETS:
        found = images(data)
        return Unlabelled(np.concatenate([found.train_x, found.test_x]), data)
    path = Path(data).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in _PICTURES)
        if not files:
            raise InputError(f"{path.name} holds no pictures ({', '.join(sorted(_PICTURES))})")
        return Unlabelled(files, path.name)
    if not path.exists():
        raise NotFoundError(
            f"there is no data {data!r}: give a folder, an NPY or NPZ file, letters, {', '.join(_SETS)}"
        )
    return Unlabelled(_array(path), path.name)


def _array(path: Path) -> NDArray[Any]:
    try:
        if path.suffix.lower() == ".npy":
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as bundle:
                if "x" not in bundle.files:
                    raise InputError(f"{path.name} has no array 'x': it has {', '.join(bundle.files) or 'none'}")
                array = bundle["x"]
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.name} is no readable NPY or NPZ file without pickles ({type(error).__name__})"
        ) from error
    if array.ndim not in (2, 3, 4) or 0 in array.shape:
        raise InputError(
            f"{path.name} holds an array {list(array.shape)}, expected features [N, D] or pictures [N, H, W] or "
            "[N, H, W, 3]"
        )
    return array


class RetrievalEncoder:
    """A small residual network trained by SimCLR on the target alone: features that know what the target differs in.

    Parameters
    ----------
    net
        Its encoder.
    size
        Pixels a side.
    """

    def __init__(self, net: nn.Module, size: int) -> None:
        self.net, self.size = net, size

    def __call__(self, batch: Any) -> Float[Tensor, "B D"]:
        device = next(self.net.parameters()).device
        with evaluating(self.net):
            out: Tensor = self.net(resized(batch, self.size).mul(2).sub(1).to(device))
        return out


def pretrained(
    pictures: UInt8[Tensor, "N C S S"], run: Run, epochs: float, *, batch_size: int = 128, views: str = "drawing"
) -> nn.Module:
    """A new encoder trained by SimCLR on pictures 0-255; checkpoints are the run's.

    Parameters
    ----------
    pictures
        Square ones.
    run
        For its device, seed and checkpoints.
    epochs
        Passes over them.
    batch_size
        Pictures in a batch, of which each has two views.
    views
        The recipe for random views.
    """
    with torch.random.fork_rng():
        torch.manual_seed(run.seed)
        channels, size = pictures.shape[1], pictures.shape[2]
        net = ResNetEncoder(ResNetEncoderConfig(channels, WIDTH, stem_stride=1 if size < 12 else 2))
        learner = SimCLR(net, 4 * WIDTH)
    augment = Augmentation(views, (size, size), channels)  # type: ignore[arg-type]
    training = ViewTraining(
        epochs, min(batch_size, len(pictures)), 0.1, momentum=0.9, weight_decay=1e-4, schedule="cosine", warmup=0.1
    )
    train_views(learner, pictures, augment, run, training, label="SimCLR on the target")
    return net.eval()


def demonstrate(method: SimCore, inputs: Any, run: Run) -> dict[str, Any]:
    """Selects from the pool what is nearest to the target.

    ``selected.jsonl`` in the run's directory has a row for each selected example (its index or path, its round and its
    similarity), the best first.

    Raises
    ------
    InputError
        When only one of target and pool is given, they or the encoder don't fit, or nothing is similar.
    """
    if (inputs.target is None) != (inputs.pool is None):
        raise InputError("give both --target and --pool, or neither for the embedded example")
    related: Bool[Tensor, " N"] | None = None
    if inputs.target is None:
        target, pool, related = letters_among_clothes(run.seed)
    else:
        target, pool = read_unlabelled(inputs.target), read_unlabelled(inputs.pool)
    features = _features(target, pool, inputs, run)
    found = method.explain(features)
    rows = zip(found.indices.tolist(), found.round.tolist(), found.similarities.tolist(), strict=True)
    file = write_jsonl(
        run.directory / "selected.jsonl",
        [{"example": pool.describe(row), "row": row, "round": turn, "similarity": value} for row, turn, value in rows],
        overwrite=True,
    )
    table = _table(features, found.indices, related)
    return {
        "table": table,
        "selected": len(found.indices),
        "share of the pool": len(found.indices) / len(features.pool),
        "rounds": len(found.values),
        "round similarities": found.values.tolist(),
        "stopped": found.stopped,
        "centroids": len(found.centroids),
        "file": str(file),
    }


def _features(target: Unlabelled, pool: Unlabelled, inputs: Any, run: Run) -> OpenSet:
    if target.features != pool.features:
        raise InputError(f"{target.name} and {pool.name} must both be features or both pictures")
    if target.features:
        if inputs.model is not None:
            raise InputError(f"{target.name} holds features already: leave --model out")
        return OpenSet(target.inputs, pool.inputs)
    encoder: Any
    if inputs.model is None:
        size = inputs.image_size
        small = resized(target.inputs, size).mul(255).round().to(torch.uint8)
        with run.stage("retrieval encoder") as stage:
            encoder = RetrievalEncoder(pretrained(small, stage, inputs.retrieval_epochs, views=inputs.views), size)
    else:
        encoder = load_encoder(inputs.model, device=run.device)
    return OpenSet(*(extract(encoder, part.inputs, 256, label=f"features of {part.name}") for part in (target, pool)))


def _table(features: OpenSet, chosen: Tensor, related: Bool[Tensor, " N"] | None) -> list[dict[str, Any]]:
    """Size and similarity of parts of the pool: each example's cosine to its nearest target example."""
    target = unit_rows(features.target, "target")
    random = torch.randperm(len(features.pool), generator=generator(0, "random part"))[: len(chosen)]
    rows = []
    for name, part in (("selected", chosen), ("as many at random", random)):
        order = part.sort().values
        nearest = most_similar(unit_rows(features.pool[order.numpy()], "pool").to(target), features.target, 1)[0]
        row: dict[str, Any] = {"part of the pool": name, "number": len(part), "similarity": float(nearest.mean())}
        rows.append(row if related is None else row | {"share of letters": float(related[part].float().mean())})
    return rows


def letters_among_clothes(
    seed: int, target: int = 400, related: int = 2000, other: int = 4000
) -> tuple[Unlabelled, Unlabelled, Bool[Tensor, " N"]]:
    """The embedded example: Greek and Cyrillic letters, and a pool of Latin letters among twice as many clothes.

    Parameters
    ----------
    seed
        Of the draws.
    target, related, other
        How many pictures: of the target, and of letters and clothes in the pool.

    Returns
    -------
    target, pool, related
        The last says which pictures of the pool are letters.
    """
    random = np.random.default_rng(seed)
    drawn = letters()
    names = [drawn.scripts[number] for number in drawn.script.tolist()]
    mine = np.isin(names, ("Greek", "Cyrillic"))
    theirs = np.isin(names, ("Latin",))
    chosen, near = (random.permutation(np.flatnonzero(part)) for part in (mine, theirs))
    clothes = images("fashion-mnist").train_x
    far = random.permutation(len(clothes))[:other]
    pictures = np.concatenate([drawn.images[near[:related]], clothes[far]])
    order = random.permutation(len(pictures))
    is_letter = torch.from_numpy(order < len(near[:related]))
    return (
        Unlabelled(drawn.images[chosen[:target]], "Greek and Cyrillic letters"),
        Unlabelled(pictures[order], "Latin letters and clothes"),
        is_letter,
    )
