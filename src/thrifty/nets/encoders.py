"""Frozen encoders: pretrained networks that turn pictures or texts into feature vectors, each with its own scaling."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.data.fetch import fetch
from thrifty.nets.efficientnet import EfficientNetLite0, is_efficientnet, load_efficientnet
from thrifty.nets.pictures import resized, rgb_batches

log = logging.getLogger("thrifty")
IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL_PICTURE = 96


class Encoder(Protocol):
    """Anything that maps N raw inputs to features ``[N, D]``, array or tensor.

    An encoder with an attribute ``identity`` (a string that changes whenever its features would) has its features
    cached by :func:`thrifty.nets.extraction.extract`.
    """

    def __call__(self, inputs: Any, /) -> Any: ...


def weights_digest(module: nn.Module) -> str:
    """Sixteen hexadecimal digits that change with any weight or buffer of a module."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if isinstance(tensor, Tensor):
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; every part's mode is as before after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part, training in modes:
            part.training = training


class PixelEncoder:
    """The pixels themselves, 0 to 1, as one vector: for data so simple that it needs no network."""

    identity = "pixels"

    def __call__(self, inputs: Any) -> Float[Tensor, "N D"]:
        batches = rgb_batches(inputs)
        if len(batches) > 1:
            raise InputError("the encoder 'pixels' needs pictures of one size: resize them, or use another encoder")
        batch = batches[0]
        # Grey pictures are views of one channel, repeated without a copy.
        channels = batch[..., :1] if batch.strides[-1] == 0 else batch
        return torch.from_numpy(np.require(channels, requirements=["C", "W"])).flatten(1).float() / 255


