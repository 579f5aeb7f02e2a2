"""The small decoder of every setting."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM


def small_decoder(vocabulary: int, end: int, *, pad: int | None = None, spread: float = 0.02) -> LlamaForCausalLM:
    """A decoder of two layers and 64 tokens of context that knows nothing, drawn from the global generator.

    Parameters
    ----------
    vocabulary
        How many tokens there are.
    end, pad
        The tokens that end an answer and fill the space behind it; the same one when ``pad`` is ``None``.
    spread
        Standard deviation of the weights.
    """
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end if pad is None else pad,
        initializer_range=spread,
    )
    return LlamaForCausalLM(config)


def decoder_for(tokenizer: Any) -> LlamaForCausalLM:
    """The same for the vocabulary of a tokenizer."""
    return small_decoder(len(tokenizer), tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
