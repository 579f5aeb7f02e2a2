from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from thrifty.adapt.evaluation import run_stream
from thrifty.adapt.ovor import OVOR
from thrifty.adapt.prompted import PromptedViT
from thrifty.adapt.stream import class_incremental
from thrifty.adapt.task_learner import Trained, epoch_cosine
from thrifty.adapt.virtual_outliers import local_cross_entropy
from thrifty.cli import main
from thrifty.core.checkpoint import load_tree
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.prefix_attention import PrefixPrompt

SMALL: dict[str, Any] = {
    "epochs": 3, "outlier_epochs": 2, "task_batch": 16, "learning_rate": 0.02, "neighbours": 5, "boundary": 5,
    "offsets": 20, "per_class": 5, "early_prompts": 2, "later_prompts": 4, "tau_in": None, "tau_out": None,
}  # fmt: skip


class Tokens(nn.Module):
    """A tiny ViT of transformers as an encoder."""

    def __init__(self, kind: str = "vit", layers: int = 3) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        shape = {"image_size": 8, "patch_size": 4, "hidden_size": 8, "num_hidden_layers": layers}
        config = AutoConfig.for_model(
            kind, num_channels=1, num_attention_heads=2, intermediate_size=16, hidden_dropout_prob=0.1, **shape
        )
        torch.manual_seed(0)
        self.vit = AutoModel.from_config(config)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.vit(pixel_values=x).last_hidden_state
        self.tokens = hidden.shape[1]
        return hidden[:, 0]


X = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["vit", "deit", "dinov2"])
def test_no_prompt_is_the_frozen_model(kind: str) -> None:
    encoder = Tokens(kind).eval()
    with torch.no_grad():
        expected, tokens = encoder(X), encoder.tokens
        for lengths in ({}, {0: 0, 2: 0}):
            prompted = PromptedViT(encoder, lengths)
            torch.testing.assert_close(prompted(X), expected, atol=1e-6, rtol=0)
        prompted = PromptedViT(encoder, {0: 4, 2: 6})
        assert not torch.allclose(prompted(X), expected, atol=1e-4)
        assert encoder.tokens == tokens
        # Outside of it the model attends as before.
        torch.testing.assert_close(encoder(X), expected)


