"""A small causal transformer over embedded tokens, with padding."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class CausalBlock(nn.Module):
    """Pre-norm self-attention and a two-layer perceptron, both residual, as in GPT-2 (with ReLU).

    Parameters
    ----------
    width
        Features of a token.
    heads
        Attention heads; divides ``width``.
    dropout
        On attention, on both residual branches.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Float[Tensor, "batch token width"], allowed: Bool[Tensor, "batch 1 token token"]
    ) -> Float[Tensor, "batch token width"]:
        """The tokens after this block; ``allowed`` says which (row) may look at which (column)."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(self.before_attention(x)).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=rate)
        seen = self.out(seen.transpose(1, 2).reshape(batch, tokens, width))
        x = x + functional.dropout(seen, self.dropout, self.training)
        return x + functional.dropout(self.mlp(self.before_mlp(x)), self.dropout, self.training)


class CausalTransformer(nn.Module):
    """A stack of :class:`CausalBlock` under a final layer norm.

    Parameters
    ----------
    width
        Features of a token.
    layers
        How many blocks.
    heads
        Attention heads of each.
    dropout
        As for :class:`CausalBlock`.
    """

    def __init__(self, width: int, layers: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(CausalBlock(width, heads, dropout) for _ in range(layers))
        self.final = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(
        self, x: Float[Tensor, "batch token width"], valid: Bool[Tensor, "batch token"]
    ) -> Float[Tensor, "batch token width"]:
        """The tokens after all blocks.

        Parameters
        ----------
        x
            Embedded tokens with their positions already added.
        valid
            False at pads, which no token sees.
        """
        tokens = x.shape[1]
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        # A pad sees itself: a row with nothing to look at would be NaN.
        itself = torch.eye(tokens, dtype=torch.bool, device=x.device)
        allowed = ((valid[:, None, :] & causal) | itself)[:, None]
        for block in self.blocks:
            x = block(x, allowed)
        return self.final(x)
