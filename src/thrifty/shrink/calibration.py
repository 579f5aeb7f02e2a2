"""Calibration of a decoder layer by layer: hidden states of all windows go through one layer after the other.

So one layer's inputs and statistics are in memory at a time, the head never runs, and a layer that was pruned is
run again before the next one is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.progress import Progress
from thrifty.lm.backbone import evaluating, unwrapped
from thrifty.shrink.decoder import DecoderLayer, decoder_layers
from thrifty.shrink.input_statistics import InputStatistics, watching

TOKENS_AT_ONCE = 4096

Visit = Callable[[int, DecoderLayer, dict[str, InputStatistics]], None]


def windows_of(
    texts: Sequence[str], tokenizer: Any, count: int, length: int, generator: torch.Generator
) -> Int[Tensor, "window token"]:
    """Windows of tokens, cut at random places out of texts that are joined end to end.

    Parameters
    ----------
    texts
        What is joined, the end-of-sequence token between two of them.
    tokenizer
        Turns them into tokens.
    count
        Windows.
    length
        Tokens of one.
    generator
        Chooses the places.

    Raises
    ------
    InputError
        When the text is shorter than a window.
    """
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids: list[int] = []
    for at in torch.randperm(len(texts), generator=generator).tolist():
        ids += tokenizer(texts[at], add_special_tokens=False, verbose=False).input_ids + end
        # No more text than the windows can use, but enough to choose among.
        if len(ids) >= 2 * count * length:
            break
    if len(ids) < length:
        raise InputError(
            f"the calibration text has {len(ids)} tokens, a window {length}: give more text or a shorter window"
        )
    stream = torch.tensor(ids)
    if len(ids) >= count * length:  # apart from each other
        places = torch.randperm(len(ids) // length, generator=generator)[:count] * length
    else:
        places = torch.randint(len(ids) - length + 1, (count,), generator=generator)
    return stream[places[:, None] + torch.arange(length)]


def check_windows(windows: Tensor, model: Any) -> None:
    """Checks calibration windows.

    Raises
    ------
    InputError
        When there are none, they are no rows of token ids, or hold ids that the model does not know.
    """
    if windows.ndim != 2 or windows.is_floating_point() or not windows.numel():
        raise InputError(
            f"calibration windows must be token ids [windows, tokens], at least one, not {windows.dtype} "
            f"{list(windows.shape)}"
        )
    if windows.shape[1] < 2:
        raise InputError("calibration windows of one token say nothing: take at least 2")
    vocabulary = unwrapped(model).get_input_embeddings().weight.shape[0]
    if int(windows.max()) >= vocabulary or int(windows.min()) < 0:
        raise InputError(
            f"token id {int(windows.max())} is outside the model's vocabulary of {vocabulary}: were the windows made "
            "with another model's tokenizer?"
        )
    longest = getattr(unwrapped(model).config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and windows.shape[1] > longest:
        raise InputError(f"windows of {windows.shape[1]} tokens: the model takes at most {longest}")


@torch.no_grad()
def calibrate(
    model: nn.Module,
    windows: Int[Tensor, "window token"],
    visit: Visit,
    *,
    names: Callable[[DecoderLayer], Sequence[str]] = lambda layer: list(layer.maps),
    again: bool,
    statistics: Callable[[], InputStatistics] = InputStatistics,
    batch_size: int | None = None,
) -> None:
    """Runs a decoder layer by layer and gives each layer's input statistics to ``visit``.

    Parameters
    ----------
    model
        A causal language model.
    windows
        Token ids, all windows of one length.
    visit
        ``visit(number, layer, statistics by map)``; it may change the layer's weights in place.
    names
        Which of a layer's maps to watch.
    again
        Whether the next layer's inputs are what the layer gives after the visit (it runs twice), or before (once).
    statistics
        Makes what sums up one input.
    batch_size
        Windows that run at once; by default as many as make 4096 tokens.

    Raises
    ------
    InputError
        When windows or model are not what they should be, or its layers can't run one by one.
    """
    check_windows(windows, model)
    layers = decoder_layers(model)
    size = batch_size or max(1, TOKENS_AT_ONCE // windows.shape[1])
    with evaluating(model), Progress("calibrate", len(layers)) as progress:
        chain = Chain(model, [layer.module for layer in layers], windows, size)
        for number, layer in enumerate(layers):
            watched = {name: layer.maps[name] for name in names(layer)}
            final = number == len(layers) - 1
            with watching(watched, statistics) as found:
                chain.run(number, keep=not again and not final)
            for name, seen in found.items():
                seen.check(f"{name} of layer {number}")
            visit(number, layer, found)
            if again and not final:
                chain.run(number, keep=True)
            progress.update()


class Chain:
    """Hidden states on their way through the layers of a decoder, as its body would send them.

    Parameters
    ----------
    model
        A causal language model.
    layers
        Its decoder layers in order.
    windows
        Token ids.
    size
        Windows in a batch.

    Raises
    ------
    InputError
        When the layers do not follow upon each other: the states would be others than those of the model.
    """

    def __init__(self, model: nn.Module, layers: Sequence[nn.Module], windows: Tensor, size: int) -> None:
        self._model, self._layers = model, layers
        self._device = next(model.parameters()).device
        self._parts = list(range(0, len(windows), size))
        self._size = size
        self._prove(windows[:1, :16])
        # Masks and positions are those of a batch's shape, of which there are two at most: whole batches and the last.
        self._calls: dict[int, list[dict[str, Any]]] = {}
        states: Tensor | None = None
        for at in self._parts:
            part = windows[at : at + size].to(self._device)
            first, calls = self._enter(part, keep=len(part) not in self._calls)
            if len(part) not in self._calls:
                self._calls[len(part)] = calls
            if states is None:
                states = first.new_empty(len(windows), *first.shape[1:])
            states[at : at + size] = first
        assert states is not None
        self.states: Float[Tensor, "window token width"] = states

    def run(self, number: int, *, keep: bool) -> None:
        """Sends all windows through one layer; with ``keep`` its outputs take the place of its inputs."""
        for at in self._parts:
            part = self.states[at : at + self._size]
            found = _step(self._layers[number], part, self._calls[len(part)][number])
            if keep:
                part.copy_(found)

    def _enter(self, ids: Tensor, *, keep: bool) -> tuple[Tensor, list[dict[str, Any]]]:
        """The first layer's inputs, and with ``keep`` what each layer is called with beside the states."""
        seen: list[tuple[Tensor, dict[str, Any]]] = []
        with _passing_through(self._layers, seen, whole=keep):
            try:
                body = unwrapped(self._model).base_model
                body(input_ids=ids, use_cache=False)
            except _EnoughError:
                pass
        if not seen or (keep and len(seen) != len(self._layers)):
            raise InputError(
                f"{type(unwrapped(self._model)).__name__} runs {len(seen)} of its {len(self._layers)} layers in one "
                "pass: layer-by-layer calibration needs each of them once"
            )
        return seen[0][0], [call for _, call in seen]

    def _prove(self, ids: Tensor) -> None:
        """Compares the states that reach the last layer with those in the model's own pass, on a few tokens."""
        ids = ids.to(self._device)
        own: list[Tensor] = []
        handle = self._layers[-1].register_forward_hook(lambda _, __, output: own.append(_states(output)))
        try:
            unwrapped(self._model).base_model(input_ids=ids, use_cache=False)
        finally:
            handle.remove()
        states, calls = self._enter(ids, keep=True)
        for layer, call in zip(self._layers, calls, strict=True):
            states = _step(layer, states, call)
        if not torch.isfinite(own[0]).all():
            return  # which map's input is to blame comes out when its statistics are taken
        tolerance = (1e-3 if states.dtype == torch.float32 else 6e-2) * float(own[0].abs().max())
        if not torch.allclose(states, own[0], rtol=0, atol=tolerance):
            raise InputError(
                f"the layers of {type(unwrapped(self._model)).__name__} do not follow upon each other alone: run one "
                "by one, they give other states than the model"
            )


