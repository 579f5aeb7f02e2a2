"""A language model of the user's: read with its calibration text, measured before and after, saved."""

from __future__ import annotations

import logging
import time
from typing import Any, Protocol

from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.core.seeding import generator
from thrifty.data.text import texts
from thrifty.shrink.base import Shrinker, shrink_with
from thrifty.shrink.calibration import check_windows, windows_of
from thrifty.shrink.decoder_storing import load_decoder, save_decoder
from thrifty.shrink.measure import measured, removed
from thrifty.shrink.tasks import MODEL, NEWS
from thrifty.shrink.text import held_out, read_texts
from thrifty.shrink.training import Windows

_log = logging.getLogger("thrifty")


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
    before = measured(model, judged, tokenizer, inputs.problems)
    started = time.perf_counter()
    smaller = shrink_with(method, model, {"windows": windows, "training": Windows(windows)}, run)
    seconds = time.perf_counter() - started
    after = measured(smaller, judged, tokenizer, inputs.problems)
    plain = save_decoder(smaller, run.directory / "model", tokenizer)
    if not plain:
        _log.info(
            "its config can't say its sizes: load the model with thrifty.shrink.load_decoder, not with from_pretrained"
        )
    return {
        "table": [{"model": "before"} | before, {"model": "after"} | after | {"seconds": seconds}],
        "model": str(run.directory / "model"),
        "removed": removed(model, smaller),
        "from_pretrained": plain,
    }


def _texts(inputs: Inputs) -> tuple[list[str], list[str]]:
    if inputs.data is None:
        news = texts(NEWS)
        return list(news.train_texts), list(news.test_texts) if inputs.test is None else read_texts(inputs.test)
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