def test_prefixes_are_keys_and_values_beside_the_tokens_own() -> None:
    """One layer by hand: softmax over prefix and own keys, in each head."""
    encoder = Tokens(layers=1).eval()
    prompted = PromptedViT(encoder, {0: 6})
    layer = encoder.vit.layers[0] if hasattr(encoder.vit, "layers") else encoder.vit.encoder.layer[0]
    linear = [part for part in layer.modules() if isinstance(part, nn.Linear)]
    seen: list[Tensor] = []
    linear[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    linear[3].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        prompted(X)
        inside, attended = seen
        q, k, v = (part(inside) for part in linear[:3])
        keys, values = prompted.prompts.prefixes()[0]
        assert keys.shape == values.shape == (3, 8)
        k, v = (torch.cat([own.expand(5, -1, -1), part], 1) for own, part in ((keys, k), (values, v)))
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weights = (q[..., part] @ k[..., part].mT / math.sqrt(4)).softmax(-1)
            torch.testing.assert_close(attended[..., part], weights @ v[..., part], atol=1e-6, rtol=0)


def test_prompts_begin_between_0_and_1_and_alone_are_trained() -> None:
    prompted = PromptedViT(Tokens(), {0: 10, 1: 10})
    rows = torch.cat(list(prompted.prompts.parameters()))
    assert rows.min() >= 0
    assert rows.max() <= 1
    assert rows.std() > 0.2
    prompted.train()
    assert not prompted.encoder.training
    prompted(X).sum().backward()
    assert {name for name, weight in prompted.named_parameters() if weight.grad is not None} == {
        "prompts.rows.0", "prompts.rows.1",
    }  # fmt: skip


def test_loss_on_the_slice_is_that_of_masked_logits() -> None:
    logits = torch.randn(6, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    codes = torch.tensor([2, 3, 4, 2, 3, 4])
    value = local_cross_entropy(logits, codes, 2, 5)
    masked = logits[:, :5].masked_fill(torch.arange(5) < 2, -torch.inf)
    torch.testing.assert_close(value, nn.functional.cross_entropy(masked, codes))
    value.backward()
    assert logits.grad is not None
    assert (logits.grad[:, [0, 1, 5, 6]] == 0).all()
    assert (logits.grad[:, 2:5] != 0).all()


def test_schedule() -> None:
    factor = epoch_cosine(20)
    assert factor(0) == 1
    assert factor(19) == pytest.approx(math.cos(0.495 * math.pi))
    assert epoch_cosine(1)(0) == 1


def features(classes: int = 6, each: int = 12) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(classes), each)
    return (4 * np.eye(classes)[y] + 0.3 * random.normal(size=(len(y), classes))).astype(np.float32), y


@pytest.mark.parametrize("center", ["boundary", "origin"])
def test_a_stream_of_features(center: Any, tmp_path: Path) -> None:
    x, y = features()
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        learner = OVOR(**(SMALL | {"epochs": 20, "center": center})).learner(run)
        result = run_stream(learner, class_incremental(x, y, x, y, 3))
        assert result.accuracy_after[0] == 1
        assert result.final_accuracy > 0.3  # of six classes that were never told apart across sessions
        assert sorted(learner.classes_.tolist()) == list(range(6))
        learner.save(tmp_path / "learner.safetensors")
    tree = load_tree(tmp_path / "learner.safetensors")
    assert sorted(tree["classes"]) == list(range(6))
    assert tree["learnt"]["weight"].shape == (6, 6)


def test_rows_of_earlier_classes_stay_and_the_regulariser_moves_the_linear_layer_alone(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    labels = np.repeat([0, 1], 12)
    weights: dict[int, dict[str, Tensor]] = {}
    for outlier_epochs in (0, 2):
        with Run(tmp_path / str(outlier_epochs), seed=0, device="cpu") as run:
            settings = SMALL | {"outlier_epochs": outlier_epochs, "outlier_weight": 1.0}
            learner = OVOR(**settings).learner(run, Tokens())
            learner.partial_fit(pictures, labels)
            assert isinstance(learner.trained, Trained)
            before = learner.trained.weight.detach().clone()
            prompts = {name: value.clone() for name, value in learner.trained.state_dict().items()}
            learner.partial_fit(pictures[:16], np.repeat([5, 3], 8))
            torch.testing.assert_close(learner.trained.weight[:2], before, atol=0, rtol=0)
            assert learner.trained.weight.shape == (4, 8)
            assert not torch.equal(learner.trained.state_dict()["prompts.rows.0"], prompts["prompts.rows.0"])
            weights[outlier_epochs] = prompts
            assert set(learner.predict(pictures).tolist()) <= {0, 1, 3, 5}
    # The first three epochs are alike but for the schedule, which the fourth and fifth epoch stretch.
    assert weights[0].keys() == weights[2].keys()


def test_outlier_steps_leave_prompts(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        learner = OVOR(**SMALL).learner(run, Tokens())
        seen: list[tuple[Tensor, Tensor]] = []
        regularise = learner._regularise

        def watched(*args: Any) -> None:
            assert learner.trained is not None
            before = [part.detach().clone() for part in learner.trained.parameters()]
            regularise(*args)
            seen.extend(zip(before, learner.trained.parameters(), strict=True))

        learner._regularise = watched  # type: ignore[method-assign]
        learner.partial_fit(pictures, np.repeat([0, 1], 12))
    moved = [not torch.equal(before, after) for before, after in seen]
    names = [name for name, _ in learner.trained.named_parameters()]  # type: ignore[union-attr]
    assert dict(zip(names, moved, strict=True)) == {
        "weight": True, "bias": True, "prompts.rows.0": False, "prompts.rows.1": False, "prompts.rows.2": False,
    }  # fmt: skip


def test_warming_up_leaves_prompts(tmp_path: Path) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        learner = OVOR(**(SMALL | {"warmup_epochs": 3, "outlier_epochs": 0})).learner(run, Tokens())
        assert learner.encoder is not None
        before = [rows.detach().clone() for rows in learner.encoder.prompts.parameters()]
        learner.partial_fit(pictures, np.repeat([0, 1], 12))
        after = list(learner.encoder.prompts.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_outliers_raise_the_energy_off_the_task(tmp_path: Path) -> None:
    x, y = features(2, 60)
    far = torch.randn(200, 2, generator=torch.Generator().manual_seed(1)) * 0.3  # about the origin
    surprise = {}
    for weight in (0.0, 1.0):
        with Run(tmp_path / str(weight), seed=0, device="cpu") as run:
            settings = SMALL | {"epochs": 30, "outlier_epochs": 30, "outlier_weight": weight, "center": "origin"}
            learner = OVOR(**(settings | {"tau_in": -4.0, "tau_out": 0.0})).learner(run).partial_fit(x, y)
            surprise[weight] = float(-torch.logsumexp(learner.decision_function(far), 1).mean())
    assert surprise[1.0] > surprise[0.0] + 0.1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"early_prompts": 3}, "early_prompts must be even"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"sigma": -1.0}, "sigma must not be negative"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"tau_in": None}, "tau_in and tau_out are both given"),
        ({"center": "middle"}, "center 'middle' is unknown: known: boundary, origin"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        OVOR(**change)


def test_wrong_streams_and_models_are_named(tmp_path: Path) -> None:
    x, y = features()
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        learner = OVOR(**SMALL).learner(run)
        with pytest.raises(InputError, match="no class has an example"):
            learner.predict(x)
        learner.partial_fit(x[:24], y[:24])
        with pytest.raises(InputError, match="class 1 came in an earlier session"):
            learner.partial_fit(x[12:36], y[12:36])
        with pytest.raises(InputError, match="features have 3 columns, those before had 6"):
            learner.partial_fit(x[24:36, :3], y[24:36])
        with pytest.raises(InputError, match="12 examples came with 3 labels"):
            learner.partial_fit(x[24:36], y[24:27])
        with pytest.raises(InputError, match="feature row 0 holds NaN"):
            learner.partial_fit(x[24:36] * np.nan, y[24:36])
        with pytest.raises(InputError, match=r"expects features \[N, D\], not \[3\]"):
            learner.partial_fit(x[0, :3], y[24:27])
        with pytest.raises(InputError, match="Linear holds none"):
            OVOR(**SMALL).learner(run, nn.Linear(2, 2))
    with pytest.raises(InputError, match="the model has 3 layers, so there is no layer 4"):
        PromptedViT(Tokens(), {4: 2})
    with pytest.raises(InputError, match="layer 1 can't have 3 prompt rows"):
        PrefixPrompt(8, {1: 3})


def test_run_on_features_writes_what_was_learnt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = features()
    np.savez(tmp_path / "f.npz", x=x, y=y)
    words = (
        f"run ovor --data {tmp_path / 'f.npz'} --tasks 3 --epochs 2 --outlier-epochs 1 --task-batch 16 --neighbours 5 "
        "--boundary 5 --offsets 20 --device cpu --out"
    )
    assert main([*words.split(), str(tmp_path / "run")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [row["learner"] for row in summary["table"]] == ["ovor", "without outliers"]
    assert summary["prompts"] is False
    assert load_tree(Path(summary["learner"]))["learnt"]["bias"].shape == (6,)
    assert main([*words.split(), str(tmp_path / "other"), "--stream", "mixed"]) == 2
    assert "OVOR learns each class in one session: a mixed stream" in capsys.readouterr().err


def test_run_gives_prompts_to_a_hub_model(tmp_path: Path) -> None:
    from PIL import Image
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16, patch_size=8, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    random = np.random.default_rng(0)
    for name in "abcd":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(6):
            picture = random.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{number}.png")
    words = (
        "run ovor --tasks 2 --epochs 1 --outlier-epochs 1 --task-batch 8 --neighbours 3 --device cpu --test-share 0.3"
    )
    places = ["--data", str(tmp_path / "pictures"), "--model", str(tmp_path / "vit"), "--out", str(tmp_path / "run")]
    assert main([*words.split(), *places]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["prompts"] is True
    learnt = load_tree(Path(summary["learner"]))["learnt"]
    assert learnt["prompts.rows.0"].shape == (10, 8)
    assert learnt["weight"].shape == (4, 8)