class _EnoughError(Exception):
    """Ends a pass of which no more is needed."""


def _states(output: Any) -> Tensor:
    """The hidden states among what a layer returns."""
    states: Tensor = output if isinstance(output, Tensor) else output[0]
    return states


def _step(layer: nn.Module, states: Tensor, call: dict[str, Any]) -> Tensor:
    return _states(layer(states, *call["args"], **call["kwargs"]))


@contextmanager
def _passing_through(
    layers: Sequence[nn.Module], seen: list[tuple[Tensor, dict[str, Any]]], *, whole: bool
) -> Iterator[None]:
    """Within it the layers hand their inputs on, and ``seen`` gets what each is called with.

    Only the first layer runs, to show whether layers return states alone or in a tuple.
    """
    tuples: list[bool] = []

    def stand_in(layer: nn.Module) -> Callable[..., Any]:
        own = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if args:
                states, *rest = args
            else:
                kwargs = dict(kwargs)
                states, rest = kwargs.pop("hidden_states"), []
            seen.append((states, {"args": tuple(rest), "kwargs": kwargs}))
            if not whole:
                raise _EnoughError
            if not tuples:
                tuples.append(not isinstance(own(states, *rest, **kwargs), Tensor))
            return (states,) if tuples[0] else states

        return forward

    for layer in layers:
        vars(layer)["forward"] = stand_in(layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
