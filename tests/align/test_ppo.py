"""PPO with a value model: TULU 3's worked numbers, what the value model reads, and that it trains and goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty.align.asking import Asker, Sampling
from thrifty.align.base import ActorCritic, Training
from thrifty.align.credit import generalised_advantage, whiten
from thrifty.align.critic import ValueModel, last_values, without_dropout
from thrifty.align.ppo import PPO, clipped_value_loss, rlvr_token_reward
from thrifty.align.training import train
from thrifty.core.errors import InputError
from thrifty.core.loop import StoppedError
from thrifty.core.run import Run, read_metrics
from thrifty.lm.load import load_lm
from thrifty.lm.sequences import Sequences, from_rows

LOGPS, REFERENCE = torch.tensor([[-1.0, -0.5, -0.2]]), torch.tensor([[-1.1, -0.5, -0.4]])
WHOLE = torch.ones(1, 3, dtype=torch.bool)
RIGHT, ENDED = torch.ones(1), torch.ones(1, dtype=torch.bool)
PROMPTS = [{"prompt": f"what is {a} plus {b}", "answer": str(a + b)} for a, b in [(1, 2), (2, 2), (3, 4), (5, 1)]]


def dogs(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("dog" in said) for said in completions]


def test_worked_example() -> None:
    """The numbers of the authors' code, with the score on the last token."""
    rewards, valued = rlvr_token_reward(LOGPS, REFERENCE, WHOLE, RIGHT, ENDED, score_position="last")
    assert valued.tolist() == [[True, True, True, False]]
    torch.testing.assert_close(rewards, torch.tensor([[-0.005, 0.0, 9.99, 0.0]]))
    values = torch.tensor([[1.0, 2.0, 3.0]])
    advantages, returns = generalised_advantage(rewards[:, :3], values, WHOLE)
    torch.testing.assert_close(advantages, torch.tensor([[8.253475, 7.6405, 6.99]]))
    torch.testing.assert_close(returns, torch.tensor([[9.253475, 9.6405, 9.99]]))
    torch.testing.assert_close(whiten(advantages, WHOLE), torch.tensor([[0.989955, 0.019797, -1.009751]]))


def sequences(*lengths: int, width: int = 0, **columns: Tensor) -> Sequences:
    """Rows of two prompt tokens and so many response tokens."""
    rows = [([5, 6] + [7 + (i + n) % 9 for i in range(n)], [False] * 2 + [True] * n) for n in lengths]
    found = from_rows(rows, row_columns={"group": list(range(len(lengths)))})
    return (found.pad_to(width) if width else found).with_columns(**columns)


def test_worked_example_of_the_objective() -> None:
    """The same through ``prepare``: values are read after tokens, so those before the response stand on the prompt."""
    ids = sequences(3)
    on_response = torch.zeros(1, 5).masked_scatter
    data = ids.with_columns(
        reward=RIGHT,
        finished=ENDED,
        behaviour_logps=on_response(ids.response_mask, LOGPS),
        reference_logps=on_response(ids.response_mask, REFERENCE),
        values=torch.tensor([[0.0, 1.0, 2.0, 3.0, 77.0]]),
    )
    prepared = PPO(score_position="last").prepare(data)
    torch.testing.assert_close(prepared["advantage"][0, 2:], torch.tensor([0.989955, 0.019797, -1.009751]))
    torch.testing.assert_close(prepared["returns"][0, 1:4], torch.tensor([9.253475, 9.6405, 9.99]))
    assert prepared["valued"].tolist() == [[False, True, True, True, False]]
    # The only answer of a rollout is its longest, so the score stands on its last token here too.
    assert torch.equal(PPO().prepare(data)["returns"], prepared["returns"])


