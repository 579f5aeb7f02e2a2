"""What the user gives to the methods of the room, read and encoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from thrifty.adapt.data import Labelled, read_labelled, split_and_limit
from thrifty.adapt.design import Balance
from thrifty.adapt.stream import StreamKind
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.encoders import EfficientNetEncoder, PixelEncoder, TextEncoder, VisionEncoder, load_encoder
from thrifty.nets.extraction import extract

DEFAULT_LIMIT = 4000


@dataclass(frozen=True)
class Inputs:
    """What the methods of the room work on.

    Parameters
    ----------
    model
        The frozen encoder: ``efficientnet-lite0`` (pictures), ``minilm`` (texts), ``pixels``, the folder or hub id of a
        Hugging Face vision or text model, or ``features`` for data that are features already. By default what fits the
        data.
    data
        ``fashion-mnist``, ``digits``, ``mnist``, ``letters``, ``sarcasm``, ``bbc-news``, ``spam``; a folder with a
        sub-folder of pictures for each class; an NPZ file with arrays x and y; or a table of texts (CSV, JSONL,
        Parquet). By default ``fashion-mnist``, or ``digits`` where that can't be fetched.
    text_column
        Column of the texts.
    label_column
        Column of the classes.
    domain_column
        Column of the domains, for a domain-incremental stream, or of the sessions, for a recorded one.
    stream
        class: disjoint classes in each session; overlapping: half of the classes are mixed over sessions; si-blurry:
        the same with random numbers of classes; mixed: each class is dealt over all sessions; few-shot: a base session,
        then a few new classes at a time with a few examples each; domain: a session for each domain, with the same
        classes; recorded: the sessions that the data say. By default few-shot or si-blurry for the methods made for
        these, else class.
    tasks
        How many sessions (not for few-shot, domain and recorded). At most the number of classes.
    base_classes
        Classes of the base session of a few-shot stream; by default six in ten. For Loki, how many classes are
        observed; by default half.
    ways
        New classes in each later session of a few-shot stream; by default an eighth of those there are. For methods
        that label queries all at once: classes of an episode; by default what the method is made for.
    shots
        Labelled examples of each new class; by default 5 in a stream and 1 in an episode.
    queries
        Unlabelled examples of an episode; by default what the method is made for, or what the data allow.
    present
        How many of an episode's classes the queries come from; by default what the method is made for.
    balance
        How queries spread over them: balanced, pooled (drawn from all their examples) or dirichlet (uneven at random).
    episodes
        How many episodes are drawn from the data's classes.
    support
        Labelled examples of a task of your own, of the kinds that ``data`` may be; ``data`` is then where a method that
        learns from other classes finds these.
    query
        What to label there: a folder of pictures, an NPZ file with an array x, or a table of texts; labels in it only
        measure what was found.
    test_share
        Share of each class held out for testing, where the data bring no split.
    limit
        Use at most so many examples, evenly over the classes; all by default, 4000 of the default data.
    image_size
        Pixels a side for ``efficientnet-lite0``.
    batch_size
        Inputs that the encoder sees at once.
    """

    model: str | None = None
    data: str | None = None
    text_column: str = "text"
    label_column: str = "label"
    domain_column: str | None = None
    stream: StreamKind | None = None
    tasks: int = 5
    base_classes: int | None = None
    ways: int | None = None
    shots: int | None = None
    queries: int | None = None
    present: int | None = None
    balance: Balance | None = None
    episodes: int = 1000
    support: str | None = None
    query: str | None = None
    test_share: float = 0.2
    limit: int | None = None
    image_size: int = 96
    batch_size: int = 64


def read_inputs(inputs: Inputs, seed: int) -> Labelled:
    """The examples that the user gave, or the default ones, each marked as for training or testing."""
    limit = inputs.limit if inputs.limit is not None or inputs.data else DEFAULT_LIMIT
    columns = {"text_column": inputs.text_column, "label_column": inputs.label_column}
    data = read_labelled(inputs.data or "", **columns, domain_column=inputs.domain_column)
    return split_and_limit(data, test_share=inputs.test_share, limit=limit, seed=seed)


def features_of(data: Labelled, inputs: Inputs, run: Run) -> tuple[Any, str]:
    """The features of all examples on the run's device, and the name of the encoder that gave them."""
    fitting = {"pictures": "efficientnet-lite0", "texts": "minilm", "features": "features"}[data.kind]
    model = inputs.model or fitting
    if (model == "features") != (data.kind == "features"):
        raise InputError(f"the model {model!r} does not fit: {data.name} holds {data.kind}; leave --model out")
    if data.kind == "features":
        found = np.asarray(data.inputs, dtype=np.float32)
        bad = ~np.isfinite(found).all(1)
        if bad.any():
            raise InputError(f"{data.name}: feature row {int(bad.argmax())} holds NaN or infinity")
    else:
        # Always float32: what a head learnt must not depend on which precision is fast on the machine.
        encoder = load_encoder(model, device=run.device, image_size=inputs.image_size)
        others = TextEncoder if data.kind == "pictures" else (PixelEncoder, EfficientNetEncoder, VisionEncoder)
        if isinstance(encoder, others):
            raise InputError(f"the model {model!r} does not fit: {data.name} holds {data.kind}; leave --model out")
        found = extract(encoder, data.inputs, inputs.batch_size)
    return (found if run.device.type == "cpu" else torch.from_numpy(found).to(run.device)), model


def with_defaults(method: Any, settings: Mapping[str, Any]) -> Any:
    """The method with other defaults: what was set otherwise stays, as for embedded data that are small."""
    usual = {field.name: field.default for field in fields(method)}
    changed = {name: value for name, value in settings.items() if getattr(method, name) == usual[name]}
    return replace(method, **changed)
