from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from thrifty.core.errors import DiskFullError, InputError, NotFoundError
from thrifty.nets import extraction
from thrifty.nets.efficientnet import EfficientNetLite0, SameConv2d, is_efficientnet, load_efficientnet
from thrifty.nets.encoders import (
    EfficientNetEncoder,
    ModuleEncoder,
    PixelEncoder,
    TextEncoder,
    VisionEncoder,
    evaluating,
    load_encoder,
    weights_digest,
)
from thrifty.nets.extraction import extract
from thrifty.nets.pictures import as_rgb, resized, rgb_batches

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
ImageProcessor = pytest.importorskip("transformers").ViTImageProcessorPil


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def lite0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    network, folder = EfficientNetLite0(), tmp_path_factory.mktemp("lite0")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr, operator]
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "efficientnet-lite0"}))
    return folder


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import ViTConfig, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(**small, image_size=16, patch_size=8, hidden_dropout_prob=0.5)).save_pretrained(folder)
    ImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "sat"]
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=8, max_position_embeddings=12, **small)).save_pretrained(folder)
    BertTokenizerFast(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    return folder


# --- EfficientNet-lite0


def test_network_has_the_published_names_and_size() -> None:
    network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    names = network.state_dict()
    assert {"_conv_stem.weight", "_blocks.0._depthwise_conv.weight", "_blocks.15._bn2.running_var"} <= names.keys()
    assert "_blocks.0._expand_conv.weight" not in names
    assert names["_blocks.1._expand_conv.weight"].shape == (96, 16, 1, 1)


@pytest.mark.parametrize("size", [7, 8])
def test_same_padding_puts_the_odd_pixel_at_the_end(size: int) -> None:
    convolution = SameConv2d(1, 1, 3, stride=2)
    x = torch.randn(1, 1, size, size)
    found = convolution(x)
    assert found.shape[-1] == -(-size // 2)
    before = 0 if size % 2 == 0 else 1
    padded = nn.functional.pad(x, (before, 1, before, 1))
    torch.testing.assert_close(found, nn.functional.conv2d(padded, convolution.weight, stride=2))


def test_folding_the_norms_leaves_the_features(lite0: Path) -> None:
    plain = load_efficientnet(lite0)
    encoder = load_encoder(lite0, image_size=32)
    assert isinstance(encoder, EfficientNetEncoder)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.network.features(x), plain.features(x), rtol=1e-3, atol=1e-4)
    assert encoder(PICTURES).shape == (5, 1280)


def test_features_feed_the_classifier(lite0: Path) -> None:
    network = load_efficientnet(lite0)
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(network(x), network._fc(network.features(x)))


def test_identity_changes_with_weights_and_size(lite0: Path, tmp_path: Path) -> None:
    first = EfficientNetEncoder(lite0, 32).identity
    assert EfficientNetEncoder(lite0, 32).identity == first
    assert EfficientNetEncoder(lite0, 64).identity != first
    state = load_file(lite0 / "model.safetensors")
    state["_bn0.bias"][0] += 1
    save_file(state, tmp_path / "model.safetensors")
    assert EfficientNetEncoder(tmp_path, 32).identity != first


def test_wrong_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"holds no model\.safetensors"):
        load_efficientnet(tmp_path)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not hold EfficientNet-lite0's weights"):
        load_efficientnet(tmp_path)
    assert not is_efficientnet(tmp_path)


def test_tiny_pictures_are_refused(lite0: Path) -> None:
    with pytest.raises(InputError, match="at least 32 pixels"):
        EfficientNetEncoder(lite0, 16)


