"""Prompts with pictures on image-text models of a few thousand weights: what is seen, said, and how likely it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.lm.conftest import make_tokenizer
from torch import Tensor

from thrifty.core.errors import InputError
from thrifty.lm import picture_tokens as fast
from thrifty.lm.draw import Draw
from thrifty.lm.image_sampler import ImageTextSampler
from thrifty.lm.images import IMAGE_PROMPT, ImagePrompt, ImagePrompts
from thrifty.lm.load import is_vlm, load_vlm
from thrifty.lm.logps import token_logps
from thrifty.lm.sampler import Request
from thrifty.lm.sequences import Sequences

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {% for p in m.content %}"
    "{% if p.type == 'image' %}PICTURE {% else %}{{ p.text }}{% endif %}{% endfor %} <|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)
TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


def llava() -> tuple[Any, Any]:
    """A LLaVA model: to its decoder a picture is four vectors among the tokens."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        ViTImageProcessor,
    )

    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    torch.manual_seed(0)
    eyes = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(
        vision_config=eyes, text_config=LlamaConfig(vocab_size=len(tokenizer), **TEXT), image_seq_length=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=ViTImageProcessor(size={"height": 8, "width": 8}), tokenizer=tokenizer, patch_size=4,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("PICTURE", "<image>"),
    )  # fmt: skip
    return LlavaForConditionalGeneration(config).eval(), processor


