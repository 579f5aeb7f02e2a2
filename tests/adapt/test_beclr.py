from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import nn

from thrifty.adapt.beclr import (
    BECLR,
    QueryMeans,
    TransportAssignment,
    opta_align,
    standardised,
    transport_plan,
)
from thrifty.adapt.beclr_job import SMALL
from thrifty.adapt.beclr_learner import BECLRLearner, alignment, uniformity
from thrifty.adapt.beclr_training import Pretraining
from thrifty.adapt.design import Design
from thrifty.adapt.episodes import Episodes, draw_episodes
from thrifty.adapt.few_shot import Prototypes
from thrifty.adapt.inputs import with_defaults
from thrifty.adapt.transductive import TransductiveSolver
from thrifty.cli import main
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.nets.transport import squared_distances

P = torch.tensor([[0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
Q = torch.tensor([[0.5, 1.0], [0.7, 1.0], [1.2, 1.0], [2.5, 1.0]], dtype=torch.float64)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------------------ OpTA


def test_worked_example() -> None:
    plan = transport_plan(squared_distances(P, Q))
    np.testing.assert_allclose(
        plan, [[0.248388, 0.236075, 0.015939, 0], [0.001612, 0.013926, 0.234061, 0.25]], atol=1e-6
    )
    np.testing.assert_allclose(opta_align(P, Q, passes=1), [[0.616651, 1], [1.834326, 1]], atol=1e-6)
    np.testing.assert_allclose(opta_align(P, Q, passes=2), [[0.608573, 1], [1.842519, 1]], atol=1e-6)
    mixed = opta_align(P, Q, passes=1, mix=0.7)
    np.testing.assert_allclose(mixed, [[0.7 * 0.616651, 0.7], [0.7 * 1.834326 + 0.6, 0.7]], atol=1e-6)


def test_no_pass_returns_the_prototypes() -> None:
    assert torch.equal(opta_align(P, Q, passes=0, mix=0.7), P)


@settings(max_examples=25)
@given(st.integers(0, 99), st.integers(2, 5), st.integers(2, 12))
def test_order_of_queries_does_not_matter_and_prototypes_stay_in_their_hull(seed: int, k: int, q: int) -> None:
    prototypes, query = draw(seed, k, 1).double(), draw(seed + 1, q, 1).double()
    order = torch.randperm(q, generator=torch.Generator().manual_seed(seed))
    moved = opta_align(prototypes, query, passes=2)
    torch.testing.assert_close(moved, opta_align(prototypes, query[order], passes=2))
    distances = squared_distances(prototypes, query)
    torch.testing.assert_close(transport_plan(distances)[:, order], transport_plan(distances[:, order]))
    assert moved.min() >= query.min() - 1e-9
    assert moved.max() <= query.max() + 1e-9


def test_a_batch_is_its_tasks() -> None:
    prototypes, query = draw(0, 6, 3, 4), draw(1, 6, 20, 4)
    together = opta_align(prototypes, query)
    for task in range(6):
        torch.testing.assert_close(together[task], opta_align(prototypes[task], query[task]), atol=1e-5, rtol=0)


def test_relaxed_classes_follow_uneven_queries() -> None:
    """Nine queries near the first class, one near the second: even classes drag the second away from its own."""
    query = torch.cat([torch.tensor([0.0, 0.1]).expand(9, 2) + 0.01 * draw(0, 9, 2), torch.tensor([[2.0, 0.1]])])
    even = opta_align(P.float(), query, passes=1)
    relaxed = opta_align(P.float(), query, passes=1, class_penalty=0.01)
    told = opta_align(P.float(), query, passes=1, class_marginal=torch.tensor([0.9, 0.1]))
    assert even[1, 0] < 0.7
    assert relaxed[1, 0] > 1.7
    assert told[1, 0] > 1.9


def test_standardised_by_vector_with_the_unbiased_deviation() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [5.0, 5.0, 5.0]])
    torch.testing.assert_close(standardised(x), torch.tensor([[-1.0, 0, 1], [0, 0, 0]]))


def episodes(shots: int, count: int = 4, balance: Any = "balanced") -> Episodes:
    random = np.random.default_rng(0)
    means = random.normal(size=(8, 20))
    y = np.repeat(np.arange(8), 40)
    x = means[y] + 1.0 * random.normal(size=(len(y), 20))
    return draw_episodes(x, y, Design(ways=5, shots=shots, queries=50, balance=balance), count, seed=1)


@pytest.mark.parametrize("shots", [1, 5])
def test_solve_is_the_paper_step_by_step(shots: int) -> None:
    given = episodes(shots)
    found = BECLR().solve(given)
    for task in range(len(given)):
        support, query = (
            (part - part.mean(1, keepdims=True)) / part.std(1, ddof=1, keepdims=True)
            for part in (given.support[task].numpy(), given.query[task].numpy())
        )
        start = np.stack([support[given.support_labels[task].numpy() == name].mean(0) for name in range(5)])
        moved = start
        for _ in range(5 if shots == 1 else 1):
            cost = ((moved[:, None] - query[None]) ** 2).sum(-1)
            kernel = np.exp(-cost / cost.max() / 0.05)
            u, v = np.ones(5), np.ones(50)
            for _ in range(1000):
                before, u = u, (1 / 5) / (kernel @ v)
                v = (1 / 50) / (kernel.T @ u)
                if 0.05 * np.abs(np.log(u) - np.log(before)).sum() < 1e-4:
                    break
            plan = u[:, None] * kernel * v
            moved = (plan / plan.sum(1, keepdims=True)) @ query
        if shots > 1:
            moved = 0.7 * moved + 0.3 * start
        np.testing.assert_allclose(found.prototypes[task], moved, atol=1e-6)
        expected = LogisticRegression(C=1.0, max_iter=1000, tol=1e-8).fit(moved, np.arange(5)).predict(query)
        assert found.labels[task].tolist() == expected.tolist()


def test_the_steps_of_the_solver_are_opta() -> None:
    given = episodes(1)
    solver = TransductiveSolver(TransportAssignment(), QueryMeans(), rounds=3, tolerance=None)
    start = given.support[:, given.support_labels[0].argsort()]
    torch.testing.assert_close(solver.solve(given).prototypes, opta_align(start, given.query, passes=3))


def test_it_gains_on_balanced_queries_and_loses_on_uneven_ones() -> None:
    even, uneven = episodes(1, 200), episodes(1, 200, "dirichlet")
    plain = Prototypes()

    def gain(tasks: Episodes, method: Any) -> float:
        return float((tasks.accuracy(method.solve(tasks).labels) - tasks.accuracy(plain.solve(tasks).labels)).mean())

    assert gain(even, BECLR()) > 0.05
    assert gain(even, BECLR()) > gain(uneven, BECLR()) + 0.05
    assert gain(uneven, BECLR(class_penalty=0.05)) > gain(uneven, BECLR())


def test_nearest_and_logistic_are_two_classifiers() -> None:
    given = episodes(1, 100)
    logistic, closest = BECLR().solve(given), BECLR(classifier="nearest").solve(given)
    torch.testing.assert_close(logistic.prototypes, closest.prototypes)
    assert 0 < (logistic.labels != closest.labels).float().mean() < 0.2
    torch.testing.assert_close(closest.probabilities.sum(2), torch.ones(100, 50).double())


# -------------------------------------------------------------------------------------------------------- training


def test_uniformity_worked_example() -> None:
    z1 = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    z2 = torch.tensor([[1.0, 1.0], [-1.0, 1.0]])  # of any length
    assert float(uniformity(z1, z2)) == pytest.approx(0.031089, abs=2e-6)


def test_uniformity_leaves_out_itself_and_the_other_view_and_takes_the_log_last() -> None:
    z = draw(0, 8, 3)
    unit = nn.functional.normalize(z, dim=1)
    terms = [
        sum(math.exp(float(unit[i] @ unit[j]) / 0.5) for j in range(8) if j not in (i, (i + 4) % 8)) / 6
        for i in range(8)
    ]
    assert float(uniformity(z[:4], z[4:], 0.5)) == pytest.approx(math.log(sum(terms) / 8), abs=1e-5)


def gradient(pairing: str, k: int) -> torch.Tensor:
    p = draw(0, 6, 1, 5).requires_grad_()
    own, near, other = draw(1, 6, 1, 5), draw(2, 6, k, 5), draw(3, 6, k, 5)
    predictions = torch.cat([p, other], 1) if pairing == "released" else p
    alignment(predictions, torch.cat([own, near], 1)).backward()
    assert p.grad is not None
    return p.grad


def test_released_pairs_of_constants_shrink_the_gradient_and_teacher_pairs_turn_it() -> None:
    plain = gradient("teacher", 0)
    torch.testing.assert_close(gradient("released", 3), plain / 4)
    assert torch.cosine_similarity(gradient("teacher", 3).flatten(), plain.flatten(), dim=0) < 0.95


def test_no_gradient_reaches_the_targets() -> None:
    t = draw(0, 4, 2, 3).requires_grad_()
    p = draw(1, 4, 1, 3).requires_grad_()
    alignment(p, t).backward()
    assert t.grad is None
    assert p.grad is not None


class Flat(nn.Module):
    """Pictures of 4x4 as 8 features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x.flatten(1)))


TINY: dict[str, Any] = {
    "epochs": 6, "training_batch": 8, "width": 8, "prototypes": 3, "memory": 32, "neighbours": 2, "mask_ratio": 0.0,
    "mask_spread": 0.0, "memory_start": 0.3, "recluster": 0.2,
}  # fmt: skip


def learner(steps: int = 10, **settings: Any) -> BECLRLearner:
    torch.manual_seed(0)
    return BECLRLearner(Flat(), 8, Pretraining(**(TINY | settings)), steps).train()


def steps(net: BECLRLearner, count: int) -> list[dict[str, float]]:
    logged = []
    for step in range(count):
        net.zero_grad()
        found = net.loss(draw(step, 16, 1, 4, 4))
        found.value.backward()
        net.after_step()
        logged.append(
            {name: float(value) for name, value in found.metrics.items()} | {"loss": float(found.value.detach())}
        )
    return logged


@pytest.mark.parametrize("pairing", ["teacher", "released"])
def test_the_memory_is_used_once_it_is_full_and_its_time_has_come(pairing: str) -> None:
    used = [row["memory"] for row in steps(learner(pairing=pairing), 6)]
    assert used == [0, 0, 0, 1, 1, 1]  # two batches of 16 fill it, and 30% of the steps are 3
    late = [row["memory"] for row in steps(learner(pairing=pairing, memory=64, memory_start=0.0), 6)]
    assert late == [0, 0, 0, 0, 1, 1]


def test_without_memory_the_loss_is_the_plain_one() -> None:
    net = learner(neighbours=0, memory_start=0.0)
    views = draw(0, 16, 1, 4, 4)
    z, t = net.online(views), net.teacher(views)
    p = net.predictor(z)
    cosines = nn.functional.cosine_similarity(p, torch.cat([t[8:], t[:8]]), dim=1)
    expected = -cosines.mean() + 0.1 * uniformity(z[:8], z[8:])
    assert float(net.loss(views).value.detach()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert len(net.memories) == 0


def test_teacher_follows_ever_more_slowly_and_has_no_gradient() -> None:
    net = learner(steps=4, teacher_momentum=0.5)
    assert [net.momentum(step) for step in (0, 2, 4)] == pytest.approx([0.5, 0.75, 1.0])
    before = net.teacher.net[0].layer.weight.clone()  # type: ignore[union-attr]
    with torch.no_grad():
        net.online[0].layer.weight += 1.0  # type: ignore[union-attr]
    net.loss(draw(0, 16, 1, 4, 4)).value.backward()
    net.after_step()
    torch.testing.assert_close(net.teacher.net[0].layer.weight, before + 0.5)  # type: ignore[union-attr]
    assert all(weight.grad is None for weight in net.teacher.parameters())


def test_rows_find_themselves_when_they_are_pushed_first() -> None:
    def own_share(push_first: bool) -> float:
        net = learner(push_first=push_first)
        steps(net, 5)
        views = draw(99, 16, 1, 4, 4)
        z = net.teacher(views)
        net.loss(views)
        found, _ = net.memories[0](z)
        return float(torch.isclose(found, z.unsqueeze(1), atol=1e-5).all(-1).any(1).float().mean())

    assert own_share(True) > 0.5
    assert own_share(False) == 0


def test_the_student_sees_masked_pictures() -> None:
    net = learner(mask_ratio=0.5, mask_spread=0.1, patch_size=1)
    seen: list[torch.Tensor] = []
    net.online[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    views = torch.ones(16, 1, 4, 4)
    net.loss(views)
    assert 0.2 < (seen[0] == 0).float().mean() < 0.6
    taught: list[torch.Tensor] = []
    net.teacher.net[0].register_forward_pre_hook(lambda _, inputs: taught.append(inputs[0]))
    net.loss(views)
    assert torch.equal(taught[0], views)


def noisy(pictures: torch.Tensor) -> torch.Tensor:
    return (pictures + 0.1 * torch.randn_like(pictures)).clamp(0, 1)


def pictures() -> torch.Tensor:
    shades = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 255
    return shades[torch.arange(24) % 4].to(torch.uint8)


def test_pretraining_changes_the_encoder_and_logs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Flat()
    before = encoder.layer.weight.clone()
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        found = BECLR(**TINY).pretrain(pictures(), run, encoder, augment=noisy)
    assert found is encoder
    assert not torch.equal(before, encoder.layer.weight)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "alignment", "uniformity", "spread", "memory"} <= rows[-1].keys()
    assert rows[-1]["memory"] == 1


def test_interrupted_pretraining_ends_the_same(tmp_path: Path) -> None:
    def weights(name: str, stop: bool) -> torch.Tensor:
        torch.manual_seed(0)
        encoder = Flat()
        method = BECLR(**TINY)
        if stop:
            seen = 0

            def fails(x: torch.Tensor) -> torch.Tensor:
                nonlocal seen
                seen += 1
                if seen > 11:
                    raise KeyboardInterrupt
                return noisy(x)

            with pytest.raises(KeyboardInterrupt), Run(tmp_path / name, seed=0, device="cpu") as run:
                method.train(pictures(), run, encoder, augment=fails, save_every=5)
        with Run(tmp_path / name, seed=0, device="cpu") as run:
            method.train(pictures(), run, encoder, augment=noisy, save_every=5)
        return encoder.layer.weight.detach().clone()

    assert torch.equal(weights("whole", False), weights("broken", True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"passes": -1}, "passes must not be negative"),
        ({"mix": 1.5}, "mix between 0 and 1, not None and 1.5"),
        ({"transport_epsilon": 0.0}, "transport_epsilon and class_penalty must be above 0"),
        ({"classifier": "logistics"}, "classifier 'logistics' is unknown: did you mean 'logistic'"),
        ({"epochs": 0}, "epochs must be at least 1, not 0"),
        ({"memory_start": 1.5}, "memory_start must be a share between 0 and 1"),
        ({"mask_spread": 0.5}, "mask_spread between 0 and mask_ratio"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"pairing": "teach"}, "pairing 'teach' is unknown: did you mean 'teacher'"),
    ],
)
def test_wrong_settings_are_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        BECLR(**change)


def test_wrong_pictures_and_memories_are_named(tmp_path: Path) -> None:
    with Run(tmp_path / "run", seed=0, device="cpu") as run:
        with pytest.raises(InputError, match="at least 2 pictures are needed"):
            BECLR(**TINY).train(pictures()[:1], run, Flat(), augment=noisy)
        with pytest.raises(InputError, match="memory of 12 embeddings does not hold the 16 of a batch"):
            BECLR(**(TINY | {"memory": 12})).train(pictures(), run, Flat(), augment=noisy)
        with pytest.raises(InputError, match="the encoder can't take pictures"):
            BECLR(**TINY).train(pictures(), run, nn.Linear(7, 2), augment=noisy)


@pytest.mark.parametrize(
    ("memory", "said"), [(48, "holds all 48 views of an epoch"), (1000, "never fills with the 288")]
)
def test_a_memory_that_is_too_large_is_told(
    memory: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Run(tmp_path / "run", seed=0, device="cpu") as run, caplog.at_level("WARNING", "thrifty"):
        BECLR(**(TINY | {"memory": memory})).train(pictures(), run, Flat(), augment=noisy)
    assert said in caplog.text


# --------------------------------------------------------------------------------------------------------- command


def folder(path: Path) -> Path:
    """Pictures of three classes: bars, squares and noise."""
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("bar", "noise", "square"):
        (path / name).mkdir(parents=True)
        for number in range(8):
            x = random.integers(0, 60, (16, 16), dtype=np.uint8)
            if name == "bar":
                x[:, 4:7] = 230
            elif name == "square":
                x[2:12, 2:12] = 230
            Image.fromarray(x).save(path / name / f"{number}.png")
    return path


def test_run_trains_an_encoder_on_a_folder_without_labels_and_labels_episodes(tmp_path: Path) -> None:
    data, out = folder(tmp_path / "pictures"), tmp_path / "run"
    few = "--epochs 3 --training-batch 8 --width 16 --prototypes 2 --memory 32 --neighbours 2 --views drawing"
    code = main(
        ["run", "beclr", "--data", str(data), "--out", str(out), "--episodes", "20", "--device", "cpu", *few.split()]
    )
    assert code == 0
    summary = json.loads((out / "summary.json").read_text())
    assert [row["method"] for row in summary["table"]] == ["beclr", "prototypes"]
    assert all(0 < row["accuracy"] <= 1 for row in summary["table"])
    assert summary["encoder"] == "a residual network trained here without labels"
    from thrifty.nets.picture_encoders import picture_encoder

    features = picture_encoder(str(out / "encoder"), 1, 32)(torch.zeros(2, 1, 32, 32))
    assert features.shape == (2, 64)


def test_run_on_features_is_opta_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random = np.random.default_rng(0)
    y = np.repeat(np.arange(6), 20)
    np.savez(tmp_path / "f.npz", x=(random.normal(size=(6, 10))[y] + 0.5 * random.normal(size=(120, 10))), y=y)
    out = str(tmp_path / "run")
    assert main(["run", "beclr", "--data", str(tmp_path / "f.npz"), "--out", out, "--episodes", "30"]) == 0
    assert not (tmp_path / "run" / "encoder").exists()
    assert main(["run", "beclr", "--data", str(tmp_path / "f.npz"), "--out", out + "2", "--ways", "9"]) == 2
    assert "9-way episodes need as many classes" in capsys.readouterr().err


def test_small_settings_take_the_place_of_defaults_only() -> None:
    found = with_defaults(BECLR(epochs=3, mix=0.5), SMALL)
    assert (found.epochs, found.mix, found.width, found.views) == (3, 0.5, 128, "drawing")
