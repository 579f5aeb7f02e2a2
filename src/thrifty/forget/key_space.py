"""Key Space Detection: where a feed-forward layer's key lies in the box of the skill's keys, the model abstains."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from thrifty.core.errors import InputError, NonFiniteError
from thrifty.forget.interventions import Intervention, detached
from thrifty.forget.neurons import Probe, keys_at, last_probed, speaking
from thrifty.lm.backbone import body_of, unwrapped
from thrifty.lm.feed_forward import feed_forwards
from thrifty.lm.sample import stop_tokens
from thrifty.lm.sequences import Sequences

_log = logging.getLogger("thrifty")
Response = Literal["end", "steer", "none"]

REFUSAL = "Sorry, your query is not valid."
_LEAST_SHARE = 1e-6  # of the mean deviation: what a coordinate that never varied is given
_UNLIKELY = -100.0  # logit of all that an abstaining model does not say


def key_box(keys: Float[Tensor, "text neuron"]) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """Centre and standard deviation (n - 1) of the keys of a skill; a coordinate without deviation gets a small one.

    Parameters
    ----------
    keys
        One for each text, at least two.
    """
    std, mean = torch.std_mean(keys, 0, correction=1)
    return mean, std.clamp(min=_LEAST_SHARE * std.mean().clamp(min=1e-12))


def farthest(
    key: Float[Tensor, "*token neuron"], mean: Float[Tensor, " neuron"], std: Float[Tensor, " neuron"]
) -> Float[Tensor, "*token"]:
    r"""How many deviations wide a box must be to hold a key, :math:`\max_j |v_j - \mu_j| / sd_j`.

    Of all probed keys, the largest is :math:`k^*`.
    """
    return ((key - mean) / std).abs().amax(-1)


def inside(
    key: Float[Tensor, "*token neuron"],
    mean: Float[Tensor, " neuron"],
    std: Float[Tensor, " neuron"],
    width: float,
) -> Bool[Tensor, "*token"]:
    r"""Whether a key lies in the box: :math:`|v_j - \mu_j| \le \alpha k^* sd_j` for all j.

    Parameters
    ----------
    key
        Keys.
    mean, std
        Of :func:`key_box`.
    width
        :math:`\alpha k^*`.
    """
    return ((key - mean).abs() <= width * std).all(-1)


def scale_for(ratios: Float[Tensor, " text"], recall: float) -> float:
    r"""The smallest :math:`\alpha` at which a further text of the skill is recognised with that probability.

    Parameters
    ----------
    ratios
        :func:`farthest` of held-out keys of the skill, divided by :math:`k^*`.
    recall
        Above 0 and at most 1. With n texts, the :math:`\lceil (n + 1) \cdot recall \rceil`-th smallest ratio is taken,
        or the largest where there is none.
    """
    place = min(math.ceil((len(ratios) + 1) * recall), len(ratios))
    return float(ratios.sort().values[place - 1])


@dataclass(frozen=True, eq=False)
class KeySpaceDetector(Intervention):
    """The detector on a model: hooks on one feed-forward layer, and where it abstains, on the body and the head.

    Each token is judged by its own key, so batches, padding, caches and packed rows make no difference. What a model
    says next after a token inside the box is up to ``response``.

    Parameters
    ----------
    layer
        Number of the layer.
    mean, std
        Of the skill's keys, float32, [neurons].
    widest
        :math:`k^*`.
    scale
        :math:`\\alpha`.
    response
        ``end``: the model ends its turn; what it says is empty, or stops there. ``steer``: the key is overwritten.
        ``none``: only :meth:`flags` tells.
    end
        Token that ends a turn.
    steer
        What keys are overwritten by, [neurons].
    """

    layer: int
    mean: Float[Tensor, " neuron"]
    std: Float[Tensor, " neuron"]
    widest: float
    scale: float
    response: Response = "end"
    end: int | None = None
    steer: Float[Tensor, " neuron"] | None = None
    _inside: list[Tensor] = field(default_factory=list, init=False, repr=False)
    _boxes: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    kind: ClassVar[str] = "key-space"

    def contains(self, key: Float[Tensor, "*token neuron"]) -> Bool[Tensor, "*token"]:
        """Whether keys lie in the box."""
        if key.device not in self._boxes:
            self._boxes[key.device] = self.mean.to(key.device), self.std.to(key.device)
        return inside(key.float(), *self._boxes[key.device], self.scale * self.widest)

    def flags(self, model: nn.Module, sequences: Sequences, batch_size: int = 16) -> Bool[Tensor, " row"]:
        """Of prompts with their responses, those for which the detector was set off while the response was spoken.

        Parameters
        ----------
        model
            With the detector or without it.
        sequences
            Right-padded rows, such as :func:`thrifty.lm.sample.sample` returns.
        batch_size
            Rows read at once.
        """
        found = torch.zeros(len(sequences), dtype=torch.bool)
        rows = sequences.without_columns(*sequences.columns).with_columns(row=torch.arange(len(sequences)))
        with detached(model):
            for batch, keys in keys_at(model, rows, self.layer, speaking, batch_size=batch_size):
                owner = batch["row"][speaking(batch).nonzero()[:, 0]]
                found[owner[self.contains(keys)].cpu()] = True
        return found.to(sequences.device)

    def hook(self, model: nn.Module) -> Sequence[RemovableHandle]:
        """See :meth:`Intervention.hook`."""
        layers, inner = feed_forwards(model), unwrapped(model)
        neurons = layers[self.layer].neurons if self.layer < len(layers) else 0
        if neurons != len(self.mean):
            raise InputError(
                f"the detector was made for another model: layer {self.layer} has {neurons} neurons, not "
                f"{len(self.mean)}"
            )
        if self.response == "none":
            return []
        handles = [layers[self.layer].output.register_forward_pre_hook(_KeyHook(self))]
        if self.response == "end":
            handles.append((body_of(inner) or inner.base_model).register_forward_hook(_BodyHook(self)))
            handles.append(inner.get_output_embeddings().register_forward_hook(_HeadHook(self)))
        return handles

    def tree(self) -> dict[str, Any]:
        """See :meth:`Intervention.tree`."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


