from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty.adapt.base_session import BaseTraining, CosineClassifier
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.representations import encoded


def test_the_encoder_tells_base_classes_apart_and_is_frozen(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(["left", "right", "whole"], 40)
    images = random.integers(0, 60, (120, 8, 8), dtype=np.uint8)
    images[labels != "right", :, :4] += 150
    images[labels != "left", :, 4:] += 150
    training = BaseTraining(width=4, epochs=6, batch_size=20)
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        encoder = training.train(images, labels, run)
    assert not encoder.training
    features = torch.nn.functional.normalize(encoded(encoder, torch.from_numpy(images)[:, None]))
    means = torch.stack([features[torch.from_numpy(labels == name)].mean(0) for name in np.unique(labels)])
    found = np.unique(labels)[(features @ torch.nn.functional.normalize(means).T).argmax(1).numpy()]
    assert (found == labels).mean() > 0.95


def test_logits_are_scaled_cosines() -> None:
    model = CosineClassifier(torch.nn.Flatten(), 2, 3, temperature=10.0)
    model.weight.data = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    torch.testing.assert_close(model(torch.tensor([[3.0, 4.0]])), torch.tensor([[6.0, 8.0, -6.0]]))


@pytest.mark.parametrize(("count", "said"), [(4, "4 base pictures came with 6 labels of 2 classes"), (6, "1 classes")])
def test_wrong_base_data_are_refused(count: int, said: str, tmp_path: Path) -> None:
    labels = np.array([0, 1] * 3 if count == 4 else [0] * 6)
    with Run(tmp_path / "run", device="cpu") as run, pytest.raises(InputError, match=said):
        BaseTraining(width=4).train(np.zeros((count, 8, 8), np.uint8), labels, run)
