"""EfficientNet-lite0 as the vision tower of an image-text model of transformers.

Importing this module makes its configuration known to transformers, so that a saved model with such a tower (any
LLaVA-like one) is read by ``AutoModelForImageTextToText.from_pretrained`` like others.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from thrifty.core.errors import InputError
from thrifty.nets.efficientnet import FEATURES, EfficientNetLite0

KIND = "efficientnet-lite0"


class EfficientNetConfig(PretrainedConfig):
    """The shape of an :class:`EfficientNetTower`.

    Parameters
    ----------
    grid
        Pieces that a picture is cut into on each side: it becomes ``grid`` squared vectors.
    hidden_size
        Numbers in each of them; that of the network.
    others
        What every configuration of transformers has.
    """

    model_type = KIND

    def __init__(self, grid: int = 1, hidden_size: int = FEATURES, **others: Any) -> None:
        if grid < 1 or hidden_size != FEATURES:
            raise InputError(f"grid must be at least 1 and hidden_size {FEATURES}, not {grid} and {hidden_size}")
        super().__init__(**others)
        self.grid, self.hidden_size = grid, hidden_size


class EfficientNetTower(PreTrainedModel):
    """The network without its classifier, and frozen: always in evaluation mode, and without gradients.

    Parameters
    ----------
    config
        Its shape.
    """

    config_class = EfficientNetConfig
    main_input_name = "pixel_values"
    base_model_prefix = "tower"

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__(config)
        self.network = EfficientNetLite0()
        del self.network._fc
        self.requires_grad_(False)
        self.post_init()
        self.eval()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own are kept: this network is never trained here."""

    def train(self, mode: bool = True) -> EfficientNetTower:  # noqa: ARG002 (the signature of every module)
        """Stays in evaluation mode, whatever is asked for: its normalisation must not follow a small batch."""
        return super().train(False)

    def forward(self, pixel_values: Float[Tensor, "B 3 H W"], **_: Any) -> BaseModelOutputWithPooling:
        """The map of features, averaged over each of the pieces ``[B, grid * grid, 1280]``, and over all.

        Parameters
        ----------
        pixel_values
            Pictures with ImageNet's mean and deviation taken out.
        """
        with torch.no_grad():
            found = self.network.maps(pixel_values.to(self.network._conv_stem.weight.dtype))
            pieces = nn.functional.adaptive_avg_pool2d(found, self.config.grid).flatten(2).transpose(1, 2)
        # Image-text models take the last of the hidden states, or choose among them.
        return BaseModelOutputWithPooling(
            last_hidden_state=pieces, pooler_output=pieces.mean(1), hidden_states=(pieces,)
        )


AutoConfig.register(KIND, EfficientNetConfig, exist_ok=True)
AutoModel.register(EfficientNetConfig, EfficientNetTower, exist_ok=True)