def test_the_score_stands_one_position_after_an_answer_that_is_not_the_longest() -> None:
    mask = torch.tensor([[False, True, True, False], [False, True, True, True]])
    nothing = torch.zeros(2, 4)
    rewards, valued = rlvr_token_reward(
        nothing, nothing, mask, torch.tensor([1.0, 0.0]), torch.tensor([True, True]), beta=0.05
    )
    assert rewards.tolist() == [[0, 0, 0, 10, 0], [0, 0, 0, 0, 0]]
    assert valued.tolist() == [[False, True, True, True, False], [False, True, True, True, False]]
    columns = {
        "reward": torch.tensor([1.0, 0.0]),
        "finished": torch.tensor([True, True]),
        "behaviour_logps": torch.zeros(2, 5),
        "reference_logps": torch.zeros(2, 5),
        "values": torch.tensor([[0.0, 1, 2, 3, 0], [0.0, 0, 0, 0, 0]]),
    }
    prepared = PPO(trace=1.0).prepare(sequences(2, 3, **columns))
    # With lambda 1 every state's return is the score; the state after the last token has one too.
    assert prepared["returns"].tolist() == [[0, 10, 10, 10, 0], [0, 0, 0, 0, 0]]
    assert prepared["valued"].tolist() == [[False, True, True, True, False]] * 2
    assert (prepared["advantage"][0, 2:4] != 0).all()
    assert prepared["advantage"][0, 4] == 0, "the policy said nothing there"


def test_an_answer_without_end_earns_the_penalty_even_if_it_is_right() -> None:
    def score(penalty: float | None, ended: bool) -> float:
        given = torch.tensor([ended])
        rewards, _ = rlvr_token_reward(LOGPS, LOGPS, WHOLE, RIGHT, given, non_stop_penalty=penalty)
        return float(rewards.sum())

    assert score(-10.0, False) == -10
    assert score(-10.0, True) == 10
    assert score(None, False) == 10
    columns = {"reward": RIGHT, "finished": ENDED} | dict.fromkeys(
        ("behaviour_logps", "reference_logps", "values"), torch.zeros(1, 5)
    )
    short = PPO(min_length=4, score_position="last").prepare(sequences(3, **columns))
    assert short["returns"][0, 3] == -10, "too short counts as not ended"


@given(st.floats(0.5, 20), st.floats(0.0, 2.0), st.floats(1.5, 8.0))
def test_a_common_factor_changes_no_whitened_advantage(alpha: float, beta: float, factor: float) -> None:
    columns = {
        "reward": torch.tensor([1.0, 0.0]),
        "finished": torch.tensor([True, False]),
        "behaviour_logps": torch.linspace(-2, 0, 12).view(2, 6),
        "reference_logps": torch.linspace(0, -1, 12).view(2, 6),
        "values": torch.zeros(2, 6),
    }
    data = sequences(3, 4, **columns)
    one = PPO(alpha=alpha, beta=beta, non_stop_penalty=-3.0).prepare(data)
    other = PPO(alpha=alpha * factor, beta=beta * factor, non_stop_penalty=-3.0 * factor).prepare(data)
    torch.testing.assert_close(one["advantage"], other["advantage"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one["returns"] * factor, other["returns"], atol=1e-4, rtol=1e-4)


def test_worked_example_of_the_value_loss() -> None:
    """Old value 1, return 2: a step beyond the clip counts as if it had stopped there, unless it went wrong."""
    values, old = torch.tensor([[1.1, 1.5, 0.5, 3.0]]), torch.ones(1, 4)
    losses = clipped_value_loss(values, old, torch.full((1, 4), 2.0))
    torch.testing.assert_close(losses, torch.tensor([[0.81, 0.64, 2.25, 1.0]]))


def test_the_value_model_reads_the_state_after_each_token(tiny: Any) -> None:
    model, _ = tiny
    weight = torch.linspace(-1, 1, 32)
    value = ValueModel(model, weight)
    data = sequences(3, 1, 2, width=7)
    found = value(data)
    states = model(data.input_ids, attention_mask=data.attention_mask.long(), output_hidden_states=True)
    plain = states.hidden_states[-1] @ weight
    for row, length in enumerate((3, 1, 2)):
        torch.testing.assert_close(found[row, 1 : 2 + length], plain[row, 1 : 2 + length], atol=1e-4, rtol=1e-4)
        assert (found[row, 2 + length :] == 0).all()
    assert (found[:, 0] == 0).all()
    torch.testing.assert_close(last_values(found, data.response_mask), found[[0, 1, 2], [4, 2, 3]])
    torch.testing.assert_close(value._states_by_model(data) @ weight, plain)
    assert not value(data.select([])).numel()


def test_a_value_model_of_the_policy_expects_nothing_at_first(tiny: Any) -> None:
    model, _ = tiny
    value = PPO().critic(model)
    assert (value(sequences(3, 2)) == 0).all()
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(value.parameters(), model.parameters(), strict=False))
    assert not value.lm.get_output_embeddings().weight.requires_grad, "a head that is not used is not trained"


