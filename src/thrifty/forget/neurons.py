"""What the neurons of a language model do on texts: running statistics, and keys at chosen tokens, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.core.progress import track
from thrifty.core.seeding import generator
from thrifty.forget.base import device_of
from thrifty.forget.data import Texts, as_source
from thrifty.lm.backbone import body_of, evaluating, unwrapped
from thrifty.lm.feed_forward import feed_forwards
from thrifty.lm.sequences import Sequences
from thrifty.nets.moments import RunningMoments

Probe = Literal["prompt", "text"]


class Moments(RunningMoments):
    """Mean, standard deviation and mean magnitude of neurons over tokens, gathered as they come.

    Parameters
    ----------
    neurons
        How many.
    device
        Where they are gathered.
    """

    def __init__(self, neurons: int, device: torch.device) -> None:
        super().__init__()
        self.mean, self.squares, self.magnitude = (torch.zeros(neurons, device=device) for _ in range(3))

    def add(self, x: Float[Tensor, "token neuron"]) -> None:
        """Takes in some tokens."""
        if not len(x):
            return
        x = x.detach().float()
        variance, mean = torch.var_mean(x, 0, correction=0)
        self.merge(len(x), mean, variance * len(x))
        self.magnitude += (x.abs().mean(0) - self.magnitude) * (len(x) / self.tokens)

    @property
    def variance(self) -> Float[Tensor, " neuron"]:
        """Mean squared deviation from the mean."""
        return self.squares / max(self.tokens, 1)

    @property
    def std(self) -> Float[Tensor, " neuron"]:
        """Root of :attr:`variance`."""
        return self.variance.sqrt()


def sequences_of(data: Any, name: str, most: int | None = None, seed: int = 0) -> Sequences:
    """The rows of a set of texts, at most so many of them, drawn at random.

    Raises
    ------
    InputError
        When the set is empty or holds no texts, or a row has no prompt or no response.
    """
    source = as_source(data, name)
    order = torch.randperm(len(source), generator=generator(seed, "probes", name))
    batch = source.rows(order if most is None else order[:most])
    if not isinstance(batch, Texts):
        raise InputError(f"the {name} holds no texts: give Sequences (lm.from_records) of a language model")
    rows = batch.sequences
    mask = rows.response_mask & rows.attention_mask
    for wrong, said in ((~mask.any(1), "has no response"), (mask[:, 0], "has no prompt")):
        if bool(wrong.any()):
            number = int(order[int(wrong.nonzero()[0, 0])])
            raise InputError(f"text {number} of the {name} {said}: give records with a prompt and a completion")
    return rows.without_columns(*rows.columns)


def probed(rows: Sequences, probe: Probe) -> Bool[Tensor, "row time"]:
    """The tokens that are looked at: those before the response, or all."""
    if probe == "text":
        return rows.attention_mask
    return rows.attention_mask & ((rows.response_mask & rows.attention_mask).cumsum(1) == 0)


def last_probed(rows: Sequences, probe: Probe) -> Bool[Tensor, "row time"]:
    """One token a row: the last of the prompt, or the last but one of the text, whose last only ends it."""
    time = torch.arange(rows.input_ids.shape[1], device=rows.device)
    counts = probed(rows, probe).sum(1)
    place = counts - 1 if probe == "prompt" else (counts - 2).clamp(min=0)
    return time == place[:, None]


def speaking(rows: Sequences) -> Bool[Tensor, "row time"]:
    """The tokens after each of which a response token is spoken."""
    spoken = rows.response_mask & rows.attention_mask
    return torch.cat([spoken[:, 1:], torch.zeros_like(spoken[:, :1])], 1)


@torch.no_grad()
def read(
    model: nn.Module, rows: Sequences, batch_size: int, before: Callable[[Sequences], None] = lambda _: None
) -> Iterator[Sequences]:
    """Runs the body of a model over rows, batch by batch; each is shown to ``before``, then to hooks, then yielded."""
    inner = unwrapped(model)
    body = body_of(inner) or inner
    device, order = device_of(model), rows.lengths.argsort()
    with evaluating(model):
        for chosen in track(list(order.split(batch_size)), "probe"):
            batch = rows.select(chosen).trim().to(device)
            before(batch)
            body(input_ids=batch.input_ids, attention_mask=batch.attention_mask.long(), use_cache=False)
            yield batch


def moments(
    model: nn.Module, rows: Sequences, probe: Probe, *, batch_size: int = 16
) -> tuple[list[Moments], list[Moments]]:
    """Statistics of each layer's pre-activations, and of its activations, over tokens of texts.

    Pre-activations come out of the first map of the feed-forward layer (the gate, where there is one), activations go
    into its last.

    Parameters
    ----------
    model
        A causal language model.
    rows
        The texts.
    probe
        Which tokens count.
    batch_size
        Texts read at once.

    Raises
    ------
    InputError
        When the model's feed-forward layers can't be found.
    NonFiniteError
        When the neurons' values are not finite.
    """
    layers = feed_forwards(model)
    found = tuple([Moments(layer.neurons, device_of(model)) for layer in layers] for _ in range(2))
    masks: list[Tensor] = []

    def watch(total: Moments) -> Callable[[Tensor], None]:
        # Some models hand tokens of all rows over in one list.
        return lambda x: total.add(x.flatten(0, -2)[masks[-1].flatten(), : len(total.mean)])

    wanted = [(layer.before, False, watch(found[0][layer.layer])) for layer in layers]
    wanted += [(layer.output, True, watch(found[1][layer.layer])) for layer in layers]
    with _watched(wanted):
        for _ in read(model, rows, batch_size, lambda batch: masks.append(probed(batch, probe))):
            masks.clear()
    for number, total in enumerate(found[1]):
        if not bool(torch.isfinite(total.variance).all()):
            raise NonFiniteError(f"the neurons of layer {number} are not finite: load the model in float32 or bfloat16")
    return found[0], found[1]


def keys_at(
    model: nn.Module,
    rows: Sequences,
    layer: int,
    tokens: Callable[[Sequences], Tensor],
    *,
    batch_size: int = 16,
) -> Iterator[tuple[Sequences, Float[Tensor, "token neuron"]]]:
    """What goes into the last map of one feed-forward layer at chosen tokens, a batch of texts at a time.

    Parameters
    ----------
    model, rows, batch_size
        As for :func:`moments`.
    layer
        Its number; negative ones count from the last.
    tokens
        Of a batch, the tokens wanted, bool ``[row, time]``.

    Yields
    ------
    tuple
        The batch and its keys, float32, in the order of the chosen tokens.
    """
    seen: list[Tensor] = []
    with _watched([(feed_forwards(model)[layer].output, True, seen.append)]):
        for batch in read(model, rows, batch_size):
            yield batch, seen.pop().flatten(0, -2)[tokens(batch).flatten()].float()


@contextmanager
def _watched(wanted: list[tuple[nn.Module, bool, Callable[[Tensor], None]]]) -> Iterator[None]:
    """Within it, functions see what modules take (``True``) or give."""
    handles = []
    for module, takes, see in wanted:
        if takes:
            handles.append(module.register_forward_pre_hook(lambda _, given, see=see: see(given[0])))
        else:
            handles.append(module.register_forward_hook(lambda _, __, out, see=see: see(out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
