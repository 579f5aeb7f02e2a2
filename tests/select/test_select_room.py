"""The room: the embedded run, a user's history, and what is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thrifty.claims.limr import CLAIM, prepare
from thrifty.core.errors import InputError
from thrifty.core.method import load, load_room
from thrifty.core.run import Run
from thrifty.select.limr import LIMR
from thrifty.select.policy import Examples, Policy, greedy_accuracy, reinforce, sampled_accuracy
from thrifty.select.pool import Pool, elicitation_pool, learning_pool, record_history
from thrifty.select.room import Inputs, run


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_command_finds_method_and_room() -> None:
    assert load("limr") is LIMR
    assert load_room("select").inputs is Inputs


def test_the_embedded_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Run(tmp_path / "run", seed=0) as job:
        summary = run(LIMR(), Inputs(), job)
    table = {row["prompts"]: row for row in summary["table"]}
    assert table["all"]["number"] == 400
    assert table["selected"]["number"] == summary["selected"] == len(rows_of(Path(summary["file"])))
    assert sum(row["number"] for name, row in table.items() if name != "all") == 400
    # 16 of 400 prompts are not asked in an epoch; dropped are those that miss the last one or two in a row.
    assert 16 <= summary["dropped"] <= 60
    assert summary["samples"] == 20 * 8 * 48 * 8
    assert table["selected"]["lowest score"] > 0.6 >= table["left out"]["highest score"]
    assert "a whole run on the full pool (61,440 samples)" in caplog.text
    scores = [row["score"] for row in rows_of(tmp_path / "run" / "selected.jsonl")]
    assert scores == sorted(scores, reverse=True)
    # Wrong reference answers are filtered out, as the card says.
    kinds = [str(row["id"]).split("-")[0] for row in rows_of(tmp_path / "run" / "selected.jsonl")]
    assert kinds.count("mislabelled") / len(kinds) < 0.15
    # The history that was kept selects the same prompts.
    with Run(tmp_path / "again") as job:
        again = run(LIMR(), Inputs(data=str(tmp_path / "run" / "history.jsonl")), job)
    assert again["table"] == summary["table"]


def test_a_users_own_history(tmp_path: Path) -> None:
    curves = {"a": [0, 0.5, 1], "b": [1, 1, 1], "c": [0, 0, 0], "d": [0, 1, 1], "e": [None, None, 1]}
    data = tmp_path / "history.jsonl"
    lines = [json.dumps({"id": name, "prompt": name * 3, "accuracies": curve}) for name, curve in curves.items()]
    data.write_text("\n".join(lines))
    with Run(tmp_path / "run") as job:
        summary = run(LIMR(), Inputs(data=str(data)), job)
    selected = rows_of(tmp_path / "run" / "selected.jsonl")
    assert [(row["id"], row["prompt"]) for row in selected] == [("a", "aaa"), ("d", "ddd")]
    assert selected[0]["score"] == pytest.approx(0.816327, abs=1e-6)
    assert (summary["selected"], summary["prompts"], summary["dropped"]) == (2, 5, 1)
    assert summary["table"][0]["final accuracy"] == 1.0
    assert summary["table"][1]["final accuracy"] == 0.5
    assert rows_of(tmp_path / "run" / "scores.jsonl")[4]["score"] is None


def test_nothing_selected_is_said_with_the_cure(tmp_path: Path) -> None:
    with Run(tmp_path / "run") as job, pytest.raises(InputError, match=r"the best has 0\.9.*--threshold or --budget"):
        run(LIMR(threshold=0.99), Inputs(), job)
    with pytest.raises(InputError, match="steps_per_epoch must be at least 1"):
        Inputs(steps_per_epoch=0)


def test_pools_and_histories_depend_on_the_seed_only() -> None:
    one, same, other = (record_history(elicitation_pool(seed), seed).matrix()[1] for seed in (3, 3, 4))
    torch.testing.assert_close(one, same, equal_nan=True, rtol=0, atol=0)
    assert not torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.mark.parametrize(("make", "low", "high"), [(elicitation_pool, 0.0, 0.1), (learning_pool, 0.4, 0.7)])
def test_what_the_kinds_of_prompts_are(make: Callable[[int], Pool], low: float, high: float) -> None:
    pool = make(0)
    kinds = torch.tensor([["trivial", "learnable", "mislabelled"].index(kind) for kind in pool.kinds])
    assert torch.bincount(kinds).tolist() == [120, 160, 120]
    solved = [greedy_accuracy(pool.base, pool.train.rows((kinds == kind).nonzero()[:, 0])) for kind in range(3)]
    assert solved[0] > 0.8
    assert low < solved[1] < high
    assert solved[2] < 0.15


def test_a_step_is_the_gradient_of_its_objective() -> None:
    draw = torch.Generator().manual_seed(0)
    pool = elicitation_pool(0)
    batch = pool.train.rows(torch.arange(0, 400, 9))
    policy = Policy(*(head + 0.1 * torch.randn(head.shape, generator=draw) for head in pool.base))
    state = draw.get_state()
    stepped, reward = reinforce(policy, pool.base, batch, draw, learning_rate=0.5, kl=0.3)
    draw.set_state(state)
    leaves = Policy(*(head.clone().requires_grad_() for head in policy))
    current, reference = leaves.log_probabilities(batch.x), pool.base.log_probabilities(batch.x)
    chosen = [torch.multinomial(lp.detach().exp(), 8, replacement=True, generator=draw) for lp in current]
    advantage = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
    log_prob = sum(lp.gather(1, which) for lp, which in zip(current, chosen, strict=True))
    divergence = sum((lp.exp() * (lp - ref)).sum(1) for lp, ref in zip(current, reference, strict=True))
    ((advantage * log_prob).mean(1) - 0.3 * divergence).mean().backward()
    for before, after, leaf in zip(policy, stepped, leaves, strict=True):
        torch.testing.assert_close(after, before + 0.5 * leaf.grad, atol=1e-6, rtol=1e-4)


def test_accuracies_by_hand() -> None:
    policy = Policy(torch.zeros(24, 8), torch.zeros(25, 2))
    policy.answer[0, 3], policy.form[24, 0] = 1.0, 1.0
    examples = Examples(torch.eye(24)[[0, 0]], torch.tensor([3, 2]))
    assert greedy_accuracy(policy, examples) == 0.5
    answer, form = torch.tensor([0.0] * 7 + [1]).softmax(0), torch.tensor([1.0, 0]).softmax(0)
    assert sampled_accuracy(policy, examples) == pytest.approx(float((answer[7] + answer[0]) * form[0] / 2))


def test_the_arms_of_the_claim_take_what_they_are_named_after(tmp_path: Path) -> None:
    for condition in CLAIM.conditions:
        assert {condition.left, condition.right} <= set(CLAIM.arms)
    problem = prepare(0, True, tmp_path)
    for name, pool in problem.pools.items():
        chosen = problem.chosen[name]
        sizes = {arm: len(rows) for arm, rows in chosen.items()}
        assert sizes.pop("full pool") == 400
        assert len(set(sizes.values())) == 1
        assert all(len(set(rows.tolist())) == len(rows) for rows in chosen.values())
        # Rows are those of the pool, not of the order in which the history met them.
        assert [pool.ids[row] for row in range(400)] == record_history(pool, 0).ids
    assert not set(map(tuple, problem.pools["elicitation"].test.x.tolist())) & set(
        map(tuple, problem.pools["elicitation"].validation.x.tolist())
    )
    metrics = CLAIM.arms["limr"](problem)
    assert set(metrics) == {metric.lstrip("-") for metric in CLAIM.metrics}
    assert set(metrics) - set(CLAIM.arms["base"](problem)) == {"prompts", "share mislabelled", "share trivial"}
    assert metrics["share mislabelled"] < 0.15
    assert metrics["accuracy"] > CLAIM.arms["base"](problem)["accuracy"] + 0.2