@pytest.mark.parametrize("labels", [1, 2])
def test_a_value_model_of_a_reward_model_gives_its_score_at_the_end(model_folder: Path, labels: int) -> None:
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    config = load_lm(model_folder)[0].config
    config.num_labels = labels
    reward_model = LlamaForSequenceClassification(config).eval()
    ids = sequences(3, 3)
    logits = reward_model(ids.input_ids).logits.detach()
    wanted = logits[:, 0] if labels == 1 else logits[:, 1] - logits[:, 0]
    value = ValueModel.of(reward_model)
    torch.testing.assert_close(last_values(value(ids), ids.response_mask).detach(), wanted, atol=1e-5, rtol=1e-4)
    again = ValueModel.of(value)
    assert again is not value
    assert torch.equal(again.weight, value.weight)


def test_models_that_are_no_decoders_are_refused() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    encoder = BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=1, **small))
    with pytest.raises(InputError, match="BertForSequenceClassification"):
        ValueModel.of(encoder)
    with pytest.raises(InputError, match="sequence classifier or causal language model"):
        ValueModel.of(encoder.bert)


def test_dropout_is_off() -> None:
    net = without_dropout(nn.Sequential(nn.Dropout(0.5)))
    assert torch.equal(net.train()(torch.ones(20)), torch.ones(20))


def prepared_rollout(model: Any, tokenizer: Any, objective: PPO) -> Sequences:
    answers = Asker(model, tokenizer, dogs, Sampling(samples=1, max_new_tokens=5)).ask(PROMPTS, 1)
    noise = torch.rand(answers.input_ids.shape, generator=torch.Generator().manual_seed(0))
    return objective.prepare(answers.with_columns(reference_logps=answers["behaviour_logps"] - noise, values=noise))


def test_parts_add_up_to_the_whole(tiny: Any) -> None:
    model, tokenizer = tiny
    objective = PPO()
    whole = prepared_rollout(model, tokenizer, objective)
    value = objective.critic(model)
    with torch.no_grad():
        value.weight.normal_()
    whole = whole.with_columns(behaviour_logps=whole["behaviour_logps"] - 0.1)  # so that ratios are not 1
    parts = [whole.select([0]).trim(), whole.select([1, 2, 3]).trim()]
    for loss, net in ((objective.loss, model), (objective.value_loss, value)):
        with torch.no_grad():
            pieces = [float(loss(net, part, whole).value) for part in parts]
            assert min(map(abs, pieces)) > 1e-3
            assert sum(pieces) == pytest.approx(float(loss(net, whole, whole).value), rel=1e-4, abs=1e-6)


def test_on_policy_the_policy_s_gradient_is_that_of_the_whitened_advantages(tiny: Any) -> None:
    """At ratio 1 the gradient is that of -mean(A log pi)."""
    from thrifty.lm.logps import token_logps

    model, tokenizer = tiny
    objective = PPO()
    whole = prepared_rollout(model, tokenizer, objective)
    objective.loss(model, whole, whole).value.backward()
    found = model.lm_head.weight.grad.clone()
    model.zero_grad()
    mask = whole.response_mask
    (-(whole["advantage"] * token_logps(model, whole))[mask].mean()).backward()
    torch.testing.assert_close(found, model.lm_head.weight.grad, atol=1e-5, rtol=1e-3)


