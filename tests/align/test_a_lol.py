"""A-LoL against numbers worked out by hand; values, orders, selection and the command on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thrifty import cli
from thrifty.align import log, validation
from thrifty.align.a_lol import ALoL
from thrifty.align.base import NothingToLearnError, Training
from thrifty.align.learning import Logged, learn
from thrifty.align.leftover import VARIANTS, Variant, a_lol_loss
from thrifty.align.priority import Weighted, priority_weights
from thrifty.align.prompt_value import (
    PromptValueHead,
    fit_value_head,
    mean_rewards,
    prompt_lengths,
    prompt_states,
    prompt_values,
    values_of,
)
from thrifty.align.training import train
from thrifty.align.validation import Selecting, Validation
from thrifty.align.values import ValueSettings, with_values
from thrifty.core.checkpoint import load_tree
from thrifty.core.errors import InputError
from thrifty.core.loop import StoppedError
from thrifty.core.run import Run, read_metrics
from thrifty.data.readers import write_jsonl
from thrifty.lm.load import load_lm
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences, from_rows

Tiny = tuple[Any, Any]
LOGPS, REFERENCE = torch.tensor([[-1, -0.5], [-2, -1]]), torch.tensor([[-1.2, -0.6], [-1, -0.8]])
REWARD, VALUE = torch.tensor([0.9, 0.3]), torch.tensor([0.5, 0.5])
MASK = torch.ones(2, 2, dtype=torch.bool)


def loss_of(variant: str, **others: Any) -> Any:
    return a_lol_loss(LOGPS, MASK, REFERENCE, REWARD, VALUE, variant=variant, **others)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("nll", (1.5 + 3) / 2),
        ("wbc", 1.125),
        ("r_gold", 0.397798),
        ("r_lol", 1.046692),
        ("a_lol", 0.404958),
        ("a_lol_ref_free", 0.3),
        ("a_lol_seq", 0.354798),
        ("a_lol_kl", 0.255),
    ],
)
def test_worked_example(variant: str, expected: float) -> None:
    assert float(loss_of(variant).value) == pytest.approx(expected, abs=1e-6)


def test_the_ratio_is_clipped_and_its_absence_is_none() -> None:
    assert loss_of("a_lol", clip=0.2).value == pytest.approx(0.5 * 0.4 * 1.2 * 1.5)
    assert loss_of("r_lol", clip=0.2).value == pytest.approx(0.5 * (0.9 * 1.2 * 1.5 + 0.3 * 0.8 * 3))
    far = a_lol_loss(LOGPS, MASK, REFERENCE - 4, REWARD, VALUE, clip=None).value
    assert far == pytest.approx(0.5 * 0.4 * math.exp(0.3 + 8) * 1.5, rel=1e-5)


def test_priorities_of_the_worked_example() -> None:
    assert priority_weights(REWARD - VALUE).tolist() == [1, 0]
    assert priority_weights(REWARD).tolist() == pytest.approx([0.75, 0.25])
    with pytest.raises(InputError, match="none can be drawn"):
        priority_weights(torch.tensor([0.0, -1.0]))


@settings(deadline=None)
@given(st.sampled_from(sorted(VARIANTS)), st.integers(0, 50))
def test_the_gradient_is_that_of_likelihood_weighted_by_constants(variant: str, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    logps, reference = (-2 * torch.rand(5, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(5, 6, generator=draw) < 0.7
    reward, value = (torch.rand(5, generator=draw, dtype=torch.float64) for _ in range(2))
    leaf = logps.clone().requires_grad_()
    a_lol_loss(leaf, mask, reference, reward, value, variant=variant, kl_coefficient=0.2).value.backward()  # type: ignore[arg-type]
    better, m = (reward - value).clamp(min=0)[:, None], mask.double()
    whole = ((logps - reference) * m).sum(1, keepdim=True).exp().clamp(0.1, 1.9)
    expected = {
        "nll": -m,
        "wbc": -reward[:, None] * m,
        "r_gold": -reward[:, None] * logps.exp().clamp(min=0.1) * m,
        "r_lol": -reward[:, None] * whole * m,
        "a_lol": -better * whole * m,
        "a_lol_ref_free": -better * m,
        "a_lol_seq": -better * (logps - reference).exp().clamp(0.1, 1.9) * m,
        "a_lol_kl": (0.2 - better) * m,
    }[variant]
    torch.testing.assert_close(leaf.grad, expected / 5, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_padding_changes_nothing(variant: Variant) -> None:
    pad = [torch.nn.functional.pad(t, (0, 3), value=v) for t, v in ((LOGPS, -9.0), (MASK, False), (REFERENCE, -1.0))]
    padded = a_lol_loss(*pad, REWARD, VALUE, variant=variant).value
    torch.testing.assert_close(padded, loss_of(variant).value)


def test_what_a_variant_needs_is_said() -> None:
    with pytest.raises(InputError, match="a_lol compares with a reference"):
        a_lol_loss(LOGPS, MASK, None, REWARD, VALUE)
    with pytest.raises(InputError, match="give the column value"):
        a_lol_loss(LOGPS, MASK, REFERENCE, REWARD, None)
    assert {name for name in VARIANTS if ALoL(variant=name).needs()} == {"r_lol", "a_lol", "a_lol_seq", "a_lol_kl"}


def logged(reward: list[float], value: list[float] | None = None, **columns: Any) -> Sequences:
    rows = [([4, 5 + number % 3, 6, 7, 1], [False, False, True, True, True]) for number in range(len(reward))]
    more = {} if value is None else {"value": torch.tensor(value)}
    found = from_rows(rows, row_columns={"reward": reward, "group": list(range(len(reward))), **columns})
    return found.with_columns(**more)


def test_answers_without_advantage_are_dropped_and_the_rest_drawn_by_it(caplog: pytest.LogCaptureFixture) -> None:
    data = logged([0.9, 0.5, 0.8, 0.1], [0.5, 0.5, 0.4, 0.5])
    with caplog.at_level("INFO", "thrifty"):
        kept = ALoL().prepare(data)
    assert "2 of 4 answers (50%)" in caplog.text
    assert kept["reward"].tolist() == pytest.approx([0.9, 0.8])
    assert kept["sampling_weight"].tolist() == pytest.approx([0.5, 0.5])
    assert "sampling_weight" not in ALoL(order="shuffle").prepare(data).columns
    assert ALoL(order="good_random").prepare(data)["sampling_weight"].tolist() == [0.5, 0.5]
    assert ALoL(variant="wbc").prepare(data)["sampling_weight"].tolist() == pytest.approx(
        [0.9 / 2.3, 0.5 / 2.3, 0.8 / 2.3, 0.1 / 2.3]
    )
    assert "sampling_weight" not in ALoL(variant="nll").prepare(data).columns
    with pytest.raises(NothingToLearnError, match="none of 2 answers is better"):
        ALoL().prepare(logged([0.1, 0.5], [0.5, 0.5]))


def test_the_other_answer_of_a_pair_is_drawn_where_all_count() -> None:
    data = logged([0.9, 0.7, 0.8, 0.9], [0.5] * 4, preferred=[True, False, True, False])
    assert ALoL().prepare(data)["sampling_weight"].tolist() == pytest.approx([0.4 / 0.7, 0.3 / 0.7])
    everything = ALoL(order="all_priority").prepare(data)["sampling_weight"].tolist()
    assert everything == pytest.approx([0.4 / 1.3, 0.2 / 1.3, 0.3 / 1.3, 0.4 / 1.3])
    assert len(ALoL(order="shuffle").prepare(data)) == len(ALoL(order="good_random").prepare(data)) == 2


def test_rewards_below_nought_are_counted_from_the_smallest() -> None:
    data = logged([1.0, -1.0], [0.0, 0.0])
    with pytest.raises(InputError, match=r"the smallest is -1: give --min-value -1"):
        ALoL(variant="wbc").prepare(data)
    shifted = ALoL(variant="wbc", min_value=-1.0).prepare(data)
    assert shifted["reward"].tolist() == [2, 0]
    assert shifted["sampling_weight"].tolist() == [1, 0]
    plain, moved = (ALoL(min_value=least).prepare(data) for least in (None, -1.0))
    torch.testing.assert_close(plain["reward"] - plain["value"], moved["reward"] - moved["value"])
    with pytest.raises(NothingToLearnError, match="smallest reward"):
        ALoL(variant="r_lol").prepare(logged([0.0, 0.0]))


def test_draws_depend_on_seed_and_step_only_and_follow_the_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 4.0, 0.0])
    order = Weighted(weights, 5, seed=7)
    later = Weighted(weights, 5, seed=7)(11)
    drawn = torch.cat([order(step) for step in range(2000)])
    assert torch.equal(order(11), later)
    assert not torch.equal(Weighted(weights, 5, seed=8)(11), later)
    shares = torch.bincount(drawn, minlength=6) / len(drawn)
    torch.testing.assert_close(shares, weights / 8, atol=0.015, rtol=0)
    assert shares[weights == 0].sum() == 0
    with pytest.raises(InputError, match="finite and at least 0"):
        Weighted(torch.tensor([1.0, -1.0]), 2)


def test_logged_rows_are_drawn_by_their_weight() -> None:
    source = Logged(logged([0.1, 0.2, 0.3], sampling_weight=[0.0, 1.0, 0.0]), 4, seed=0)
    assert source.rows() == 4
    assert source.batch(3)["reward"].tolist() == pytest.approx([0.2] * 4)
    pairs = logged([0.1, 0.2, 0.3, 0.4], sampling_weight=[0.0, 0.0, 1.0, 1.0])
    assert Logged(pairs, 4, seed=0, rows=2).batch(0)["reward"].tolist() == pytest.approx([0.3, 0.4] * 2)


def test_parts_of_a_step_add_up(tiny: Tiny) -> None:
    model, _ = tiny
    for variant in VARIANTS:
        method = ALoL(variant=variant, order="shuffle")  # type: ignore[arg-type]
        data = logged([0.9, 0.6, 0.8, 0.7], [0.5, 0.5, 0.4, 0.5])
        data = method.prepare(data.with_columns(reference_logps=-1.0 * data.response_mask))
        whole = method.loss(model, data, data).value.detach()
        parts = sum(method.loss(model, data.select(rows), data).value.detach() for rows in ([0], [1, 2, 3]))
        torch.testing.assert_close(parts, whole)


def test_answers_worth_nothing_need_no_forward_pass() -> None:
    data = logged([0.5, 0.0], [0.1, 0.1])
    assert ALoL(variant="wbc").teaches(data).tolist() == [True, False]
    assert ALoL(variant="a_lol").teaches(data).tolist() == [True, False]
    assert ALoL(variant="a_lol_kl").teaches(data).tolist() == [True, True]


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_the_value_of_a_prompt_does_not_see_padding(kind: Any) -> None:
    torch.manual_seed(0)
    head = PromptValueHead(12, kind, max_value=4.0, min_value=-1.0).eval()
    assert kind == "mlp" or head.attention.num_heads == 4, "the most of eight that divide a width of twelve"
    hidden = torch.randn(3, 5, 12)
    mask = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
    values = head(hidden, mask)
    alone = torch.stack([head(row[None, :length], torch.ones(1, length, dtype=torch.bool))[0]
                         for row, length in zip(hidden, (5, 3, 1), strict=True)])  # fmt: skip
    torch.testing.assert_close(values, alone)
    other = torch.where(mask[:, :, None], hidden, 1e6)
    torch.testing.assert_close(head(other, mask), values)
    assert ((values > -1) & (values < 4)).all()


def test_a_value_is_between_its_bounds_whatever_the_states() -> None:
    head = PromptValueHead(2, max_value=3.0, min_value=1.0).eval()
    with torch.no_grad():
        head.hidden.weight.copy_(torch.eye(2))
        head.hidden.bias.zero_()
        head.last.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.last.bias.zero_()
    hidden = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[-5.0, 0.0], [-5.0, 0.0]]])
    values = head(hidden, torch.ones(2, 2, dtype=torch.bool))
    # The mean state's first entry is 1, then -5, which ReLU makes 0: 1 + 2 sigmoid(1) and 1 + 2 sigmoid(0).
    assert values.tolist() == pytest.approx([1 + 2 / (1 + math.exp(-1)), 2.0])
    with pytest.raises(InputError, match="max_value must be above min_value"):
        PromptValueHead(2, max_value=0.0)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_a_head_learns_what_prompts_are_worth(kind: Any) -> None:
    torch.manual_seed(1)
    states = [torch.randn(3 + number % 4, 8) + (number % 2) for number in range(60)]
    reward = torch.tensor([0.2, 0.8]).repeat(30)
    head = PromptValueHead(8, kind)
    before = torch.get_rng_state()
    errors = fit_value_head(head, states, reward, epochs=40, learning_rate=3e-3)
    assert torch.equal(torch.get_rng_state(), before), "other draws do not notice"
    assert min(errors) < 0.05 < errors[0]
    assert not head.training
    values = values_of(head, states).detach()
    assert values[1::2].mean() - values[::2].mean() > 0.25
    again = PromptValueHead(8, kind)
    again.load_state_dict(head.state_dict())
    torch.testing.assert_close(values_of(again.eval(), states).detach(), values)


def test_the_best_epoch_counts() -> None:
    """With a huge learning rate the error of the first epoch is the smallest; its weights are kept."""
    torch.manual_seed(0)
    states, reward = [torch.randn(2, 4) for _ in range(16)], torch.full((16,), 0.5)
    head, twin = PromptValueHead(4, dropout=0.0), PromptValueHead(4, dropout=0.0)
    twin.load_state_dict(head.state_dict())
    errors = fit_value_head(head, states, reward, epochs=5, learning_rate=30.0)
    assert errors.index(min(errors)) == 0
    fit_value_head(twin, states, reward, epochs=1, learning_rate=30.0)
    torch.testing.assert_close(values_of(head, states), values_of(twin, states))


def test_states_are_those_of_the_prompt_in_evaluation_mode(tiny: Tiny) -> None:
    model, _ = tiny
    data = logged([0.0, 0.0, 0.0])
    assert prompt_lengths(data).tolist() == [2, 2, 2]
    states = prompt_states(model, data, torch.device("cpu"))
    expected = model(input_ids=data.input_ids[:, :2], output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(torch.stack(states), expected, atol=1e-5, rtol=1e-4)
    changed = Sequences(data.input_ids.clone().fill_(9), data.attention_mask, data.response_mask)
    changed.input_ids[:, :2] = data.input_ids[:, :2]
    torch.testing.assert_close(torch.stack(prompt_states(model, changed, torch.device("cpu"))), torch.stack(states))
    assert not any(row.requires_grad for row in states)


def test_a_prompt_has_one_value_for_all_its_answers(tiny: Tiny) -> None:
    model, _ = tiny
    data = logged([0.0] * 6).with_columns(group=torch.tensor([8, 3, 5, 8, 3, 5]))
    head = PromptValueHead(32).eval()
    values = prompt_values(head, model, data, torch.device("cpu"))
    torch.testing.assert_close(values[:3], values[3:])
    each = prompt_values(head, model, data.without_columns("group"), torch.device("cpu"))
    torch.testing.assert_close(values, each)


def test_without_a_reward_a_prompt_is_worth_the_mean_of_its_log() -> None:
    reward, group = torch.tensor([1.0, 0.0, 0.5]), torch.tensor([2, 2, 9])
    assert mean_rewards(reward, group).tolist() == [0.5, 0.5, 0.5]
    assert mean_rewards(torch.tensor([1.0, 0.0, 0.2]), group).tolist() == pytest.approx([0.5, 0.5, 0.4])


PROMPTS = [{"prompt": f"what is {a} plus {b}"} for a in range(1, 6) for b in range(1, 5)]


def dogs(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("dog" in said) for said in completions]


def test_values_are_learnt_from_one_answer_of_the_reference_each(tiny: Tiny, tmp_path: Path) -> None:
    model, tokenizer = tiny
    calls: list[int] = []

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(len(completions))
        return dogs(prompts, completions)

    before = [p.clone() for p in model.parameters()]
    data = logged([1.0, 0.0, 1.0])
    found = []
    for _ in range(2):
        with Run(tmp_path / "r", device="cpu", dtype="float32", config={}) as run:
            valued, told = with_values(
                model, tokenizer, data, Validation(PROMPTS, reward), run, ValueSettings(epochs=30), max_new_tokens=4
            )
            found.append(valued["value"])
            assert len(read_metrics(run.directory / "value")) == 30
    assert calls == [20], "one answer to each prompt, kept for the next life of the run"
    assert torch.equal(*found)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    kept = load_tree(tmp_path / "r/value/values.safetensors")
    torch.testing.assert_close(kept["advantage"], data["reward"] - found[0])
    assert abs(told["value"] - told["reference_reward"]) < 0.25
    assert "query" not in load_tree(tmp_path / "r/value/value_head.safetensors")
    with Run(tmp_path / "s", device="cpu", dtype="float32") as run:
        with pytest.raises(InputError, match=r"do not fit into max_value 0\.5"):
            with_values(model, tokenizer, data, Validation(PROMPTS, dogs), run, ValueSettings(max_value=0.5))
        assert with_values(model, tokenizer, found_data := data.with_columns(value=data["reward"]), None, run) == (
            found_data, {},
        )  # fmt: skip


def test_training_raises_what_is_better_than_its_value(tiny: Tiny, tmp_path: Path) -> None:
    model, _ = tiny
    rows = [([4, 5, 6 + number, 7, 1], [False, False, True, True, True]) for number in range(6)]
    data = from_rows(rows, row_columns={"reward": [0.9, 0.1] * 3, "group": [0] * 6}).with_columns(
        value=torch.full((6,), 0.5)
    )
    before = token_logps(model, data).sum(1).detach()
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(model, ALoL(), data, run, Training(learning_rate=3e-3, batch_size=4, micro_batch_size=2, epochs=30))
        lines = read_metrics(run.directory)
    change = token_logps(model, data).sum(1).detach() - before
    assert change[::2].min() > change[1::2].max()
    assert lines[0]["ratio"] == pytest.approx(1, abs=1e-4)
    assert lines[-1]["ratio"] == pytest.approx(1.9, abs=0.05), "the ratio is clipped"
    # Three of six answers are kept, so an epoch is as long as three answers are.
    assert len(lines) == round(30 * 3 / 3)


def selecting(model: Any, tokenizer: Any, source: Logged, reward: Any = dogs) -> Selecting:
    return Selecting(source, model, tokenizer, Validation(PROMPTS[:4], reward), 3, 4)


def test_the_best_weights_are_kept_and_a_killed_run_keeps_them_too(model_folder: Path, tmp_path: Path) -> None:
    data = logged([0.9, 0.8, 0.7, 0.6], [0.5] * 4)
    method = ALoL(variant="a_lol_ref_free")

    def go(folder: str, stop_at: int | None) -> tuple[Any, Selecting, list[dict[str, Any]]]:
        model, tokenizer = load_lm(model_folder)
        looks: list[int] = []

        def reward(prompts: list[str], completions: list[str]) -> list[float]:
            looks.append(1)
            if len(looks) == stop_at:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            # Best at the second look of a run's first life or of the only one; sinking from then on.
            return [{1: 0.2, 2: 0.9}.get(len(looks), -1.0 * len(looks))] * len(completions)

        with Run(tmp_path / folder, device="cpu", dtype="float32", config={}) as run:
            looking = selecting(model, tokenizer, Logged(method.prepare(data), 2, run.seed), reward)
            training = Training(learning_rate=1e-3, batch_size=2, micro_batch_size=2)
            learn(model, method, looking, run, training, 8, state={"selection": looking})
            looking.look(8)
            last = [p.detach().clone() for p in model.parameters()]
            looking.restore_best()
            assert not all(torch.equal(a, b) for a, b in zip(last, model.parameters(), strict=True))
            return model, looking, read_metrics(run.directory)

    whole, looking, lines = go("whole", None)
    assert (looking.best_step, looking.best) == (3, pytest.approx(0.9))
    assert [line["validation_reward"] for line in lines[2:5]] == pytest.approx([0.2, 0.9, 0.9])
    with pytest.raises(StoppedError):
        go("stopped", 2)
    resumed, again, _ = go("stopped", None)
    assert again.best_step == 3
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(InputError, match="at least 1"):
        Selecting(Logged(data, 2, 0), whole, None, Validation(PROMPTS, dogs), 0, 4)


def test_a_drawn_order_goes_on_where_it_was(model_folder: Path, tmp_path: Path) -> None:
    data = logged([0.9, 0.8, 0.7, 0.6], [0.5] * 4)

    class Stops(ALoL):
        calls = 0

        def loss(self, model: Any, batch: Sequences, whole: Sequences) -> Any:
            Stops.calls += 1
            if Stops.calls == 4:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            return super().loss(model, batch, whole)

    def go(folder: str, method: ALoL) -> Any:
        model, _ = load_lm(model_folder)
        with Run(tmp_path / folder, device="cpu", dtype="float32", config={}) as run:
            train(model, method, data, run, Training(learning_rate=1e-3, batch_size=2, micro_batch_size=2, epochs=5))
            return model

    whole = go("whole", ALoL())
    with pytest.raises(StoppedError):
        go("stopped", Stops())
    resumed = go("stopped", ALoL())
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


SAID = [
    {"prompt": f"what is {a} plus {b}", "completion": said, "reward": float("dog" in said), "answer": "dog"}
    for a in range(1, 6)
    for b in range(1, 4)
    for said in ("the sum is dog", f"the sum is {a}", "cat")
]


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "log.jsonl", SAID)
    return tmp_path


def command(model_folder: Path, *arguments: str) -> int:
    given_arguments = ["--model", str(model_folder), "--device", "cpu", "--dtype", "float32", *arguments]
    return cli.main(["run", "a-lol", "--max-new-tokens", "4", *given_arguments])


FAST = ["--learning-rate", "0.003", "--batch-size", "8", "--micro-batch-size", "8"]


def test_the_command_holds_prompts_out_and_learns_their_value(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", "log.jsonl", "--reward", "regex:.*dog.*", "--validation-share", "0.2", "--epochs", "6"]
    looks = ["--select-every", "2", "--nll-epochs", "1", "--value-head", "attention"]
    assert command(model_folder, *arguments, *looks, *FAST, "--out", "a", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    # Three of fifteen prompts are held out; of the rest one answer in three has a reward of 1, which beats any value.
    assert (summary["logged"], summary["kept"]) == (36, 12)
    assert summary["steps"] == 9
    assert 0 <= summary["reference_reward"] <= 1
    before, after = summary["table"]
    good, bad = (f"log-probability of {name} answers" for name in ("good", "bad"))
    assert after[good] - before[good] > after[bad] - before[bad]
    assert summary["best_step"] >= 0
    assert (elsewhere / "a/reference/metrics.jsonl").exists()
    assert (elsewhere / "a/value/value_head.safetensors").exists()


def test_without_a_reward_the_log_s_own_means_are_taken_and_that_is_said(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert command(model_folder, "--data", "log.jsonl", *FAST, "--no-scale-steps", "--out", "b", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["logged"], summary["kept"], summary["steps"]) == (45, 15, 6)
    assert "give --reward" in caplog.text
    assert "mean of its logged rewards" in caplog.text


def test_values_of_the_log_and_validation_prompts_of_a_file_are_used(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(elsewhere / "valued.jsonl", [{**row, "value": 1.5 - row["reward"]} for row in SAID])
    assert command(model_folder, "--data", "valued.jsonl", *FAST, "--out", "c", "--json") == 0
    assert json.loads(capsys.readouterr().out)["kept"] == 15
    write_jsonl(elsewhere / "prompts.jsonl", PROMPTS)
    held = ["--reward", "regex:.*dog.*", "--validation", "prompts.jsonl"]
    assert command(model_folder, "--data", "log.jsonl", *held, *FAST, "--out", "d", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["logged"], summary["kept"]) == (45, 15)


def test_the_command_does_without_anything(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The log of the package holds another tokenizer's ids.
    rows = [{**row, "reward": 2 * row["reward"] - 1} for row in SAID]
    write_jsonl(elsewhere / "small.jsonl", rows)
    for module in (log, validation):
        monkeypatch.setattr(module, "embedded_log", lambda: elsewhere / "small.jsonl")
    few = ["--limit", "40", "--problems", "3", "--validation-prompts", "5"]
    assert command(model_folder, *few, *FAST, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["reference_reward"] == -1, "a random model answers nothing right, on the log's scale of +1 and -1"
    assert 0 < summary["kept"] < summary["logged"] == 40


def test_wrong_input_is_one_line_that_names_the_cure(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert command(model_folder, *arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    write_jsonl(elsewhere / "signed.jsonl", [{**row, "reward": 2 * row["reward"] - 1} for row in SAID])
    said = refused("--data", "signed.jsonl", "--reward", "regex:.*dog.*", "--out", "a")
    assert "score the log with the same reward" in said
    assert "give --min-value -1" in refused("--data", "signed.jsonl", "--variant", "wbc", "--out", "b")
    assert "give --reward" in refused("--data", "log.jsonl", "--select-every", "5", "--out", "c")
    assert "give --reward" in refused("--data", "log.jsonl", "--validation", "log.jsonl", "--out", "d")
    assert "give --data" in refused("--reward", "math", "--out", "e")
    write_jsonl(elsewhere / "bare.jsonl", [{"prompt": "what", "completion": "dog"}])
    assert "'reward'" in refused("--data", "bare.jsonl", "--out", "f")
    write_jsonl(elsewhere / "equal.jsonl", [{**row, "reward": 0.5} for row in SAID])
    assert "none of 45 answers is better" in refused("--data", "equal.jsonl", "--out", "g")
    for settings_, message in (
        ({"clip": 0.0}, "clip must be above 0"),
        ({"kl_coefficient": -0.1}, "kl_coefficient must be at least 0"),
        ({"validation_share": 1.0}, "validation_share must be within"),
        ({"value_epochs": 0}, "value_epochs must be at least 1"),
        ({"select_every": 0}, "select_every must be at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            ALoL(**settings_)  # type: ignore[arg-type]


def test_advantages_do_not_depend_on_where_rewards_are_counted_from() -> None:
    value: Tensor = torch.tensor([0.2, 0.4])
    for shift in (0.0, -3.0, 10.0):
        moved = a_lol_loss(LOGPS, MASK, REFERENCE, REWARD + shift, value + shift).value
        torch.testing.assert_close(moved, a_lol_loss(LOGPS, MASK, REFERENCE, REWARD, value).value)
