from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from thrifty.core.checkpoint import snapshot
from thrifty.core.errors import ExistsError, InputError, NonFiniteError
from thrifty.core.loop import Loss, Shuffled, fit, loop
from thrifty.core.precision import MasterWeights
from thrifty.core.run import Run, pick_device, pick_dtype, read_config, read_metrics
from thrifty.core.schedules import warmup_constant, warmup_cosine, warmup_linear


def test_a_finished_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    with Run(tmp_path / "r", config={"a": 1}) as run:
        run.log(0, x=1.5)
        run.finish({"table": []})
    with pytest.raises(ExistsError, match="holds a finished run"):
        Run(tmp_path / "r", config={"a": 1})
    assert read_metrics(tmp_path / "r") == [{"step": 0, "x": 1.5}]
    with Run(tmp_path / "r", config={"a": 2}, overwrite=True) as run:
        assert read_config(run.directory) == {"a": 2, "seed": 0}
        assert read_metrics(run.directory) == []


def test_an_unfinished_run_goes_on_only_with_the_same_settings(tmp_path: Path) -> None:
    Run(tmp_path / "r", config={"a": 1}).close()
    Run(tmp_path / "r", config={"a": 1}).close()
    with pytest.raises(ExistsError, match=r"other settings \(a\)"):
        Run(tmp_path / "r", config={"a": 2})
    with pytest.raises(ExistsError, match=r"other settings \(seed\)"):
        Run(tmp_path / "r", config={"a": 1}, seed=1)