@pytest.mark.network
@pytest.mark.slow
def test_published_weights_know_a_daisy(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_sample_image

    from thrifty.data.fetch import fetch

    monkeypatch.delenv("THRIFTY_CACHE")
    network = load_efficientnet(fetch("efficientnet-lite0"))
    picture = load_sample_image("flower.jpg")[:, 100:527]
    x = (resized(picture[None], 224) - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        assert network(x).argmax().item() == 985


# --- pictures


def test_pictures_of_every_kind_are_the_same(tmp_path: Path) -> None:
    colour = np.repeat(PICTURES[0][..., None], 3, axis=2)
    Image.fromarray(PICTURES[0]).save(tmp_path / "p.png")
    floats = torch.from_numpy(PICTURES[0] / 255)
    for picture in (PICTURES[0], colour, Image.fromarray(colour), tmp_path / "p.png", str(tmp_path / "p.png"), floats):
        assert np.array_equal(as_rgb(picture), colour)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "p.png")
    assert (as_rgb(tmp_path / "p.png") == 255).all()


def test_pictures_of_several_sizes_are_resized_one_by_one() -> None:
    mixed = [PICTURES[0], np.zeros((4, 6), np.uint8)]
    assert [batch.shape for batch in rgb_batches(mixed)] == [(1, 8, 8, 3), (1, 4, 6, 3)]
    found = resized(mixed, 8)
    assert found.shape == (2, 3, 8, 8)
    torch.testing.assert_close(found[0, 0], torch.from_numpy(PICTURES[0]) / 255)
    assert resized(PICTURES, 4).max() <= 1


@pytest.mark.parametrize(
    ("pictures", "said"),
    [
        (np.full((1, 2, 2), 2.0), "floats must be between 0 and 1"),
        (np.full((1, 2, 2), 300), "integers must be between 0 and 255"),
        (np.zeros((1, 2, 2, 5), np.uint8), r"not \[1, 2, 2, 5\]"),
        (np.zeros((4, 4), np.uint8), r"pictures must be"),
        (["nowhere.png"], "no picture nowhere.png"),
    ],
)
def test_wrong_pictures_are_refused(pictures: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        rgb_batches(pictures)


def test_a_damaged_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"p\.png is no picture that can be read"):
        as_rgb(tmp_path / "p.png")


# --- the encoders


def test_pixels_are_flat_and_between_0_and_1() -> None:
    assert torch.equal(PixelEncoder()(PICTURES), torch.from_numpy(PICTURES).flatten(1) / 255)
    assert load_encoder("pixels")(np.zeros((2, 4, 4, 3), np.uint8)).shape == (2, 48)
    with pytest.raises(InputError, match="pictures of one size"):
        PixelEncoder()([PICTURES[0], np.zeros((4, 4), np.uint8)])


def test_vision_model_gives_its_class_token_with_its_own_preprocessing(vit: Path) -> None:
    encoder = load_encoder(vit)
    assert isinstance(encoder, VisionEncoder)
    found = encoder(PICTURES)
    pixels = nn.functional.interpolate(torch.from_numpy(PICTURES)[:, None].float(), (16, 16), mode="bilinear")
    expected = encoder.model(pixel_values=(pixels.expand(-1, 3, -1, -1) / 255 - 0.5) / 0.5).last_hidden_state[:, 0]
    assert found.shape == (5, 16)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    mean = VisionEncoder(vit, pooling="mean")
    assert not torch.allclose(mean(PICTURES), found)
    assert mean.identity != encoder.identity


def test_convolutional_vision_model_is_averaged(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    ImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert load_encoder(tmp_path)(PICTURES).shape == (5, 12)


def test_clip_gives_its_image_features(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    text = {**small, "vocab_size": 10, "max_position_embeddings": 8}
    vision = {**small, "image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)).save_pretrained(tmp_path)
    ImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    assert load_encoder(tmp_path)(PICTURES).shape == (5, 6)


def test_text_model_gives_the_mean_of_its_tokens_whatever_the_padding(bert: Path) -> None:
    encoder = load_encoder(str(bert))
    assert isinstance(encoder, TextEncoder)
    assert encoder.max_tokens == 12
    alone, together = encoder(["a cat"]), encoder(["a cat", "a cat sat a cat sat"])
    torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)
    hidden = encoder.model(**encoder.tokenizer(["a cat"], return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(alone, hidden.mean(1).detach())


def test_sentence_transformer_gives_vectors_of_length_one(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Normalize"}]')
    encoder, plain = TextEncoder(tmp_path), TextEncoder(bert)
    torch.testing.assert_close(encoder(["a cat"]).norm(dim=1), torch.ones(1))
    assert encoder.identity != plain.identity


def test_missing_text_is_named(bert: Path) -> None:
    with pytest.raises(InputError, match="text 1 is None"):
        TextEncoder(bert)(["a", None])


def test_module_in_training_mode_warns_is_evaluated_and_stays_in_training() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.BatchNorm1d(64))
    module[1].eval()
    with pytest.warns(UserWarning, match="encoder is in training mode"):
        encoder = load_encoder(module)
    x = torch.from_numpy(PICTURES).float()
    assert torch.equal(encoder(x), encoder(x))
    assert (module.training, module[1].training, module[2].training) == (True, False, True)
    assert module[2].num_batches_tracked == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_encoder(module.eval())


def test_modes_come_back_after_an_error() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError), evaluating(module):
        module(torch.zeros(1, 3))
    assert module.training


def test_digest_sees_every_weight() -> None:
    module = nn.BatchNorm1d(2).to(torch.bfloat16)
    before = weights_digest(module)
    module.running_mean += 1
    assert weights_digest(module) != before


def test_unknown_and_unfit_folders_are_refused(tmp_path: Path, vit: Path) -> None:
    with pytest.raises(NotFoundError, match="unknown model or data set"):
        load_encoder("minilmm")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="neither an image processor nor a tokenizer"):
        load_encoder(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(InputError, match="can't be loaded as an encoder"):
        load_encoder(tmp_path)


# --- extraction and its cache


class Counting:
    """The pixels, counting what it is asked."""

    identity = "counting"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, inputs: Any) -> Any:
        self.seen += len(inputs)
        return np.asarray([[float(np.sum(np.asarray(x)) if not isinstance(x, str) else len(x))] for x in inputs])


def test_features_are_computed_once(cache: Path) -> None:
    encoder = Counting()
    first = extract(encoder, PICTURES, 2)
    again = extract(encoder, PICTURES, 3)
    assert encoder.seen == 5
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert np.array_equal(first[:, 0], PICTURES.sum((1, 2)))
    assert len(list((cache / "features").glob("*.safetensors"))) == 1
    extract(encoder, PICTURES, cache=False)
    assert encoder.seen == 10


def test_other_inputs_or_another_encoder_are_computed_anew() -> None:
    encoder = Counting()
    changed = PICTURES.copy()
    changed[0, 0, 0] ^= 1
    for inputs in (PICTURES, changed, PICTURES[:4], list(PICTURES[:3]), torch.from_numpy(PICTURES[:2])):
        extract(encoder, inputs)
    assert encoder.seen == 5 + 5 + 4 + 3 + 2
    encoder.identity = "other"
    extract(encoder, PICTURES)
    assert encoder.seen == 24


def test_an_interrupted_extraction_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SHARD", 2)

    class Dying(Counting):
        def __call__(self, inputs: Any) -> Any:
            if self.seen >= 2:
                raise KeyboardInterrupt
            return super().__call__(inputs)

    with pytest.raises(KeyboardInterrupt):
        extract(Dying(), PICTURES)
    encoder = Counting()
    found = extract(encoder, PICTURES)
    assert encoder.seen == 3
    assert np.array_equal(found[:, 0], PICTURES.sum((1, 2)))


def test_damaged_cache_is_computed_again(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Counting()
    before = extract(encoder, PICTURES)
    next((cache / "features").iterdir()).write_bytes(b"x")
    assert np.array_equal(extract(encoder, PICTURES), before)
    assert encoder.seen == 10
    assert "damaged" in caplog.text


def test_a_full_disk_costs_only_the_cache(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any) -> None:
        raise DiskFullError("no space left")

    monkeypatch.setattr(extraction, "save_file", full)
    assert len(extract(Counting(), PICTURES)) == 5
    assert "not cached: no space left" in caplog.text


def test_texts_come_back_in_order_although_batched_by_length() -> None:
    texts = ["aaaa", "b", "cccccc", "dd", ""]
    assert extract(Counting(), texts, 2)[:, 0].tolist() == [4, 1, 6, 2, 0]


def test_files_are_known_by_their_content(tmp_path: Path) -> None:
    for name, picture in zip("ab", PICTURES[:2], strict=True):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    assert extract(PixelEncoder(), paths).shape == (2, 192)
    assert extraction._place("e", paths) != extraction._place("e", paths[::-1])
    before = extraction._place("e", paths)
    Image.fromarray(PICTURES[3]).save(tmp_path / "a.png")
    assert extraction._place("e", paths) != before


def test_modules_and_plain_functions_are_encoders() -> None:
    module = nn.Flatten().eval()
    assert extract(module, PICTURES.astype(np.float32)).shape == (5, 64)
    assert extract(ModuleEncoder(nn.Linear(64, 3).eval(), PixelEncoder()), PICTURES).shape == (5, 3)
    assert extract(lambda x: np.asarray(x).reshape(len(x), -1), PICTURES).shape == (5, 64)


@pytest.mark.parametrize(
    ("encoder", "inputs", "said"),
    [
        (Counting(), [], "the data set is empty"),
        (lambda x: np.zeros(len(x)), PICTURES, r"shape \[5\] for 5 inputs"),
        (lambda x: np.zeros((1, 3)), PICTURES, "for 5 inputs"),
        (lambda x: np.full((len(x), 2), np.nan), PICTURES, "NaN or infinity for input 0"),
    ],
)
def test_wrong_extractions_are_refused(encoder: Any, inputs: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        extract(encoder, inputs)


def test_features_of_several_lengths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = iter([2, 3, 2, 3])

    def changing(x: Any) -> Any:
        return np.zeros((len(x), next(lengths)))

    with pytest.raises(InputError, match="gave 2 features, then 3"):
        extract(changing, PICTURES, 3)
    monkeypatch.setattr(extraction, "SHARD", 3)
    with pytest.raises(InputError, match="gave 2 features, then 3"):
        extract(changing, PICTURES, 3)


def test_batch_size_must_be_positive() -> None:
    with pytest.raises(InputError, match="batch size must be at least 1"):
        extract(Counting(), PICTURES, 0)
