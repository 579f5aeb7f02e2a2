"""Small decoders that read and write characters: trained here in seconds, for claims that take whole recipes."""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<end>"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"


def character_tokenizer(characters: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single characters; a prompt is its text, an answer its text and an end.

    Parameters
    ----------
    characters
        The vocabulary.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {word: number for number, word in enumerate([END, *characters])}
    core = Tokenizer(models.WordLevel(words, unk_token=END))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(f"{END}|."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=END)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def small_decoder(tokenizer: Any, *, width: int = 64, layers: int = 2, context: int = 64) -> LlamaForCausalLM:
    """A decoder with random weights, from the global generator.

    Parameters
    ----------
    tokenizer
        Gives the vocabulary and the end.
    width, layers
        Size of the states, and how many layers; four heads.
    context
        Longest sequence in tokens.
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)