def test_other_people_s_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ExistsError):
            Run(tmp_path, overwrite=overwrite)
    with pytest.raises(ExistsError, match="is a file"):
        Run(tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_two_processes_can_t_share_a_directory(tmp_path: Path) -> None:
    run = Run(tmp_path / "r")
    with pytest.raises(ExistsError, match="in use by another process"):
        Run(tmp_path / "r")
    run.close()
    Run(tmp_path / "r").close()


def test_metrics_after_the_checkpoint_are_taken_back(tmp_path: Path) -> None:
    run = Run(tmp_path / "r", seed=5)
    run.log(0, x=0.1)
    run.save(1, {"w": torch.ones(1)})
    drawn = torch.rand(1)
    run.log(1, x=0.2)
    step, state = run.latest() or (0, None)
    assert (step, state["w"].item()) == (1, 1.0)
    assert torch.equal(torch.rand(1), drawn)
    assert read_metrics(tmp_path / "r") == [{"step": 0, "x": 0.1}]
    run.close()


def test_a_torn_last_line_is_left_out_and_nan_is_null(tmp_path: Path) -> None:
    with Run(tmp_path / "r") as run:
        run.log(0, x=math.nan, y=torch.tensor(2.0))
    with (tmp_path / "r/metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "x"')
    assert read_metrics(tmp_path / "r") == [{"step": 0, "x": None, "y": 2.0}]


def test_stages_have_their_own_files_and_seeds(tmp_path: Path) -> None:
    with Run(tmp_path / "r", seed=1) as run:
        first = run.stage("a")
        x = torch.rand(1)
        second = run.stage("b")
        assert not torch.equal(torch.rand(1), x)
        assert first.seed != second.seed
        assert torch.equal(run.stage("a") and torch.rand(1), x)


def test_devices_and_dtypes_that_are_not_there_are_named() -> None:
    with pytest.raises(InputError, match="'cuda:99' can't be used"):
        pick_device("cuda:99")
    with pytest.raises(InputError, match="'warp'"):
        pick_device("warp")
    with pytest.raises(InputError, match=r"did you mean 'float32'"):
        pick_dtype("flat32", torch.device("cpu"))
    assert pick_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
    assert pick_dtype(torch.float16, torch.device("cpu")) is torch.float16
    assert pick_dtype("auto", torch.device("cpu")) in {torch.bfloat16, torch.float32}


def test_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InputError, match="should hold an object"):
        read_config(tmp_path)


def test_every_epoch_visits_everything_once_in_a_new_order() -> None:
    order = Shuffled(10, 4, seed=1)
    epochs = [torch.cat([order(e * 3 + b) for b in range(3)]) for e in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()
    assert torch.equal(order(1), Shuffled(10, 4, seed=1)(1))
    assert Shuffled(10, 4, last="drop").per_epoch == 2
    assert len(Shuffled(3, 100)(0)) == 3
    with pytest.raises(InputError, match="empty"):
        Shuffled(0, 4)
    with pytest.raises(InputError, match="at least 1"):
        Shuffled(3, 0)


def test_accumulated_parts_equal_one_large_batch(tmp_path: Path) -> None:
    x = torch.randn(8, 3)
    weights = []
    for accumulate, size in ((1, 8), (4, 2)):
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        parts = [x[i : i + size] for i in range(0, 8, size)]
        with Run(tmp_path / str(accumulate), device="cpu") as run:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            fit(lambda m, b: m(b).square().mean(), model, parts, optimizer, run, 3, accumulate=accumulate)
        weights.append(model.weight.detach().clone())
    torch.testing.assert_close(*weights)


def test_a_loss_that_is_not_finite_names_the_batch_and_keeps_the_weights(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    kept: dict[int, torch.Tensor] = {}

    def loss(m: nn.Module, step: int) -> Loss:
        kept[step] = model.weight.detach().clone()
        return Loss(m(torch.ones(1, 1)).sum() / (0.0 if step == 2 else 1.0))

    with (
        Run(tmp_path / "r", device="cpu") as run,
        pytest.raises(NonFiniteError, match="at step 2, batch 2: try a smaller learning rate"),
    ):
        fit(loss, model, lambda i: i, torch.optim.SGD(model.parameters(), lr=0.1), run, 5)
    assert torch.equal(model.weight, kept[2])


def test_a_metric_that_is_not_finite_ends_the_loop(tmp_path: Path) -> None:
    with Run(tmp_path / "r") as run, pytest.raises(NonFiniteError, match="q is inf at step 1"):
        loop(lambda step: {"q": math.inf if step else 0.0}, run, 3, {})


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    with Run(tmp_path / "r", device="cpu") as run, pytest.raises(NonFiniteError, match="gradient is not finite"):
        fit(lambda m, _: m(torch.ones(1, 1)).sqrt().sum(), model, [0], torch.optim.SGD(model.parameters()), run, 1)


def test_no_batches_is_said(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    with Run(tmp_path / "r", device="cpu") as run, pytest.raises(InputError, match="no batches"):
        fit(lambda m, b: m(b).sum(), model, [], torch.optim.SGD(model.parameters()), run, 1)


def test_without_checkpoints_nothing_is_written(tmp_path: Path) -> None:
    with Run(tmp_path / "r") as run:
        loop(lambda step: {"x": step}, run, 4, {}, save_every=None, log_every=3)
        assert not (run.directory / "checkpoints").exists()
        assert [row["step"] for row in read_metrics(run.directory)] == [0, 3]


def test_schedules_rise_and_fall() -> None:
    linear, cosine = warmup_linear(10, 2), warmup_cosine(10, 2, final=0.1)
    assert [linear(s) for s in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert [round(cosine(s), 6) for s in (0, 1, 2, 6, 10, 99)] == [0.5, 1.0, 1.0, 0.55, 0.1, 0.1]


def test_small_updates_are_not_rounded_away_in_bfloat16() -> None:
    model = nn.Linear(4, 4).bfloat16()
    before = model.weight.detach().clone()
    optimizer = MasterWeights(model.parameters(), lambda p: torch.optim.SGD(p, lr=1e-4))
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
        optimizer.zero_grad()
    moved = (before.float() - model.weight.float()).mean()
    assert 0.008 < float(moved.detach()) < 0.012
    assert model.weight.grad is None


def test_master_weights_resume_bit_for_bit_and_follow_the_schedule() -> None:
    def make(model: nn.Module) -> MasterWeights:
        return MasterWeights(model.parameters(), lambda p: torch.optim.AdamW(p, lr=1e-3))

    def step(model: nn.Module, optimizer: MasterWeights) -> None:
        model(torch.ones(2, 3, dtype=torch.bfloat16)).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    torch.manual_seed(0)
    one = nn.Linear(3, 2).bfloat16()
    first = make(one)
    step(one, first)
    two = nn.Linear(3, 2).bfloat16()
    two.load_state_dict(one.state_dict())
    second = make(two)
    second.load_state_dict(snapshot(first.state_dict()))
    for group in (first.param_groups[0], second.param_groups[0]):
        group["lr"] = 5e-4
    step(one, first)
    step(two, second)
    assert torch.equal(one.weight, two.weight)
    assert first.inner.param_groups[0]["lr"] == second.inner.param_groups[0]["lr"] == 5e-4
    assert torch.equal(first.master[0], second.master[0])


def test_float32_parameters_are_their_own_masters() -> None:
    model = nn.Linear(2, 2)
    optimizer = MasterWeights(model.parameters(), lambda p: torch.optim.SGD(p, lr=1.0))
    assert optimizer.master[0] is model.weight
    model(torch.ones(1, 2)).sum().backward()
    before = model.weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model.weight, before - 1)
    with pytest.raises(ValueError, match="no closure"):
        optimizer.step(lambda: 0.0)


def test_the_config_is_json(tmp_path: Path) -> None:
    Run(tmp_path / "r", config={"limits": (0, 1)}).close()
    Run(tmp_path / "r", config={"limits": (0, 1)}).close()  # a tuple is a list once it was written
    assert json.loads((tmp_path / "r/config.json").read_text())["limits"] == [0, 1]


def test_two_half_batches_hold_what_one_whole_batch_does() -> None:
    whole, half = Shuffled(10, 4, seed=3, last="fill"), Shuffled(10, 2, seed=3, last="fill")
    for step in range(12):
        assert len(whole(step)) == 4
        assert whole(step).tolist() == torch.cat([half(2 * step), half(2 * step + 1)]).tolist()
    first_epochs = torch.cat([whole(step) for step in range(5)])
    assert sorted(first_epochs[:10].tolist()) == sorted(first_epochs[10:].tolist()) == list(range(10))


def test_warmup_constant_rises_and_stays() -> None:
    assert [warmup_constant(4)(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
