"""A language model of the user's: read with its calibration text, measured before and after, saved."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.data.tasks import arithmetic
from thrifty.data.text import texts
from thrifty.shrink.base import Shrinker, shrink_with
from thrifty.shrink.calibration import check_windows, windows_of
from thrifty.shrink.decoder_storing import load_decoder, save_decoder
from thrifty.shrink.measure import accuracy, latency, perplexity, removed, size
from thrifty.shrink.tasks import MODEL
from thrifty.shrink.text import held_out, read_texts

_log = logging.getLogger("thrifty")
_NEWS = "bbc-news"


class Inputs(Protocol):
    """The room's inputs, as far as language models go."""

    @property
    def model(self) -> str | None: ...
    @property
    def data(self) -> str | None: ...
    @property
    def test(self) -> str | None: ...
    @property
    def windows(self) -> int: ...
    @property
    def window_length(self) -> int: ...
    @property
    def evaluate(self) -> int: ...
    @property
    def problems(self) -> int: ...


def run(method: Shrinker, inputs: Inputs, run: Run) -> dict[str, Any]:
    """Calibrates, makes smaller and measures a language model.

    Parameters
    ----------
    method
        A method for language models.
    inputs
        The user's model and texts.
    run
        Where the smaller model goes.
    """
    calibration, test = _texts(inputs)
    model, tokenizer = load_decoder(inputs.model or MODEL, dtype=run.dtype, device=run.device)
    draw = generator(run.seed, "shrink", "windows")
    windows = windows_of(calibration, tokenizer, inputs.windows, inputs.window_length, draw)
    check_windows(windows, model)
    judged = _judged(test, tokenizer, inputs, draw)
    before = _measure(model, tokenizer, judged, inputs)
    started = time.perf_counter()
    smaller = shrink_with(method, model, {"windows": windows}, run)
    seconds = time.perf_counter() - started
    after = _measure(smaller, tokenizer, judged, inputs)
    plain = save_decoder(smaller, run.directory / "model", tokenizer)
    if not plain:
        _log.info("layers differ in size: load the model with thrifty.shrink.load_decoder, not with from_pretrained")
    return {
        "table": [{"model": "before"} | before, {"model": "after"} | after | {"seconds": seconds}],
        "model": str(run.directory / "model"),
        "removed": removed(model, smaller),
        "from_pretrained": plain,
    }


def _texts(inputs: Inputs) -> tuple[list[str], list[str]]:
    if inputs.data is None:
        if inputs.test is not None:
            return list(texts(_NEWS).train_texts), read_texts(inputs.test)
        news = texts(_NEWS)
        return list(news.train_texts), list(news.test_texts)
    found = read_texts(inputs.data)
    return held_out(found) if inputs.test is None else (found, read_texts(inputs.test))


def _judged(test: list[str], tokenizer: Any, inputs: Inputs, draw: Any) -> Tensor:
    try:
        return windows_of(test, tokenizer, inputs.evaluate, inputs.window_length, draw)
    except InputError as error:
        raise InputError(
            f"the text to measure on is shorter than a window of {inputs.window_length} tokens: give more with --test, "
            "or a shorter --window-length"
        ) from error


def _measure(model: Any, tokenizer: Any, judged: Tensor, inputs: Inputs) -> dict[str, float]:
    found = {"perplexity": perplexity(model, judged)}
    if inputs.problems:
        task = arithmetic()
        asked = task.problems(inputs.problems, 0, "test")
        found["accuracy"] = accuracy(model, tokenizer, task, asked)
    return found | size(model, judged.shape[1]) | {"milliseconds": latency(model, judged.shape[1])}
