"""Small models with random weights of the architectures that the graph must understand, each with an example input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def randomised(model: nn.Module) -> nn.Module:
    """Norms and biases get values of their own, so that a mistake with them shows; evaluation mode."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim < 2:
                value.add_(torch.randn(value.shape, generator=draw) * 0.3)
            elif name.endswith("layer_scale_parameter"):
                value.fill_(0.5)
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.copy_(torch.randn(value.shape, generator=draw) * 0.3)
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=draw) + 0.5)
    return model.eval()


def picture(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(vocabulary: int = 50, length: int = 9) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, vocabulary, (2, length), generator=torch.Generator().manual_seed(1))}


class Residual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """The layout of the paper at a quarter of its width."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64, 128]
        self.layers = nn.Sequential(
            *[
                Residual(
                    widths[stage] if block == 0 else widths[stage + 1],
                    widths[stage + 1],
                    2 if stage and not block else 1,
                )
                for stage in range(4)
                for block in range(2)
            ]
        )
        self.fc = nn.Linear(128 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.layers(x), 2), 1))


class MobileBlock(nn.Module):
    """Expansion, depthwise filter, squeeze-and-excitation, projection; added to the input."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        middle = inside * 4
        self.expand, self.bn1 = nn.Conv2d(inside, middle, 1, bias=False), nn.BatchNorm2d(middle)
        self.filter = nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.squeeze, self.excite = nn.Conv2d(middle, 4, 1), nn.Conv2d(4, middle, 1)
        self.project, self.bn3 = nn.Conv2d(middle, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.adds = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.filter(y)))
        gate = self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        y = self.bn3(self.project(y * torch.sigmoid(gate)))
        return x + y if self.adds else y


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inside), nn.Conv2d(inside, 2 * growth, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))], 1)


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.Sequential(*[DenseLayer(8 + 6 * i, 6) for i in range(3)])
        self.bn, self.shrink = nn.BatchNorm2d(26), nn.Conv2d(26, 13, 1)
        self.block2 = nn.Sequential(*[DenseLayer(13 + 6 * i, 6) for i in range(2)])
        self.bn_last, self.fc = nn.BatchNorm2d(25), nn.Linear(25, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(self.shrink(F.relu(self.bn(self.block1(self.stem(x))))), 2)
        return self.fc(F.relu(self.bn_last(self.block2(x))).mean((2, 3)))


class UNet(nn.Module):
    """With group norm, attention at the bottom whose heads are a reshape, transposed convolutions and skips."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.down2 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(8, 32), nn.SiLU())
        self.heads = 4
        self.qkv, self.out = nn.Conv2d(32, 96, 1), nn.Conv2d(32, 32, 1)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.mix = nn.Sequential(nn.Conv2d(32, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.last = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(fine)
        b, _, h, w = coarse.shape
        q, k, v = self.qkv(coarse).reshape(b, 3, self.heads, -1, h * w).unbind(1)
        weights = torch.einsum("bhdi,bhdj->bhij", q, k).mul(0.35).softmax(-1)
        attended = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(b, -1, h, w)
        coarse = coarse + self.out(attended)
        return self.last(self.mix(torch.cat([self.up(coarse), fine], 1)))


class ShuffleUnit(nn.Module):
    """Half of the channels go through grouped convolutions, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.last = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, changed = F.relu(self.stem(x)).chunk(2, 1)
        y = torch.cat([kept, F.relu(self.grouped(changed))], 1)
        b, _, h, w = y.shape
        return self.last(y.view(b, 2, -1, h, w).transpose(1, 2).reshape(b, -1, h, w))


class GatedByChunk(nn.Module):
    """A gated feed-forward part with one matrix for gate and values."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.down = nn.Linear(8, 24), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return self.down(F.silu(gate) * value)


def _transformers(name: str, config: str, inputs: Callable[[], Any], **settings: Any) -> Callable[[], Any]:
    def make() -> Any:
        import transformers

        torch.manual_seed(0)
        return randomised(getattr(transformers, name)(getattr(transformers, config)(**settings))), inputs()

    return make


def _plain(kind: Callable[[], nn.Module], inputs: Callable[[], Any]) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        return randomised(kind()), inputs()

    return make


def _efficientnet() -> nn.Module:
    from thrifty.nets.efficientnet import EfficientNetLite0

    return EfficientNetLite0()


_VIT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "image_size": 32,
    "patch_size": 8, "num_labels": 10,
}  # fmt: skip
_LLAMA = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 8,
    "intermediate_size": 64, "vocab_size": 50, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
_BERT = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 50,
    "max_position_embeddings": 32,
}  # fmt: skip
ZOO: dict[str, Callable[[], Any]] = {
    "resnet-18": _plain(ResNet18, picture),
    "resnet": _transformers(
        "ResNetForImageClassification", "ResNetConfig", picture, embedding_size=8, hidden_sizes=[16, 32], depths=[2, 1],
        layer_type="bottleneck", num_labels=5,
    ),
    "mobile": _plain(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(), MobileBlock(8, 8, 1),
            MobileBlock(8, 12, 2), MobileBlock(12, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
        ),
        picture,
    ),
    "efficientnet-lite0": _plain(_efficientnet, picture),
    "convnext": _transformers(
        "ConvNextForImageClassification", "ConvNextConfig", picture, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1],
        num_labels=5,
    ),
    "densenet": _plain(DenseNet, lambda: picture(16)),
    "u-net": _plain(UNet, lambda: picture(16)),
    "shuffle": _plain(ShuffleUnit, lambda: picture(8)),
    "gated": _plain(GatedByChunk, lambda: torch.randn(4, 8)),
    "vit": _transformers("ViTForImageClassification", "ViTConfig", picture, **_VIT),
    "deit": _transformers("DeiTForImageClassification", "DeiTConfig", picture, **_VIT),
    "llama": _transformers("LlamaForCausalLM", "LlamaConfig", tokens, **_LLAMA),
    "qwen2": _transformers("Qwen2ForCausalLM", "Qwen2Config", tokens, **_LLAMA, tie_word_embeddings=True),
    "qwen3": _transformers("Qwen3ForCausalLM", "Qwen3Config", tokens, **_LLAMA),
    "gpt2": _transformers(
        "GPT2LMHeadModel", "GPT2Config", tokens, n_embd=48, n_layer=2, n_head=4, vocab_size=50, n_positions=32,
        bos_token_id=1, eos_token_id=2,
    ),
    "bert": _transformers("BertForSequenceClassification", "BertConfig", tokens, **_BERT),
}  # fmt: skip
