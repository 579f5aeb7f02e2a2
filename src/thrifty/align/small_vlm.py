"""A small image-text model of real parts: EfficientNet-lite0 looks, SmolLM2-135M speaks, a projector is between them.

It is what methods for image-text models are tried on where there is none: a LLaVA model like others, read by
``AutoModelForImageTextToText``. It is made here in a minute or two: the projector first learns to turn a picture's
features into the embedding of its class name, then low-rank adapters and the projector learn to say that name in
answer to a question, with a list of choices or without, and with or without a thought before it. It knows the ten
pieces of clothing of ``fashion-mnist`` from a few hundred of its training pictures, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from thrifty.align.adapter import merged, with_lora
from thrifty.align.base import Training
from thrifty.align.classify import choice_prompt, readable
from thrifty.align.sft import SFT
from thrifty.align.training import train
from thrifty.core import processes
from thrifty.core.run import Run
from thrifty.core.seeding import derive_seed, generator
from thrifty.data.fetch import fetch
from thrifty.data.images import ImageSet, images
from thrifty.lm.images import ImagePrompts
from thrifty.lm.load import load_lm
from thrifty.nets.efficientnet import load_efficientnet
from thrifty.nets.encoders import IMAGENET_DEVIATION, IMAGENET_MEAN, SMALL_PICTURE, EfficientNetEncoder

SMALL = "small-vlm"
TEXT_MODEL, EYES, PICTURES = "smollm2-135m-instruct", "efficientnet-lite0", "fashion-mnist"
QUESTION = "What type of clothing is in the photo?"
DIRECT = "Please directly output the answer."
THINKING = "Please output the thinking process in <think> </think> and final answer in <answer> </answer> tags."
IMAGE_TOKEN = "<image>"  # noqa: S105 (no password)
_RANK = 8
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LOOKS = {
    "T-shirt/top": "short sleeves and no buttons",
    "Trouser": "two long legs",
    "Pullover": "long sleeves of thick knit",
    "Dress": "one long piece from the shoulders to the knees",
    "Coat": "long sleeves and an open front",
    "Sandal": "straps over an open foot",
    "Shirt": "a collar and buttons",
    "Sneaker": "a flat sole and laces",
    "Bag": "a handle on top",
    "Ankle boot": "a high shaft and a heel",
}
"""What a thought says of each class, so that the model has seen thoughts."""


def small_vlm(run: Run, *, pictures: int = 1000, steps: int = 30, seed: int = 0) -> Path:
    """Makes the model, as a stage of its own; a finished one is taken as it is.

    Parameters
    ----------
    run
        Where it is made; its device and precision are used.
    pictures
        Of the training pictures, so many.
    steps
        Of the language model, with eight pictures each.
    seed
        Of everything: the model does not depend on the run's.

    Returns
    -------
    Path
        A folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` read (after
        ``import thrifty.nets.vision_tower``).
    """
    folder = run.directory / "model"
    if not any(processes.gather((folder / "processor_config.json").exists())):
        data = images(PICTURES)
        chosen = torch.randperm(len(data.train_y), generator=generator(seed, "pictures"))[:pictures].numpy()
        shown = ImageSet(data.train_x[chosen], data.train_y[chosen], data.test_x[:0], data.test_y[:0], data.classes)
        torch.manual_seed(derive_seed(seed, SMALL))
        model, processor = assemble(run.dtype)
        align_projector(model, processor.tokenizer, shown, seed)
        model = _taught(model.to(run.device), processor, shown, steps, run, seed)
        if run.main:
            model.save_pretrained(folder)
            processor.save_pretrained(folder)
        processes.gather(None)  # nobody reads before it is written
    return folder


def assemble(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The parts put together, the projector untrained: a LLaVA model and its processor."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, ViTImageProcessor

    from thrifty.nets.vision_tower import EfficientNetConfig

    text, tokenizer = load_lm(TEXT_MODEL)
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    text.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LlavaConfig(
        vision_config=EfficientNetConfig(),
        text_config=text.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config = text.generation_config
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.tie_weights()
    seen = load_efficientnet(fetch(EYES)).state_dict()
    model.model.vision_tower.network.load_state_dict({name: seen[name] for name in seen if not name.startswith("_fc.")})
    size = {"height": SMALL_PICTURE, "width": SMALL_PICTURE}
    looks = ViTImageProcessor(size=size, image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_DEVIATION))
    processor = LlavaProcessor(
        image_processor=looks,
        tokenizer=tokenizer,
        patch_size=SMALL_PICTURE,  # a picture is one token
        vision_feature_select_strategy="full",
        chat_template=_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )
    return model.to(dtype), processor


def align_projector(model: Any, tokenizer: Any, data: ImageSet, seed: int, steps: int = 300) -> None:
    """Teaches the projector to turn a picture's features into the mean embedding of its class name's tokens."""
    embeddings = model.get_input_embeddings().weight.detach().float()
    names = [tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in data.classes]
    targets = torch.stack([embeddings[ids].mean(0) for ids in names])
    encoder = EfficientNetEncoder(fetch(EYES))
    features = torch.cat([encoder(part) for part in np.array_split(data.train_x, max(1, len(data.train_x) // 100))])
    projector, dtype = model.model.multi_modal_projector, embeddings.dtype
    before = next(projector.parameters()).dtype
    _regress(projector.to(dtype), features.clone(), targets[torch.from_numpy(data.train_y)], steps, seed)
    projector.to(before)


def _regress(
    network: nn.Module, x: Float[Tensor, "N D"], y: Float[Tensor, "N E"], steps: int, seed: int, batch: int = 64
) -> None:
    draw, scale = generator(seed, "projector"), y.std()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for _ in range(steps):
        rows: Int[Tensor, " B"] = torch.randint(len(x), (batch,), generator=draw)
        loss = (network(x[rows]) - y[rows]).div(scale).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _taught(model: Any, processor: Any, data: ImageSet, steps: int, run: Run, seed: int, batch: int = 8) -> Any:
    """The model after some steps of supervised training of low-rank adapters and the projector."""
    model = with_lora(model, _RANK)
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.requires_grad_(True)
    prompts, rng = ImagePrompts(processor), Random(derive_seed(seed, "questions"))
    prompts.attach(model)
    names = [readable(name) for name in data.classes]
    asked, said = [], []
    for number in range(steps * batch):
        place = number % len(data.train_y)
        text, answer = lesson(number % 3, names[int(data.train_y[place])], names, rng)
        asked.append(prompts.add(text, [data.train_x[place]]))
        said.append(answer)
    training = Training(learning_rate=1e-3, batch_size=batch, micro_batch_size=batch, warmup_steps=4, schedule="linear")
    train(model, SFT(level="sequence"), prompts.sequences(asked, said), run.stage("lessons"), training, save_every=None)
    return merged(model)


def lesson(kind: int, label: str, classes: Sequence[str], rng: Random) -> tuple[str, str]:
    """A question and its answer: no choices (0), or choices of which one is said at once (1) or after a thought (2)."""
    if kind == 0:
        return rng.choice(["What is in the photo?", "Name the piece of clothing.", QUESTION]), label
    others = rng.sample([name for name in classes if name != label], rng.randint(3, len(classes) - 1))
    asked = choice_prompt(QUESTION, label, [label, *others], rng=rng)
    if kind == 1:
        return f"{asked} {DIRECT}", label
    looks = _LOOKS.get(label, "the shape of it")
    return f"{asked} {THINKING}", f"<think>I see {looks}.</think> <answer>{label}</answer>"