class QwenProcessor:
    """What Qwen2-VL's processor does, without the library for videos that it wants."""

    def __init__(self, tokenizer: Any) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.tokenizer = tokenizer
        self.chat_template = TEMPLATE.replace("PICTURE", "<|seen|> <|picture|> <|over|>")
        self.looks = Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, min_pixels=64, max_pixels=1024
        )

    def apply_chat_template(self, messages: Any, **options: Any) -> str:
        return str(self.tokenizer.apply_chat_template(messages, chat_template=self.chat_template, **options))

    def __call__(self, text: list[str], images: Any = None, **_: Any) -> dict[str, Tensor]:
        made: dict[str, Tensor] = dict(self.looks(images=images, return_tensors="pt")) if images else {}
        said = text[0]
        for grid in made.get("image_grid_thw", ()):
            said = said.replace("<|picture|>", " ".join(["@"] * (int(grid.prod()) // 4)), 1)
        found = self.tokenizer([said.replace("@", "<|picture|>")], return_tensors="pt", add_special_tokens=False)
        ids = found["input_ids"]
        kinds = (ids == self.tokenizer.convert_tokens_to_ids("<|picture|>")).int()
        return made | {"input_ids": ids, "attention_mask": found["attention_mask"], "mm_token_type_ids": kinds}


def qwen() -> tuple[Any, Any]:
    """A Qwen2-VL model: its pictures have as many tokens as their size asks for, and positions in two dimensions."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<|seen|>", "<|over|>", "<|picture|>"], special_tokens=True)
    numbers = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("seen", "over", "picture")}
    torch.manual_seed(0)
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config={**TEXT, "vocab_size": len(tokenizer), "rope_parameters": rope},
        vision_config={
            "depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2,
            "temporal_patch_size": 2, "mlp_ratio": 2,
        },
        image_token_id=numbers["picture"], vision_start_token_id=numbers["seen"], vision_end_token_id=numbers["over"],
        video_token_id=len(tokenizer) + 1,
    )  # fmt: skip
    return Qwen2VLForConditionalGeneration(config).eval(), QwenProcessor(tokenizer)


def pictures(count: int) -> list[Any]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 255, (8 + 8 * (i % 3), 16, 3), dtype=np.uint8) for i in range(count)]


def asked(model: Any, processor: Any) -> tuple[ImagePrompts, list[ImagePrompt]]:
    store = ImagePrompts(processor)
    store.attach(model)
    texts = ["what is the", "what is the sum of", "what is the sum", "a cat"]
    return store, [store.add(text, [picture]) for text, picture in zip(texts, pictures(4), strict=True)]


def by_hand(model: Any, store: ImagePrompts, answers: Sequences, row: int) -> Tensor:
    """A row's log-probabilities from the model's own logits, the row alone and unpadded."""
    length = int(answers.lengths[row])
    ids = answers.input_ids[row : row + 1, :length]
    inputs = dict(store[int(answers[IMAGE_PROMPT][row])].inputs)
    if "mm_token_type_ids" in inputs:
        kinds = inputs["mm_token_type_ids"]
        inputs["mm_token_type_ids"] = torch.nn.functional.pad(kinds, (0, length - kinds.shape[1]))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits[0]
    found = logits[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return torch.cat([found.new_zeros(1), found]) * answers.response_mask[row, :length]


@pytest.fixture(params=[llava, qwen], ids=["llava", "qwen2-vl"])
def both(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    made: tuple[Any, Any] = request.param()
    return made


def test_samples_have_the_probabilities_that_the_model_gives_them(both: tuple[Any, Any]) -> None:
    model, processor = both
    store, prompts = asked(model, processor)
    answers = ImageTextSampler(model, processor.tokenizer).sample(
        prompts, Request(3, max_new_tokens=5, draw=Draw(), seed=1)
    )
    assert answers["group"].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert answers[IMAGE_PROMPT].tolist() == answers["group"].tolist()
    logps = token_logps(model, answers)
    torch.testing.assert_close(logps, answers["behaviour_logps"], atol=1e-5, rtol=0)
    picture = model.config.image_token_id
    for row in range(len(answers)):
        if not bool(((answers.input_ids[row] == picture) & answers.response_mask[row]).any()):
            expected = by_hand(model, store, answers, row)
            torch.testing.assert_close(logps[row, : len(expected)].detach(), expected, atol=1e-5, rtol=0)


def test_the_picture_matters(both: tuple[Any, Any]) -> None:
    model, processor = both
    store = ImagePrompts(processor)
    store.attach(model)
    black, white = (np.full((16, 16, 3), level, dtype=np.uint8) for level in (0, 255))
    prompts = [store.add("what is it", [picture]) for picture in (black, white)]
    logps = token_logps(model, store.sequences(prompts, ["a cat", "a cat"]))
    assert (logps[0] - logps[1]).abs().max() > 1e-3


def test_llava_s_pictures_are_tokens_and_qwen_s_are_more() -> None:
    for make, expected in ((llava, True), (qwen, False)):
        model, processor = make()
        store, prompts = asked(model, processor)
        found = fast.picture_tokens(model, store, [prompt.number for prompt in prompts])
        assert (found is not None) == expected
        assert fast._allowed.get(model) == expected
        if found is not None:
            assert len(found.vectors) == 4 * 4  # four vectors a picture
            further = [token for token in found.prompts[0] if token >= found.vocabulary]
            assert further == [found.vocabulary + place for place in range(4)]


def test_the_fast_way_and_the_model_s_own_agree_in_values_gradients_and_samples() -> None:
    model, processor = llava()
    store, prompts = asked(model, processor)
    rows = store.sequences([prompts[0], prompts[0], prompts[1]], ["two", "two three", "cat"])
    sampler = ImageTextSampler(model, processor.tokenizer)
    found = []
    for allowed in (True, False):
        fast._allowed.put(model, allowed)
        model.zero_grad()
        logps = token_logps(model, rows)
        (logps * torch.arange(1, 4)[:, None]).sum().backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        answers = sampler.sample(prompts, Request(2, max_new_tokens=4, draw=Draw(0.8, top_k=9), seed=3))
        found.append((logps.detach(), gradients, answers))
    (left, left_gradients, left_answers), (right, right_gradients, right_answers) = found
    torch.testing.assert_close(left, right, atol=1e-5, rtol=0)
    assert any("vision_tower" in name for name in left_gradients), "what makes vectors of pictures is trained"
    assert set(left_gradients) == set(right_gradients)
    for name, gradient in left_gradients.items():
        torch.testing.assert_close(gradient, right_gradients[name], atol=2e-4, rtol=1e-3)
    assert torch.equal(left_answers.input_ids, right_answers.input_ids)
    torch.testing.assert_close(left_answers["behaviour_logps"], right_answers["behaviour_logps"], atol=1e-5, rtol=0)


def test_a_model_whose_logits_are_more_than_its_head_s_is_read_by_itself() -> None:
    model, processor = llava()
    store, prompts = asked(model, processor)
    answers = store.sequences(prompts, ["two"] * 4)
    plain = token_logps(model, answers)

    class Doubled(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            found = super().forward(*args, **kwargs)
            found.logits = found.logits * 2
            return found

    other = copy.deepcopy(model)
    other.__class__ = Doubled
    found, entropy = token_logps(other, answers, entropy=True)
    for row in range(4):
        expected = by_hand(other, store, answers, row)
        torch.testing.assert_close(found[row, : len(expected)].detach(), expected, atol=1e-5, rtol=0)
    assert (found - plain).abs().max() > 1e-3
    assert entropy[answers.response_mask].min() > 0
    found.sum().backward()
    assert other.lm_head.weight.grad is not None


def test_a_part_of_the_prompts_gets_the_same_answers(both: tuple[Any, Any]) -> None:
    model, processor = both
    _, prompts = asked(model, processor)
    sampler = ImageTextSampler(model, processor.tokenizer, batch_size=2)
    whole = sampler.sample(prompts, Request(2, max_new_tokens=4, draw=Draw(), seed=5))
    part = sampler.sample([prompts[2]], Request(2, max_new_tokens=4, draw=Draw(), seed=5, numbering=(4, [2])))
    expected = whole.select(whole["group"] == 2).trim()
    assert torch.equal(part.input_ids, expected.input_ids)


def test_own_settings_of_generation_do_not_change_what_is_drawn() -> None:
    model, processor = qwen()
    _, prompts = asked(model, processor)
    sampler = ImageTextSampler(model, processor.tokenizer)
    plain = sampler.sample(prompts, Request(2, max_new_tokens=5, draw=Draw(), seed=2))
    model.generation_config.repetition_penalty = 5.0
    model.generation_config.temperature = 0.1
    again = sampler.sample(prompts, Request(2, max_new_tokens=5, draw=Draw(), seed=2))
    assert torch.equal(plain.input_ids, again.input_ids)
    assert model.generation_config.repetition_penalty == 5.0


def test_several_pictures_or_none() -> None:
    model, processor = llava()
    store = ImagePrompts(processor)
    store.attach(model)
    one, two, _, _ = pictures(4)
    prompts = [store.add("a cat", [one, two]), store.add("a cat", []), store.add("a cat", [two])]
    rows = store.sequences(prompts, ["two", "two", "two"])
    logps = token_logps(model, rows)
    for row in range(3):
        expected = by_hand(model, store, rows, row)
        torch.testing.assert_close(logps[row, : len(expected)].detach(), expected, atol=1e-5, rtol=0)
    answers = ImageTextSampler(model, processor.tokenizer).sample(
        prompts, Request(1, max_new_tokens=3, draw=Draw(), seed=0)
    )
    assert answers["group"].tolist() == [0, 1, 2]


def test_an_answer_is_what_the_model_would_say() -> None:
    model, processor = llava()
    store, prompts = asked(model, processor)
    rows = store.sequences(prompts[:1], ["two three"])
    said = processor.tokenizer.decode(rows.input_ids[0])
    assert said == "<|user|> <image> <image> <image> <image> what is the <|end|> <|assistant|> two three <|end|>"
    assert rows.texts(processor.tokenizer, keep_special=True) == ["two three <|end|>"]


def test_without_a_chat_template_the_picture_stands_before_the_text() -> None:
    _, processor = llava()
    processor.chat_template = None
    processor.tokenizer.chat_template = None
    store = ImagePrompts(processor)
    prompt = store.add(" what is the", [pictures(1)[0]])
    rows = store.sequences([prompt], ["two"])
    assert processor.tokenizer.decode(rows.input_ids[0]).split() == ["<image>"] * 4 + [
        "what",
        "is",
        "the",
        "two",
        "<|end|>",
    ]


def test_a_copied_model_has_seen_the_same_and_adapters_do_not_hide_it() -> None:
    from thrifty.align.adapter import with_lora

    model, processor = llava()
    store, prompts = asked(model, processor)
    rows = store.sequences(prompts, ["two"] * 4)
    expected = token_logps(model, rows).detach()
    torch.testing.assert_close(token_logps(copy.deepcopy(model), rows).detach(), expected)
    adapted = with_lora(model, 2)
    torch.testing.assert_close(token_logps(adapted, rows).detach(), expected, atol=1e-6, rtol=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    changed = token_logps(adapted, rows)
    assert (changed.detach() - expected).abs().max() > 0.1
    changed.sum().backward()
    assert any(p.grad is not None and "vision_tower" in name for name, p in adapted.named_parameters())


def test_saved_models_are_loaded_by_the_classes_of_transformers(tmp_path: Path) -> None:
    model, processor = llava()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert is_vlm(tmp_path)
    again, reader = load_vlm(tmp_path)
    store, prompts = asked(model, processor)
    rows = store.sequences(prompts, ["two"] * 4)
    ImagePrompts(reader).attach(again)
    with pytest.raises(InputError, match="no prompt 0 among the 0"):
        token_logps(again, rows)
    store.attach(again)
    torch.testing.assert_close(token_logps(again, rows), token_logps(model, rows))


def test_what_is_no_image_text_model_is_said(tmp_path: Path) -> None:
    assert not is_vlm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(InputError, match="is no image-text model"):
        load_vlm(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(InputError, match=r"holds no \*\.safetensors"):
        load_vlm(tmp_path)


def test_pictures_that_nobody_attached_are_asked_for() -> None:
    model, processor = llava()
    other, _ = llava()
    store, prompts = asked(model, processor)
    rows = store.sequences(prompts, ["two"] * 4)
    with pytest.raises(InputError, match=r"none were attached to this LlavaForConditionalGeneration"):
        token_logps(other, rows)
    sampler = ImageTextSampler(model, processor.tokenizer)
    with pytest.raises(InputError, match="'what' is no prompt of an ImagePrompts"):
        sampler.sample(["what"], Request(1, max_new_tokens=2, draw=Draw(), seed=0))  # type: ignore[list-item]
    with pytest.raises(InputError, match="there are no prompts"):
        sampler.sample([], Request(1, max_new_tokens=2, draw=Draw(), seed=0))