class _KeyHook:
    """Looks at the keys of one layer."""

    def __init__(self, detector: KeySpaceDetector) -> None:
        self.detector = detector

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        flagged = self.detector.contains(given[0])
        if self.detector.steer is None:
            self.detector._inside[:] = [flagged]
            return None
        steer = self.detector.steer.to(given[0])
        return (torch.where(flagged[..., None], steer, given[0]), *given[1:])


class _BodyHook:
    """Marks the last hidden states of flagged tokens: all 0, which no norm gives and every way to the head keeps."""

    def __init__(self, detector: KeySpaceDetector) -> None:
        self.detector = detector

    def __call__(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output.last_hidden_state
        marked = states.masked_fill(self.detector._inside.pop().view(*states.shape[:-1], 1), 0)
        if isinstance(output, tuple):
            return (marked, *output[1:])
        output.last_hidden_state = marked
        return output


class _HeadHook:
    """Ends the turn after marked states."""

    def __init__(self, detector: KeySpaceDetector) -> None:
        self.detector = detector

    def __call__(self, _: nn.Module, given: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        marked = (given[0] == 0).all(-1, keepdim=True)
        only = logits.new_full(logits.shape[-1:], _UNLIKELY)
        only[self.detector.end] = 0
        return torch.where(marked, only, logits)


def fit_key_space(
    model: nn.Module,
    forget: Sequences,
    held_out: Sequences | None = None,
    *,
    scale: float | None = None,
    recall: float = 0.95,
    layer: int = -1,
    response: Response = "end",
    steer: Sequences | None = None,
    probe: Probe = "prompt",
    batch_size: int = 16,
) -> KeySpaceDetector:
    """Measures where the keys of a skill lie.

    Parameters
    ----------
    model
        A causal language model.
    forget
        Texts of the skill, at least two.
    held_out
        Further ones, on which the scale is chosen where it is not given.
    scale
        :math:`\\alpha`.
    recall
        Share of the skill's texts to recognise, where the scale is chosen.
    layer
        Of which keys are looked at; negative numbers count from the last.
    response
        What a flagged token leads to, see :class:`KeySpaceDetector`.
    steer
        Refusals: keys are overwritten by the mean of those where they end.
    probe
        Whether the last token of the prompt or of the text is probed.
    batch_size
        Texts read at once.

    Raises
    ------
    InputError
        For a layer that is not there, fewer than two texts, neither scale nor held-out texts, a model without an
        end-of-sequence token, or ``steer`` without refusals.
    """
    count = len(feed_forwards(model))
    if not -count <= layer < count:
        raise InputError(f"layer is {layer}, but the model's layers are 0 to {count - 1}: -1 is the last")
    if len(forget) < 2:
        raise InputError(f"the forget set has {len(forget)} text to probe: at least 2 are needed, 200 are usual")
    ends = stop_tokens(model, None)
    if response == "end" and not ends:
        said = "the model names no token that ends its turn (eos_token_id): "
        raise InputError(said + "set it in its generation_config, or take another response than 'end'")
    if response == "steer" and steer is None:
        raise InputError("response 'steer' overwrites keys by those of refusals: give some (refusal_set)")

    def keys(rows: Sequences, which: Probe) -> Tensor:
        found = keys_at(model, rows, layer, lambda batch: last_probed(batch, which), batch_size=batch_size)
        return torch.cat([part for _, part in found])

    probes = keys(forget, probe)
    if not bool(torch.isfinite(probes).all()):
        raise NonFiniteError(f"the keys of layer {layer} are not finite: load the model in float32 or bfloat16")
    mean, std = key_box(probes)
    far = farthest(probes, mean, std)
    widest = float(far.max())
    if not widest:
        raise InputError("the keys of all texts of the forget set are the same: give different texts")
    if scale is None:
        if held_out is None:
            raise InputError("give a scale, or held-out texts of the skill to choose it on")
        scale = scale_for(farthest(keys(held_out, probe), mean, std) / widest, recall)
    refusal = keys(steer, "text").mean(0).cpu() if response == "steer" and steer is not None else None
    share = float((far <= scale * widest).float().mean())
    # In so many dimensions a box only a little smaller than the widest leaves most texts outside.
    (_log.warning if share < 0.5 else _log.info)(
        "the detector of layer %d has scale %.3g, k* %.3g: it recognises %.0f%% of the %d texts it was made from",
        *(layer % count, scale, widest, 100 * share, len(probes)),
    )
    return KeySpaceDetector(
        layer % count, mean.cpu(), std.cpu(), widest, scale, response, min(ends, default=None), refusal
    )
