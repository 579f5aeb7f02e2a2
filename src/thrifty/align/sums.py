"""A decoder of two layers that reads and speaks sums in words, for claims that compare many ways to tune one.

Every number is a word of its own, so that a few hundred steps teach what larger models know from elsewhere. Tokenizer,
templates, losses, training and sampling are those that large models get.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

LARGEST = 99
END, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"
_WORDS = (PAD, END, UNKNOWN, "User:", "Assistant:", "GPT4", "GPT3", "+", "=", "so", "um", "maybe")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].title() + ': ' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def sums_tokenizer() -> Any:
    """A tokenizer whose words are numbers up to 99 and what is said around them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*_WORDS, *map(str, range(LARGEST + 1))]
    core = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def sums_decoder(tokenizer: Any, hidden: int = 64, layers: int = 2) -> PreTrainedModel:
    """A decoder for :func:`sums_tokenizer`, with weights drawn from the global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def split(problems: Sequence[tuple[int, ...]], draw: torch.Generator, *sizes: int) -> list[list[tuple[int, ...]]]:
    """Shuffled problems in parts of the given sizes, and the rest."""
    order = [problems[place] for place in torch.randperm(len(problems), generator=draw).tolist()]
    parts, start = [], 0
    for size in sizes:
        parts.append(order[start : start + size])
        start += size
    return [*parts, order[start:]]


def asked(problem: Sequence[int]) -> str:
    """``7 + 12 + 3``."""
    return " + ".join(map(str, problem))


def last_number(text: str) -> int | None:
    """The last number that was said, or None."""
    numbers = [word for word in text.split() if word.isdecimal()]
    return int(numbers[-1]) if numbers else None


def right(problems: Sequence[Sequence[int]], texts: Sequence[str]) -> float:
    """Share of right answers; each problem may have several, one after the other."""
    each = len(texts) // len(problems)
    wanted = [sum(problem) for problem in problems for _ in range(each)]
    return sum(last_number(text) == number for text, number in zip(texts, wanted, strict=True)) / len(texts)
