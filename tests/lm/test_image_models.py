"""Families of image-text models that show pictures to their decoders in different ways, each a few thousand weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.lm.conftest import make_tokenizer

from thrifty.core.errors import InputError
from thrifty.lm import picture_tokens as fast
from thrifty.lm.draw import Draw
from thrifty.lm.image_sampler import ImageTextSampler
from thrifty.lm.images import ImagePrompt, ImagePrompts, Processed
from thrifty.lm.logps import token_logps
from thrifty.lm.sampler import Request

PICTURE = 100
TEXT = {
    "vocab_size": 110, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
EYES = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


class Given(ImagePrompts):
    """Prompts as a processor would have made them."""

    def __init__(self, made: list[Processed]) -> None:
        super().__init__(type("Processor", (), {"tokenizer": make_tokenizer(), "chat_template": None}))
        self.made = made
        for _ in made:
            self.add("")

    def _process(self, number: int) -> Processed:
        return self.made[number]


def prompts(before: list[int], inputs: Callable[[list[int]], dict[str, torch.Tensor]]) -> list[Processed]:
    rows = [before + list(range(10, 10 + length)) for length in (3, 5)]
    return [Processed(ids, inputs(ids)) for ids in rows]


def smolvlm() -> tuple[Any, list[Processed]]:
    from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

    config = SmolVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=EYES, image_token_id=PICTURE, scale_factor=2, pad_token_id=0
    )
    made = prompts(
        [4] + [PICTURE] * 4,
        lambda _: {
            "pixel_values": torch.randn(1, 1, 3, 16, 16),
            "pixel_attention_mask": torch.ones(1, 1, 16, 16, dtype=torch.long),
        },
    )
    return SmolVLMForConditionalGeneration(config), made


def gemma3() -> tuple[Any, list[Processed]]:
    """Its attention looks at a picture's tokens in both directions."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    config = Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "sliding_window": 16}, vision_config=EYES, image_token_index=PICTURE,
        mm_tokens_per_image=4, boi_token_index=101, eoi_token_index=102,
    )  # fmt: skip
    made = prompts(
        [4] + [PICTURE] * 4,
        lambda ids: {
            "pixel_values": torch.randn(1, 3, 16, 16),
            "token_type_ids": torch.tensor([[int(token == PICTURE) for token in ids]]),
        },
    )
    return Gemma3ForConditionalGeneration(config), made


def paligemma() -> tuple[Any, list[Processed]]:
    """Its attention looks at a whole prompt in both directions, and at an answer (kind 1) in one."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **TEXT, "head_dim": 8},
        vision_config={**EYES, "patch_size": 8, "projection_dim": 32}, image_token_index=PICTURE, projection_dim=32,
    )  # fmt: skip
    made = prompts(
        [PICTURE] * 4,
        lambda ids: {
            "pixel_values": torch.randn(1, 3, 16, 16),
            "token_type_ids": torch.zeros(1, len(ids), dtype=torch.long),
        },
    )
    return PaliGemmaForConditionalGeneration(config), made


def mllama() -> tuple[Any, list[Processed]]:
    """Its pictures are looked at through cross-attention, and a mask says by which tokens."""
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    config = MllamaConfig(
        vision_config={
            "hidden_size": 16, "attention_heads": 2, "num_hidden_layers": 2, "num_global_layers": 1,
            "intermediate_size": 16, "image_size": 16, "patch_size": 4, "max_num_tiles": 1,
            "supported_aspect_ratios": [[1, 1]], "intermediate_layers_indices": [0, 1], "vision_output_dim": 48,
        },
        text_config={
            **TEXT, "cross_attention_layers": [1], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}
        },
        image_token_index=PICTURE,
    )  # fmt: skip
    made = prompts(
        [4, PICTURE],
        lambda ids: {
            "pixel_values": torch.randn(1, 1, 1, 3, 16, 16),
            "aspect_ratio_ids": torch.ones(1, 1, dtype=torch.long),
            "aspect_ratio_mask": torch.ones(1, 1, 1, dtype=torch.long),
            "cross_attention_mask": torch.tensor([[[[int(place > 0)]] for place in range(len(ids))]]),
        },
    )
    return MllamaForConditionalGeneration(config), made


FAMILIES = {smolvlm: True, gemma3: False, paligemma: False, mllama: False}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_what_a_family_samples_has_the_probability_it_gives(family: Any) -> None:
    torch.manual_seed(0)
    model, made = family()
    model.eval()
    store = Given(made)
    store.attach(model)
    asked = [ImagePrompt("", number) for number in range(2)]
    answers = ImageTextSampler(model, store.tokenizer).sample(asked, Request(4, max_new_tokens=5, draw=Draw(), seed=1))
    assert (fast.picture_tokens(model, store, [0, 1]) is not None) == FAMILIES[family]
    plain = ~((answers.input_ids == PICTURE) & answers.response_mask).any(1)
    assert plain.sum() > 4
    logps = token_logps(model, answers)
    torch.testing.assert_close(logps[plain], answers["behaviour_logps"][plain], atol=1e-5, rtol=0)
    assert store.answer_kind == int(family is paligemma)


def test_a_model_that_looks_ahead_in_its_answers_is_refused() -> None:
    torch.manual_seed(0)
    model, made = paligemma()
    whole = type("Prompts", (Given,), {"answer_kind": property(lambda _: 0, lambda *_: None)})(made)
    whole.attach(model)
    model.eval()
    asked = [ImagePrompt("", number) for number in range(2)]
    answers = ImageTextSampler(model, whole.tokenizer).sample(asked, Request(2, max_new_tokens=5, draw=Draw(), seed=1))
    with pytest.raises(InputError, match="PaliGemmaForConditionalGeneration looks ahead in its answers"):
        token_logps(model, answers)
