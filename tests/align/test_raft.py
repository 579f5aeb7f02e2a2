"""RAFT: what is selected, against numbers worked out by hand; the rounds; the command."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from thrifty import cli
from thrifty.align.asking import Sampling
from thrifty.align.base import Training
from thrifty.align.best_of import first_of_each, select_best
from thrifty.align.diversity import distinct_n
from thrifty.align.nll import weighted_nll
from thrifty.align.raft import RAFT, kl_regularised
from thrifty.align.sft import SFT
from thrifty.align.tidy import Tidied, Tidiness, cut_at
from thrifty.align.training import iterate, train
from thrifty.core.errors import InputError
from thrifty.core.run import Run, read_metrics
from thrifty.data.readers import write_jsonl
from thrifty.lm.draw import Draw
from thrifty.lm.load import load_lm
from thrifty.lm.logps import token_logps
from thrifty.lm.sampler import ModelSampler, Request
from thrifty.lm.sequences import Sequences

Tiny = tuple[Any, Any]
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])
LOCAL = torch.tensor([0.1, 0.7, 0.7, 0.2, -math.inf, 0.0])
TOP = torch.tensor([0.2, 0.9, 0.5, 0.7, 0.1])


def answers(reward: Tensor, group: Tensor, **columns: Tensor) -> Sequences:
    """One response of two tokens for each reward."""
    ids = torch.arange(4 * len(reward)).view(-1, 4)
    spoke = torch.tensor([[False, False, True, True]]).repeat(len(reward), 1)
    return Sequences(ids, torch.ones_like(spoke), spoke, {"reward": reward, "group": group, **columns})


def test_worked_example_local() -> None:
    chosen = select_best(LOCAL, GROUP, ties="first")
    assert chosen.tolist() == [1, 3]
    assert float(LOCAL[chosen].mean()) == pytest.approx(0.45)
    assert float(LOCAL[first_of_each(GROUP)].mean()) == pytest.approx(0.15)


def test_worked_example_top() -> None:
    chosen = select_best(TOP, torch.arange(5), strategy="top", fraction=0.4)
    assert chosen.tolist() == [1, 3]
    assert float(TOP[chosen].mean()) == pytest.approx(0.8)
    measured = RAFT(strategy="top", fraction=0.4).measured(answers(TOP, torch.arange(5)))
    assert measured["policy_reward"] == pytest.approx(0.48)
    assert measured["training_reward"] == pytest.approx(0.8)
    assert measured["reward_gap"] == pytest.approx(0.32)


def test_the_policy_s_reward_is_that_of_the_first_answer_and_not_of_the_best() -> None:
    discarded = torch.tensor([False, False, False, False, True, False])
    raw = torch.where(torch.isfinite(LOCAL), LOCAL, 5.0)
    measured = RAFT(ties="first").measured(answers(raw, GROUP, discarded=discarded))
    assert measured["policy_reward"] == pytest.approx(0.15)
    assert measured["training_reward"] == pytest.approx(0.45)
    assert measured["discarded"] == pytest.approx(1 / 6)
    assert measured["selected"] == 2


def test_a_prompt_whose_answers_are_all_discarded_is_skipped() -> None:
    reward = torch.tensor([-math.inf, -math.inf, 0.3])
    assert select_best(reward, torch.tensor([4, 4, 7])).tolist() == [2]
    assert select_best(reward[:2], torch.tensor([4, 4])).tolist() == []
    assert select_best(reward[:2], torch.tensor([0, 1]), strategy="top", fraction=0.5).tolist() == []


def test_a_fraction_keeps_at_least_one_answer() -> None:
    assert select_best(TOP, torch.arange(5), strategy="top", fraction=0.1).tolist() == [1]
    # 7 * 0.2 is rounded down to 1; 100 * 0.29 is 28.999999999999996 in floating point, and means 29.
    assert len(select_best(torch.arange(7.0), torch.arange(7), strategy="top", fraction=0.2)) == 1
    for many, fraction, kept in ((100, 0.29, 29), (5, 0.6, 3), (10, 0.3, 3)):
        chosen = select_best(torch.arange(float(many)), torch.arange(many), strategy="top", fraction=fraction)
        assert len(chosen) == kept
    with pytest.raises(InputError, match="needs the fraction"):
        select_best(TOP, torch.arange(5), strategy="top")


def test_ties_are_broken_at_random_and_evenly() -> None:
    draw = torch.Generator().manual_seed(0)
    reward, group = torch.tensor([1.0, 0.0, 1.0, 1.0]), torch.zeros(4, dtype=torch.long)
    counts = torch.bincount(torch.cat([select_best(reward, group, draw=draw) for _ in range(3000)]), minlength=4)
    torch.testing.assert_close(counts / 3000, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]), atol=0.03, rtol=0)
    assert select_best(reward, group, ties="first").tolist() == [0]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), min_size=1, max_size=30), st.integers(0, 5))
def test_the_best_of_each_prompt_in_words(rows: list[tuple[int, int]], seed: int) -> None:
    group, reward = torch.tensor([g for g, _ in rows]), torch.tensor([float(r) for _, r in rows])
    chosen = select_best(reward, group, min_reward=-1.0, draw=torch.Generator().manual_seed(seed))
    best = {g: max(r for other, r in rows if other == g) for g, _ in rows}
    assert group[chosen].tolist() == [rows[i][0] for i in chosen.tolist()]
    assert sorted(group[chosen].tolist()) == sorted(g for g, r in best.items() if r >= -1)
    assert all(rows[i][1] == best[rows[i][0]] for i in chosen.tolist())
    # Only the order counts: any rising function of the reward selects the same.
    other = select_best(reward.exp() * 3 + 1, group, ties="first")
    assert other.tolist() == select_best(reward, group, ties="first").tolist()


def test_the_divergence_ranks_and_is_no_term_of_the_loss() -> None:
    """Two nats further from the first policy cost 0.2 at beta 0.1: the second answer falls behind the first."""
    mask = torch.tensor([[False, False, True, True]]).repeat(2, 1)
    logps = torch.tensor([[9.0, 9, -1, -1], [9, 9, -1, -1]])
    reference = torch.tensor([[0.0, 0, -1, -1], [0, 0, -2, -2]])
    reward = torch.tensor([0.5, 0.6])
    found = kl_regularised(reward, logps, reference, mask, 0.1)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.4]))
    data = answers(reward, torch.zeros(2, dtype=torch.long), behaviour_logps=logps, reference_logps=reference)
    assert RAFT().prepare(data)["reward"].tolist() == [pytest.approx(0.6)]
    assert RAFT(kl_coefficient=0.1).prepare(data)["reward"].tolist() == [0.5]
    assert RAFT(kl_coefficient=0.1).needs() == {"behaviour_logps", "reference_logps"}
    assert not RAFT().needs()
    # Every policy is as far from itself.
    torch.testing.assert_close(kl_regularised(reward, logps, logps, mask, 5.0), reward)


def test_what_is_below_the_least_reward_is_not_learnt(caplog: pytest.LogCaptureFixture) -> None:
    reward = torch.tensor([0.0, 0.0, 1.0, 0.0])
    data = answers(reward, torch.tensor([0, 0, 1, 1]))
    assert len(RAFT().prepare(data)) == 2
    assert RAFT(min_reward=1.0).prepare(data)["group"].tolist() == [1]
    assert "50% of the answers are to prompts whose answers all have the same reward" in caplog.text
    with pytest.raises(InputError, match=r"none of 2 answers is left \(best reward 0\)"):
        RAFT(min_reward=1.0).prepare(data.select([0, 1]))


def test_a_selection_depends_on_the_answers_only() -> None:
    data = answers(torch.ones(60), torch.arange(60) // 6)
    chosen = RAFT().selected(data).tolist()
    torch.manual_seed(1)
    assert RAFT().selected(data).tolist() == chosen
    assert chosen != RAFT(ties="first").selected(data).tolist() == list(range(0, 60, 6))


def test_the_loss_is_likelihood_with_weight_one_on_the_selected_and_none_on_the_rest(tiny: Tiny) -> None:
    model, _ = tiny
    data = answers(LOCAL.nan_to_num(neginf=-1.0), GROUP)
    data = Sequences(data.input_ids % 20, data.attention_mask, data.response_mask, data.columns)
    method = RAFT(ties="first")
    kept = method.prepare(data)
    whole = float(method.loss(model, kept, kept).value.detach())
    weight = torch.tensor([0.0, 1, 0, 1, 0, 0])
    expected = weighted_nll(token_logps(model, data), data.response_mask, weight)
    assert whole == pytest.approx(float(expected.detach()), rel=1e-5)
    parts = [float(method.loss(model, kept.select([row]), kept).value.detach()) for row in range(2)]
    assert sum(parts) == pytest.approx(whole, rel=1e-5)


def test_the_prompt_is_learnt_only_where_wanted() -> None:
    data = answers(LOCAL.nan_to_num(neginf=-1.0), GROUP)
    assert RAFT().prepare(data).response_mask.sum(1).tolist() == [2, 2]
    whole = RAFT(loss_on_prompt=True).prepare(data)
    assert whole.response_mask[0].tolist() == [False, True, True, True]
    assert whole["weight"].sum() == 6


def test_one_answer_to_each_prompt_is_fine_tuning_on_all_of_them() -> None:
    data = answers(torch.tensor([0.5, -1.0, 0.0]), torch.arange(3))
    kept, plain = RAFT().prepare(data), SFT(threshold=-math.inf).prepare(data)
    assert torch.equal(kept.input_ids, plain.input_ids)
    assert torch.equal(kept["weight"], plain["weight"])


def test_distinct_n() -> None:
    assert distinct_n([["a", "b", "a", "b"]]) == pytest.approx(2 / 3)
    assert distinct_n([[1, 2], [1, 2]]) == 0.5
    assert distinct_n([[1], []]) == 0.0
    assert distinct_n([[1, 1, 2]], 1) == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="at least 1"):
        distinct_n([[1]], 0)


def said(tokenizer: Any, *texts: str) -> Sequences:
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    longest = max(map(len, rows)) + 1
    ids = torch.tensor([[4, *row, *[0] * (longest - 1 - len(row))] for row in rows])
    real = torch.tensor([[True] * (1 + len(row)) + [False] * (longest - 1 - len(row)) for row in rows])
    spoke = real.clone()
    spoke[:, 0] = False
    many = len(rows)
    return Sequences(
        ids, real, spoke,
        {"behaviour_logps": -1.0 * spoke, "finished": torch.zeros(many, dtype=torch.bool), "group": torch.arange(many)},
    )  # fmt: skip


def test_an_answer_ends_at_the_marker(tiny: Tiny) -> None:
    _, tokenizer = tiny
    data = said(tokenizer, "the sum is 3", "dog cat 1", "cat")
    cut, where = cut_at(data, tokenizer, "cat")
    assert where.tolist() == [False, True, True]
    assert cut.texts(tokenizer) == ["the sum is 3", "dog", ""]
    assert [ids[mask].tolist()[-1] for ids, mask in zip(cut.input_ids, cut.response_mask, strict=True)][1:] == [1, 1]
    assert cut["behaviour_logps"].sum(1).tolist() == [-4, -1, 0]
    assert cut.lengths.tolist() == [5, 3, 2]
    assert not cut["behaviour_logps"][~cut.response_mask].any()


def test_answers_are_discarded_by_marker_and_length() -> None:
    rules = Tidiness(discard_marker="#", shortest=2)
    assert rules.discarded(["ok", "a # b", " a ", "", "ab"]).tolist() == [False, True, True, True, False]
    assert Tidiness().discarded(["", " ", "7"]).tolist() == [True, True, False]
    with pytest.raises(InputError, match="turn_marker must not be empty"):
        Tidiness(turn_marker="")


def test_sampled_answers_are_cut_and_their_ends_have_the_policy_s_probability(tiny: Tiny) -> None:
    model, tokenizer = tiny
    sampler = Tidied(ModelSampler(model, tokenizer), model, tokenizer, Tidiness("dog", "cat", 1))
    found = sampler.sample(["what is 1", "the sum"], Request(24, max_new_tokens=6, draw=Draw(), seed=3))
    texts = found.texts(tokenizer)
    assert not any("dog" in text for text in texts)
    expected = ["cat" in text or not text.strip() for text in texts]
    assert found["discarded"].tolist() == expected
    assert any(expected)
    torch.testing.assert_close(found["behaviour_logps"], token_logps(model, found).detach(), atol=1e-4, rtol=0)


def dogs(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("dog" in said) for said in completions]


PROMPTS = ["what is 1 plus 2", "what is 2 plus 2", "the sum is", "what is 3"]
FEW = Sampling(samples=6, prompts_per_rollout=3, max_new_tokens=4)
FAST = Training(learning_rate=3e-3, batch_size=3, micro_batch_size=3, epochs=4)


def rounds(model: Any, tokenizer: Any, run: Run, method: RAFT, reward: Any = dogs, **others: Any) -> Any:
    settings = {"iterations": 4, "sampling": FEW, "training": FAST, **others}
    return iterate(model, tokenizer, method, PROMPTS, reward, run, **settings)


def test_rounds_raise_the_reward_and_say_how(tiny: Tiny, tmp_path: Path) -> None:
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        rounds(*tiny, run, RAFT(), iterations=6)
        lines = read_metrics(run.directory)
    assert len(lines) == 6
    assert {"reward", "temperature", "policy_reward", "training_reward", "reward_gap", "distinct_2", "ties"} <= set(
        lines[0]
    )
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.2
    assert all(line["training_reward"] >= line["policy_reward"] for line in lines)
    assert lines[0]["temperature"] == 1.0


def test_a_round_in_which_nothing_is_left_is_skipped_and_said(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = tiny
    calls: list[int] = []

    def right_in_the_second_round(prompts: list[str], completions: list[str]) -> list[float]:
        calls.append(1)
        return [float(len(calls) == 2)] * len(completions)

    before = [p.clone() for p in model.parameters()]
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        rounds(model, tokenizer, run, RAFT(min_reward=1.0), right_in_the_second_round, iterations=1)
        assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert "round 1 of 1 teaches nothing and is skipped" in caplog.text
        rounds(model, tokenizer, run, RAFT(min_reward=1.0), right_in_the_second_round, iterations=3)
        assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        assert len(calls) == 3, "the first round's answers are kept"
        lines = read_metrics(run.directory)
    assert [line["selected"] for line in lines] == [0, 3, 0]
    assert "training_reward" not in lines[0]


def test_a_run_that_was_killed_ends_with_the_same_weights(model_folder: Path, tmp_path: Path) -> None:
    """With ties everywhere, a divergence, and a sampler that cuts: all of it is found again."""
    method = RAFT(kl_coefficient=0.05)

    def go(folder: str, iterations: int) -> tuple[Any, Any]:
        model, tokenizer = load_lm(model_folder)
        sampler = Tidied(ModelSampler(model, tokenizer), model, tokenizer, Tidiness("cat"))
        with Run(tmp_path / folder, device="cpu", dtype="float32", config={}) as run:
            rounds(model, tokenizer, run, method, iterations=iterations, sampler=sampler)
            return model, read_metrics(run.directory)

    whole, lines = go("whole", 3)
    go("stopped", 1)
    resumed, again = go("stopped", 3)
    assert again == lines
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


LOGGED = [
    {"prompt": f"what is {a} plus {b}", "completion": f"the sum is {c}", "reward": float(c == a + b)}
    for a, b in [(1, 2), (2, 2), (3, 4)]
    for c in (a + b, a + b + 1, 1)
]


def test_offline_the_best_of_each_prompt_is_learnt(tiny: Tiny, tmp_path: Path) -> None:
    from thrifty.align.log import read_log

    model, tokenizer = tiny
    write_jsonl(tmp_path / "log.jsonl", LOGGED)
    data = read_log(str(tmp_path / "log.jsonl"), tokenizer)
    before = token_logps(model, data).sum(1).detach()
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(model, RAFT(), data, run, Training(learning_rate=3e-3, batch_size=3, micro_batch_size=3, epochs=20))
    change = token_logps(model, data).sum(1).detach() - before
    right = data["reward"] > 0
    assert change[right].min() > change[~right].max()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "log.jsonl", LOGGED)
    write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": row["prompt"], "answer": "dog"} for row in LOGGED[::3]])
    return tmp_path


def command(model_folder: Path, *arguments: str) -> int:
    return cli.main(["run", "raft", "--model", str(model_folder), "--device", "cpu", "--dtype", "float32", *arguments])


def test_the_command_ranks_a_user_s_log(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", "log.jsonl", "--learning-rate", "0.003", "--epochs", "20", "--out", "a", "--json"]
    assert command(model_folder, *arguments, "--kl-coefficient", "0.1") == 2
    assert "give behaviour_logps, or no --kl-coefficient" in capsys.readouterr().err
    assert command(model_folder, *arguments, "--turn-marker", "cat") == 0
    summary = json.loads(capsys.readouterr().out)
    before, after = summary["table"]
    gain = {name: after[name] - before[name] for name in before if name.startswith("log-prob")}
    assert gain["log-probability of good answers"] > gain["log-probability of bad answers"]
    assert summary["selection"]["training_reward"] == 1.0
    assert summary["selection"]["selected"] == 3


ONLINE = ["--samples", "4", "--max-new-tokens", "4", "--iterations", "2"]


def test_the_command_samples_and_selects_on_a_user_s_prompts(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--data", "prompts.jsonl", "--reward", "regex:.*dog.*"]
    assert command(model_folder, *asked, *ONLINE, "--strategy", "top", "--out", "b", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["iterations"]) == 2
    # Four times as many prompts, once each, of which a quarter is kept: three prompts make it one answer at least.
    assert [line["selected"] for line in summary["iterations"]] == [1, 1]
    assert (elsewhere / "b/model/model.safetensors").exists()


def test_the_command_does_without_anything(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--limit", "3", "--problems", "3", "--samples", "2", "--max-new-tokens", "4"]
    assert command(model_folder, *few, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(summary["iterations"]) == RAFT.iterations
    assert summary["iterations"][0]["selected"] == 0, "a random model answers nothing right: every round is skipped"


def test_wrong_input_is_one_line_that_names_the_cure(
    model_folder: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert command(model_folder, *arguments) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "'completion'" in refused("--data", "prompts.jsonl", "--out", "a")
    assert "give --reward" in refused("--data", "log.jsonl", "--iterations", "2", "--out", "b")
    assert "all are discarded" in refused("--data", "log.jsonl", "--shortest-answer", "99", "--out", "c")
    assert "give --data" in refused("--reward", "math", "--out", "d")
    settings: Sequence[tuple[dict[str, Any], str]] = [
        ({"fraction": 0.5}, "fraction is for strategy 'top'"),
        ({"strategy": "lokal"}, "strategy is 'lokal': did you mean"),
        ({"ties": "x"}, "ties is 'x'"),
        ({"strategy": "top", "fraction": 1.5}, "fraction must be within"),
        ({"kl_coefficient": -1.0}, "kl_coefficient must be at least 0"),
        ({"temperature": 0.0}, "greedy answers are all the same"),
    ]
    for given_settings, message in settings:
        with pytest.raises(InputError, match=message):
            RAFT(**given_settings)
    with pytest.raises(InputError, match="give fraction"):
        RAFT(strategy="top").prepare(answers(TOP, torch.arange(5)))
