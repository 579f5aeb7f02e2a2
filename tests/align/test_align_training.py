"""Training, rounds, evaluation and the command, on a model of a few thousand weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty import cli
from thrifty.align import arithmetic
from thrifty.align.a_lol import ALoL
from thrifty.align.adapter import train_last_layers
from thrifty.align.asking import Sampling
from thrifty.align.base import Training, overridden
from thrifty.align.evaluate import Accuracy, evaluate
from thrifty.align.grpo import ppo_clip
from thrifty.align.log import INSTRUCTION, as_logged, embedded_log, read_log
from thrifty.align.raft import RAFT
from thrifty.align.reference import with_behaviour_logps
from thrifty.align.settings import addition
from thrifty.align.sft import SFT
from thrifty.align.topr import TOPR
from thrifty.align.training import iterate, train
from thrifty.core.errors import InputError, RunError
from thrifty.core.run import Run, read_metrics
from thrifty.data.readers import read, write_jsonl
from thrifty.data.tasks import Problem
from thrifty.data.tasks import arithmetic as arithmetic_task
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

Tiny = tuple[Any, Any]
SAMPLING = Sampling(samples=4, max_new_tokens=5)


def test_topr_raises_good_answers_and_lowers_bad_ones(tiny: Tiny, log_file: Path, tmp_path: Path) -> None:
    model, tokenizer = tiny
    log = read_log(str(log_file), tokenizer)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        data = with_behaviour_logps(model, log, run.device)
        good = data["reward"] > 0
        train(model, TOPR(), data, run, Training(learning_rate=3e-3, batch_size=8, micro_batch_size=4, epochs=30))
        change = ((token_logps(model, data) - data["behaviour_logps"]) * data.response_mask).sum(1)
        assert (change[good] > 0).all()
        assert change[good].min() > change[~good].max()
        rows = read_metrics(run.directory)
    assert len(rows) == 30
    assert rows[0]["negative_weight"] == pytest.approx(1.0, abs=1e-4)
    assert rows[-1]["negative_weight"] < 0.9, "the push fades as the policy leaves the bad answers"


def test_a_log_without_behaviour_logps_takes_the_given_model_s(
    tiny: Tiny, log_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = tiny
    log = read_log(str(log_file), tokenizer)
    with Run(tmp_path / "r", device="cpu") as run:
        data = with_behaviour_logps(model, log, run.device)
        assert with_behaviour_logps(model, data, run.device) is data
    torch.testing.assert_close(data["behaviour_logps"], token_logps(model, log).detach(), atol=1e-5, rtol=0)


def test_logged_columns_become_rewards_and_groups(tiny: Tiny, log_file: Path) -> None:
    log = read_log(str(log_file), tiny[1], limit=5)
    assert log["group"].tolist() == [0, 0, 1, 1, 2]
    assert log["reward"].tolist() == [1, -1, 1, -1, 1]


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), None, "1", True])
def test_a_reward_that_is_no_number_is_named(tiny: Tiny, tmp_path: Path, reward: object) -> None:
    rows = [
        {"prompt": "what", "completion": "dog", "reward": 1.0},
        {"prompt": "what", "completion": "cat", "reward": reward},
    ]
    path = tmp_path / "log.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError, match="reward of record 2 is"):
        read_log(str(path), tiny[1])


def test_rounds_sample_score_and_train_and_sample_nothing_twice(
    tiny: Tiny, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from thrifty.lm import sampler as module
    from thrifty.lm.load import load_lm

    prompts = ["what is 1 plus 2", "what is 2 plus 2"]
    calls: list[int] = []
    real = module.sample
    monkeypatch.setattr(module, "sample", lambda *a, **k: (calls.append(1), real(*a, **k))[1])

    def reward(asked: list[str], said: list[str]) -> Sequence[float]:
        return [1.0 if index % 2 else -1.0 for index in range(len(said))]

    def go(model: Any, iterations: int) -> Any:
        with Run(tmp_path / "r", device="cpu", dtype="float32", config={}) as run:
            return iterate(
                model, tiny[1], TOPR(), prompts, reward, run, iterations=iterations, sampling=SAMPLING,
                training=Training(learning_rate=1e-3, batch_size=4, micro_batch_size=4),
            )  # fmt: skip

    go(tiny[0], 1)
    assert len(calls) == 1
    resumed = go(load_lm(model_folder)[0], 2)
    assert len(calls) == 2, "the first round's answers are kept"
    (tmp_path / "whole").mkdir()
    with Run(tmp_path / "whole/r", device="cpu", dtype="float32", config={}) as run:
        whole = iterate(
            load_lm(model_folder)[0], tiny[1], TOPR(), prompts, reward, run, iterations=2, sampling=SAMPLING,
            training=Training(learning_rate=1e-3, batch_size=4, micro_batch_size=4),
        )  # fmt: skip
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("scores", "said"), [([1.0], "returned 1 values for 2"), ([1.0, float("nan")], "returned nan")]
)
def test_a_reward_function_that_goes_wrong_is_said(tiny: Tiny, tmp_path: Path, scores: list[float], said: str) -> None:
    with Run(tmp_path / "r", device="cpu") as run, pytest.raises(RunError, match=said):
        iterate(
            tiny[0], tiny[1], TOPR(), ["what"], lambda p, c: scores, run,
            iterations=1, sampling=Sampling(samples=2, max_new_tokens=3),
        )  # fmt: skip


def test_training_settings() -> None:
    training = Training(batch_size=4, epochs=2)
    assert training.steps(10) == 5
    assert training.steps(2) == 2
    assert training.as_many_steps(10, 3).steps(3) == 5
    for wrong in ({"learning_rate": 0.0}, {"epochs": -1.0}, {"batch_size": 6, "micro_batch_size": 4}):
        with pytest.raises(InputError):
            Training(**wrong)

    class Given:
        learning_rate, batch_size, model = 0.5, None, "m"

    assert overridden(training, Given()) == Training(batch_size=4, epochs=2, learning_rate=0.5)
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(InputError, match="no parameter"):
        training.build_optimizer(frozen)
    adafactor = Training(optimizer="adafactor").build_optimizer(torch.nn.Linear(1, 1))
    assert isinstance(adafactor.inner, torch.optim.Adafactor)  # type: ignore[attr-defined]


def test_only_the_last_layers_are_trained(tiny: Tiny) -> None:
    model, _ = tiny
    with pytest.raises(InputError, match="the model has 2 layers"):
        train_last_layers(model, 3)
    with pytest.raises(InputError, match="no list of layers"):
        train_last_layers(torch.nn.Linear(1, 1), 1)
    train_last_layers(model, None)
    assert all(p.requires_grad for p in model.parameters())
    train_last_layers(model, 1)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in trained)


def test_an_empty_log_is_refused(tiny: Tiny, log_file: Path, tmp_path: Path) -> None:
    log = read_log(str(log_file), tiny[1])
    with Run(tmp_path / "r", device="cpu") as run, pytest.raises(InputError, match="data set is empty"):
        train(tiny[0], SFT(), log.select([]), run)


def test_ppo_s_surrogate_by_hand() -> None:
    ratio = torch.tensor([[1.5, 0.5], [1.5, 0.5]])
    logps = ratio.log().requires_grad_()
    mask = torch.ones(2, 2, dtype=torch.bool)
    columns = {"reward": torch.tensor([1.0, -1.0]), "behaviour_logps": torch.zeros(2, 2)}
    batch = ppo_clip(0.2).prepare(Sequences(torch.zeros(2, 2, dtype=torch.long), mask, mask, columns))
    loss = ppo_clip(0.2).loss_of(logps, None, batch, batch).value
    # A > 0: min(1.5, 1.2) + min(.5, .8); A < 0: min(-1.5, -1.2) + min(-.5, -.8)
    assert float(loss.detach()) == pytest.approx(-((1.2 + 0.5) / 2 + (-1.5 - 0.8) / 2) / 2)
    loss.backward()
    assert logps.grad[0, 0] == 0
    assert logps.grad[1, 1] == 0
    assert ppo_clip().clip == 0.2


class Fixed:
    """A task that counts every answer with a cat in it as right."""

    name = "fixed"

    def problems(self, n: int, seed: int, split: str = "train") -> list[Problem]:
        return [Problem(f"what is {i}", str(i), str(i)) for i in range(n)]

    def score(self, problem: Problem, completion: str) -> float:
        return float("cat" in completion)


def test_evaluation_counts_right_and_invalid_answers(tiny: Tiny) -> None:
    task = Fixed()
    found = evaluate(tiny[0], tiny[1], task, task.problems(6, 0), samples=5, max_new_tokens=6, seed=1)
    again = evaluate(tiny[0], tiny[1], task, task.problems(6, 0), samples=5, max_new_tokens=6, seed=1)
    assert found == again
    assert found.answers == 30
    assert 0 < found.right < 30
    assert 0 < found.invalid < 30
    greedy = evaluate(tiny[0], tiny[1], task, task.problems(6, 0), samples=5, greedy=True, max_new_tokens=6)
    assert greedy.answers == 6
    assert Accuracy(3, 1, 10).accuracy.mean == 0.3
    assert Accuracy(3, 1, 10).invalid_share.mean == 0.1


def test_the_embedded_log_is_what_its_script_writes() -> None:
    records = list(read(embedded_log()))
    assert len(records) == 1000
    task = arithmetic_task()
    asked = {p.id: p for p in as_logged(task.problems(250, 0, "train"))}
    for record in records:
        problem = asked[record["id"]]
        assert record["prompt"] == problem.prompt
        assert record["prompt"].endswith(INSTRUCTION)
        assert record["reward"] == (1.0 if task.score(problem, record["completion"]) >= 1 else -1.0)
        assert len(record["behaviour_logps"]) == len(record["completion_ids"]) > 0
        assert max(record["behaviour_logps"]) <= 0
    tested = {p.id for p in task.problems(120, 1, "test")}
    assert not tested & set(asked), "what is tested is not in the log"


def test_addition_is_judged_by_its_tokens() -> None:
    from thrifty.lm.sequences import from_rows

    pairs = [(7, 12)]
    said = [[1, 9, 12], [1, 8, 12], [1, 9, 13, 12], [12], [1, 9, 1, 1]]
    rows = [(addition.prompt(7, 12) + ids, [False] * 6 + [True] * len(ids)) for ids in said]
    answers = from_rows(rows, row_columns={"group": [0] * len(said)})
    right, invalid = addition.judge(pairs, answers)
    assert right.tolist() == [True, False, False, False, False]
    assert invalid.tolist() == [False, False, True, True, True]
    assert addition.answer(7, 12) == [1, 9, 12]


def test_a_setting_of_addition_shares_nothing_between_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addition, "SAMPLES", 2)
    monkeypatch.setattr(addition, "LEARNING_RATES", (1e-3,))
    setting = addition.prepare(0, True, tmp_path)
    logged = {tuple(ids[:6].tolist()) for ids in setting.log.input_ids}
    held = {tuple(addition.prompt(a, b)) for a, b in [*setting.validation, *setting.test]}
    assert not logged & held
    assert len(held) == 160
    before = [p.clone() for p in setting.base.parameters()]
    found = addition.measure(SFT, setting)
    assert set(found) == {"accuracy", "invalid answers"} == set(addition.measure(None, setting))
    assert all(torch.equal(a, b) for a, b in zip(before, setting.base.parameters(), strict=True))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["run", "topr", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    return said[-1]


def test_the_command_trains_a_user_s_model_on_a_user_s_log(
    model_folder: Path, log_file: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [
        "run",
        "topr",
        "--model",
        str(model_folder),
        "--data",
        str(log_file),
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    assert (
        cli.main(
            [*common, "--learning-rate", "0.003", "--epochs", "10", "--batch-size", "8", "--out", "mine", "--json"]
        )
        == 0
    )
    summary = json.loads(capsys.readouterr().out)
    before, after = summary["table"]
    assert after["log-probability of good answers"] > before["log-probability of good answers"]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("mine/model")
    tokenizer = AutoTokenizer.from_pretrained("mine/model")
    ids = tokenizer("what is 1 plus 2", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3).shape[1] > ids.shape[1]
    assert (elsewhere / "mine/report.html").exists()


def test_the_command_goes_on_in_rounds_on_a_task(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--iterations", "1", "--limit", "3", "--samples", "2", "--problems", "4", "--max-new-tokens", "4"]
    # None of a random model's answers is right: every reward is -1 and the negatives alone are learnt from.
    assert cli.main(["run", "topr", "--model", str(model_folder), "--device", "cpu", *arguments]) == 0
    said = capsys.readouterr().out
    assert "accuracy" in said
    assert (elsewhere / "runs/topr/model/model.safetensors").exists()


def test_wrong_input_is_one_line_that_names_the_cure(
    model_folder: Path, log_file: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(model_folder)]
    assert "no model folder ./nothing" in refused(capsys, "--model", "./nothing")
    assert "gone.jsonl" in refused(capsys, *model, "--data", "gone.jsonl", "--out", "a")
    write_jsonl(elsewhere / "misnamed.jsonl", [{"prompt": "what", "completion": "dog", "rewards": 1.0}])
    said = refused(capsys, *model, "--data", "misnamed.jsonl", "--out", "b")
    assert "'reward'" in said
    assert "rewards" in said
    (elsewhere / "broken.jsonl").write_text('{"prompt": "what", "completion": "dog", "reward": 1}\n{"prompt": \n')
    assert "2" in refused(capsys, *model, "--data", "broken.jsonl", "--out", "c")
    (elsewhere / "empty.jsonl").write_text("")
    assert "empty" in refused(capsys, *model, "--data", "empty.jsonl", "--out", "d")
    write_jsonl(
        elsewhere / "zero-one.jsonl",
        [{"prompt": "what", "completion": w, "reward": r} for w, r in (("dog", 1), ("cat", 0))],
    )
    said = refused(capsys, *model, "--data", "zero-one.jsonl", "--out", "e")
    assert "plain supervised fine-tuning" in said
    assert "--positive-fraction" in said
    (elsewhere / "encoder").mkdir()
    (elsewhere / "encoder/config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert "causal language model" in refused(capsys, "--model", "./encoder", "--out", "f")
    assert "did you mean --positive-fraction?" in refused(capsys, "--positive-fractoin", "0.1")
    assert "unknown task" in refused(capsys, *model, "--data", str(log_file), "--task", "arithmetics", "--out", "g")


def test_the_arithmetic_setting_measures_any_objective(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "MODEL", str(model_folder))
    monkeypatch.setattr(arithmetic, "TRAINED_LAYERS", 1)
    rows = [
        {"prompt": f"what is {i // 2}", "completion": "the sum is 3", "reward": 1.0 if i % 2 else -1.0}
        for i in range(2, 10)
    ]
    write_jsonl(tmp_path / "log.jsonl", rows)
    monkeypatch.setattr(arithmetic, "embedded_log", lambda: tmp_path / "log.jsonl")
    setting = arithmetic.prepare(0, True, tmp_path / "work")
    for name, arm in arithmetic.ARITHMETIC.baselines.items():
        found = arm(setting)
        assert set(found) == {"accuracy", "invalid answers", "training seconds"}, name
    # Every method that needs no more than the log is compared with its own defaults.
    for needs_no_more in (ALoL(), RAFT()):
        arithmetic.ARITHMETIC.evaluate(needs_no_more, setting)
    found = arithmetic.ARITHMETIC.evaluate(arithmetic.default_topr(), setting)
    assert 0 <= found["accuracy"] <= 1