class EfficientNetEncoder:
    """EfficientNet-lite0's 1280 pooled features of pictures.

    Parameters
    ----------
    folder
        Holds the weights (see :func:`thrifty.nets.efficientnet.load_efficientnet`).
    image_size
        Pixels a side that pictures are resampled to. It was trained with 224; 96 is enough for small pictures and five
        times as fast.
    device, dtype
        Where and in what precision it computes.
    """

    def __init__(
        self,
        folder: Path,
        image_size: int = SMALL_PICTURE,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if image_size < 32:
            raise InputError(f"EfficientNet-lite0 needs pictures of at least 32 pixels a side, not {image_size}")
        self.image_size, self.device, self.dtype = image_size, torch.device(device), dtype
        network = load_efficientnet(folder)
        self.identity = f"efficientnet-lite0 {image_size} {dtype} {weights_digest(network)}"
        fused = _without_norms(network)
        self.network = fused.to(self.device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
        self.deviation = torch.tensor(IMAGENET_DEVIATION).view(3, 1, 1)

    def __call__(self, inputs: Any) -> Float[Tensor, "N 1280"]:
        images = (resized(inputs, self.image_size) - self.mean) / self.deviation
        images = images.to(self.device, self.dtype, memory_format=torch.channels_last)
        with evaluating(self.network):
            return self.network.features(images)


def _without_norms(network: EfficientNetLite0) -> EfficientNetLite0:
    """Folds each normalisation into the convolution before it: the same function, half as long on a CPU."""
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    for part in [network, *network._blocks]:
        for convolution, norm in (
            ("_conv_stem", "_bn0"),
            ("_conv_head", "_bn1"),
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        ):
            if isinstance(getattr(part, convolution, None), nn.Conv2d):
                fused = fuse_conv_bn_eval(getattr(part, convolution), getattr(part, norm))
                setattr(part, convolution, fused)
                setattr(part, norm, nn.Identity())
    return network


class VisionEncoder:
    """A Hugging Face vision model with its own image processor.

    Parameters
    ----------
    folder
        A model folder with ``preprocessor_config.json``.
    device, dtype
        Where and in what precision it computes.
    pooling
        cls: the first token after the last layer norm; mean: the mean over tokens or pixels; auto: the projected
        image features of a model that has them (CLIP), else the first token, or the mean of a map.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        pooling: Literal["auto", "cls", "mean"] = "auto",
    ) -> None:
        from transformers import AutoImageProcessor, AutoModel

        self.device, self.pooling = torch.device(device), pooling
        self.processor: Any = AutoImageProcessor.from_pretrained(folder)
        self.model: Any = AutoModel.from_pretrained(folder, dtype=dtype).to(self.device).eval()

    @functools.cached_property
    def identity(self) -> str:
        """Changes with the weights, the processor's settings and the pooling."""
        settings = json.dumps(self.processor.to_dict(), sort_keys=True, default=str)
        return f"vision {self.model.dtype} {self.pooling} {weights_digest(self.model)} {settings}"

    def __call__(self, inputs: Any) -> Float[Tensor, "N D"]:
        pictures = [picture for batch in rgb_batches(inputs) for picture in batch]
        processed = self.processor(images=pictures, return_tensors="pt", input_data_format="channels_last")
        pixels = processed["pixel_values"].to(self.device, self.model.dtype)
        with evaluating(self.model):
            if self.pooling == "auto" and hasattr(self.model, "get_image_features"):
                found = self.model.get_image_features(pixel_values=pixels)
                return found if isinstance(found, Tensor) else cast(Tensor, found.pooler_output)
            hidden: Tensor = self.model(pixel_values=pixels).last_hidden_state
        if hidden.ndim == 4:
            return hidden.mean((2, 3))
        return hidden.mean(1) if self.pooling == "mean" else hidden[:, 0]


class TextEncoder:
    """A Hugging Face text model with its own tokenizer: the mean over a text's tokens.

    Parameters
    ----------
    folder
        A model folder with a tokenizer. One made by sentence-transformers that says so gives vectors of length one.
    device, dtype
        Where and in what precision it computes.
    max_tokens
        Longer texts are cut; at most what the model was made for.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_tokens: int = 256,
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.device = torch.device(device)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model: Any = AutoModel.from_pretrained(folder, dtype=dtype).to(self.device).eval()
        places = getattr(self.model.config, "max_position_embeddings", max_tokens)
        self.max_tokens = min(max_tokens, self.tokenizer.model_max_length, places)
        modules = folder / "modules.json"
        self.normalises = modules.exists() and "Normalize" in modules.read_text(encoding="utf-8")

    @functools.cached_property
    def identity(self) -> str:
        """Changes with the weights, the vocabulary and the settings."""
        vocabulary = hashlib.blake2b(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode(), digest_size=8)
        weights = weights_digest(self.model)
        return f"text {self.model.dtype} {self.max_tokens} {self.normalises} {weights} {vocabulary.hexdigest()}"

    def __call__(self, inputs: Any) -> Float[Tensor, "N D"]:
        texts = list(inputs)
        for number, text in enumerate(texts):
            if not isinstance(text, str):
                raise InputError(f"text {number} is {text!r}, expected a string (a missing value?)")
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        with evaluating(self.model):
            hidden = self.model(**tokens).last_hidden_state.float()
            mask = tokens["attention_mask"][..., None].to(hidden)
            mean: Tensor = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            return nn.functional.normalize(mean, dim=1) if self.normalises else mean


class ModuleEncoder:
    """A PyTorch module of the user's, in evaluation mode and without gradients while it is asked.

    Parameters
    ----------
    module
        Maps what ``prepare`` returns to ``[N, D]``; more dimensions are flattened.
    prepare
        Turns a batch of raw inputs into the module's input; ``torch.as_tensor`` unless given, which is not cached
        because nothing is known of it.
    """

    def __init__(self, module: nn.Module, prepare: Callable[[Any], Any] | None = None) -> None:
        if module.training:
            warnings.warn(
                "the encoder is in training mode: it is put into evaluation mode while it gives features "
                "(dropout and batch statistics would make them random)",
                UserWarning,
                stacklevel=2,
            )
        self.module, self.prepare = module, prepare

    @property
    def identity(self) -> str | None:
        """Changes with the weights and the architecture; nothing where inputs are prepared in an unknown way."""
        return None if self.prepare is not None else f"module {self.module} {weights_digest(self.module)}"

    def __call__(self, inputs: Any) -> Float[Tensor, "N D"]:
        first = next(self.module.parameters(), torch.empty(0))
        if self.prepare is not None:
            prepared = self.prepare(inputs)
        else:
            tensor = inputs if isinstance(inputs, Tensor) else torch.as_tensor(np.asarray(inputs))
            prepared = tensor.to(first.device, first.dtype)
        with evaluating(self.module):
            features: Tensor = self.module(prepared)
        return features.flatten(1)


def load_encoder(
    name: str | Path | nn.Module | Encoder,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    image_size: int = SMALL_PICTURE,
) -> Encoder:
    """The encoder of that name.

    Parameters
    ----------
    name
        ``pixels``; ``efficientnet-lite0`` (pictures); ``minilm`` (texts); the folder or hub id of a Hugging Face vision
        or text model, which brings its own preprocessing; a PyTorch module; or any callable, returned as it is.
    device, dtype
        Where and in what precision a named encoder computes.
    image_size
        Pixels a side for ``efficientnet-lite0``; other models know their own.

    Raises
    ------
    NotFoundError
        When there is no such model, or it can't be fetched.
    InputError
        When the folder holds neither an image processor nor a tokenizer.
    """
    if isinstance(name, nn.Module):
        return ModuleEncoder(name)
    if not isinstance(name, (str, Path)):
        return name
    if str(name) == "pixels":
        return PixelEncoder()
    folder = fetch(str(name))
    if is_efficientnet(folder):
        return EfficientNetEncoder(folder, image_size, device, dtype)
    try:
        if (folder / "preprocessor_config.json").exists():
            return VisionEncoder(folder, device, dtype)
        if (folder / "tokenizer.json").exists() or (folder / "tokenizer_config.json").exists():
            return TextEncoder(folder, device, dtype)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} can't be loaded as an encoder: {str(error).splitlines()[0]}") from error
    raise InputError(f"{name} is no encoder: its folder holds neither an image processor nor a tokenizer")
