"""A tokenizer and language models of a few thousand parameters, made here and downloaded from nowhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)  # two threads on products this small wait for each other most of the time

VOCABULARY = 97
WORDS = "what is the sum of one two three four five six seven plus minus a cat dog says hello there how are you".split()  # noqa: SIM905

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


def make_tokenizer(*, template: str | None = TEMPLATE, bos: bool = False) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|end|>", "<s>", "<unk>", "<|user|>", "<|assistant|>", "<|system|>", "User", "Assistant", ":"]
    words = special + WORDS
    words += [f"w{number}" for number in range(VOCABULARY - len(words))]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(":", behavior="isolated")]
    )
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<|end|>",
        bos_token="<s>",
        unk_token="<unk>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<|system|>"],
    )
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def tokenizer() -> Any:
    return make_tokenizer()


def _sizes(**more: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
    return {**sizes, **more}


def _llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**_sizes(tie_word_embeddings=True)))


def _qwen2() -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**_sizes()))


def _mistral() -> Any:
    from transformers import MistralConfig, MistralForCausalLM

    return MistralForCausalLM(MistralConfig(**_sizes(sliding_window=5)))


def _gemma2() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return Gemma2ForCausalLM(
        Gemma2Config(**_sizes(head_dim=8, sliding_window=4, attn_logit_softcapping=5.0, final_logit_softcapping=3.0))
    )


def _cohere() -> Any:
    from transformers import CohereConfig, CohereForCausalLM

    return CohereForCausalLM(CohereConfig(**_sizes(logit_scale=0.3)))


def _granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    return GraniteForCausalLM(GraniteConfig(**_sizes(logits_scaling=2.0)))


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=2, eos_token_id=1
        )
    )


def _gpt_neox() -> Any:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = _sizes()
    del sizes["num_key_value_heads"]
    return GPTNeoXForCausalLM(GPTNeoXConfig(**sizes))


def _opt() -> Any:
    from transformers import OPTConfig, OPTForCausalLM

    sizes = _sizes(ffn_dim=48, word_embed_proj_dim=16)
    del sizes["num_key_value_heads"], sizes["intermediate_size"]
    return OPTForCausalLM(OPTConfig(**sizes))


def _bloom() -> Any:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(
        BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, bos_token_id=2, eos_token_id=1)
    )


def _mamba() -> Any:
    from transformers import MambaConfig, MambaForCausalLM

    return MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, bos_token_id=2, eos_token_id=1)
    )


FAST: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "cohere": _cohere,
    "granite": _granite,
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
}
PLAIN: dict[str, Callable[[], Any]] = {"bloom": _bloom, "mamba": _mamba}
MODELS = {**FAST, **PLAIN}


def make_model(name: str) -> Any:
    """A random model whose logits are far enough apart that rounding never changes the most likely token."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.manual_seed(sum(map(ord, name)))
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.08)
    return model


@pytest.fixture
def llama() -> Any:
    return make_model("llama")