def test_policy_and_critic_have_learning_rates_and_gradient_norms_of_their_own(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    objective = PPO(value_learning_rate=0.5)
    net = ActorCritic(model, objective.critic(model))
    for optimizer in ("adamw", "adafactor"):
        built = Training(learning_rate=0.1, optimizer=optimizer).build_optimizer(net, {"critic": 0.5})  # type: ignore[arg-type]
        rates = {group["lr"]: len(group["params"]) for group in built.param_groups}
        assert rates == {
            0.1: sum(p.requires_grad for p in net.policy.parameters()),
            0.5: sum(p.requires_grad for p in net.critic.parameters()),
        }
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        training = Training(learning_rate=1e-3, micro_batch_size=4, clip_norm=1e-6)
        before = [p.clone() for p in model.parameters()]
        train(
            model, objective, PROMPTS, run, training, tokenizer=tokenizer, reward=dogs,
            sampling=Sampling(samples=1, prompts_per_rollout=4, max_new_tokens=4, updates_per_rollout=2, passes=2),
        )  # fmt: skip
        rows = read_metrics(run.directory)
    assert len(rows) == 2
    assert {"policy_gradient_norm", "critic_gradient_norm", "divergence", "clipped", "value_error"} <= set(rows[0])
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_it_learns_what_is_verified_and_to_stop(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny

    def measured() -> tuple[float, float]:
        answers = Asker(model, tokenizer, dogs, Sampling(samples=64, max_new_tokens=6)).ask(PROMPTS, 5)
        return float(answers["reward"].mean()), float(answers["finished"].float().mean())

    before = measured()
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(
            model, PPO(beta=0.01, value_clip=20.0, value_learning_rate=2e-2), [*PROMPTS] * 16, run,
            Training(learning_rate=5e-3, micro_batch_size=64, epochs=10), tokenizer=tokenizer, reward=dogs,
            sampling=Sampling(samples=1, prompts_per_rollout=64, max_new_tokens=6, updates_per_rollout=4, passes=4),
        )  # fmt: skip
        rows = read_metrics(run.directory)
    after = measured()
    assert after[0] > before[0] + 0.2
    assert after[1] > 0.9 > before[1] + 0.3
    assert rows[-1]["value_error"] < rows[0]["value_error"] / 2


def test_a_run_that_is_stopped_goes_on_with_policy_and_critic(model_folder: Path, tmp_path: Path) -> None:
    sampling = Sampling(samples=1, prompts_per_rollout=2, max_new_tokens=4, updates_per_rollout=2, passes=2)
    calls: list[int] = []

    def go(folder: str, stop_at: int | None) -> Any:
        def reward(prompts: list[str], completions: list[str]) -> list[float]:
            calls.append(1)
            if len(calls) == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return dogs(prompts, completions)

        model, tokenizer = load_lm(model_folder)
        with Run(tmp_path / folder, seed=3, device="cpu", dtype="float32", config={}) as run:
            training = Training(learning_rate=1e-3, micro_batch_size=2, epochs=2)
            train(model, PPO(), PROMPTS, run, training, tokenizer=tokenizer, reward=reward, sampling=sampling)
            return model, read_metrics(run.directory)

    whole, log = go("whole", None)
    assert len(log) == 8
    calls.clear()
    with pytest.raises(StoppedError):
        go("stopped", 2)
    calls.clear()
    resumed, log_again = go("stopped", None)
    assert len(calls) == 2, "the rollout that was under way is kept"
    assert log_again == log
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_wrong_settings_are_said() -> None:
    for wrong, said in (
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"trace": 1.5}, r"trace must be within \[0, 1\]"),
        ({"score_position": "first"}, "after or last"),
    ):
        with pytest.raises(InputError, match=said):
            PPO(**wrong)  # type: ignore[arg-type]
