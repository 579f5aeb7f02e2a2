"""A frozen vision transformer with learnt prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.nets.prefix_attention import PrefixPrompt, layers_of, prefixed


def tokens_of(encoder: nn.Module) -> tuple[Any, nn.ModuleList]:
    """The transformer of the transformers library inside of an encoder, and its layers.

    Raises
    ------
    InputError
        When there is none.
    """
    for part in encoder.modules():
        if hasattr(getattr(part, "config", None), "num_hidden_layers"):
            return part, layers_of(part)
    raise InputError(f"prompts are for vision transformers of transformers, and {type(encoder).__name__} holds none")


class PromptedViT(nn.Module):
    """A frozen encoder whose transformer attends to learnt prefixes as well.

    Parameters
    ----------
    encoder
        Gives the features of pictures; frozen, and in evaluation mode for good.
    lengths
        See :class:`thrifty.nets.prefix_attention.PrefixPrompt`.

    Raises
    ------
    InputError
        When it holds no transformer, or not the layers.
    """

    def __init__(self, encoder: nn.Module, lengths: Mapping[int, int]) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.vit, layers = tokens_of(encoder)
        if any(layer >= len(layers) for layer in lengths):
            raise InputError(f"the model has {len(layers)} layers, so there is no layer {max(lengths)} for prompts")
        self.prompts = PrefixPrompt(self.vit.config.hidden_size, lengths)

    def train(self, mode: bool = True) -> PromptedViT:
        """The encoder stays in evaluation mode."""
        super().train(mode)
        self.encoder.eval()
        return self

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        """The features of pictures in [-1, 1]."""
        with prefixed(self.vit, self.prompts.prefixes()):
            features: Tensor = self.encoder(x)
        return features.flatten(1)
