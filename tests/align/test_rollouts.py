"""The online loop on a model of a few thousand weights: what is asked, scored and learnt, and how it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from thrifty.align.asking import Answered, Asker, Sampling, as_records
from thrifty.align.base import Objective, Training
from thrifty.align.grpo import GRPO
from thrifty.align.reference import Reference
from thrifty.align.rollouts import Rollouts
from thrifty.align.sft import SFT
from thrifty.align.training import train
from thrifty.core.errors import InputError, RunError
from thrifty.core.loop import Loss, StoppedError
from thrifty.core.run import Run, read_metrics
from thrifty.lm.load import load_lm
from thrifty.lm.logps import token_logps
from thrifty.lm.sequences import Sequences

PROMPTS = [
    {"prompt": f"what is {a} plus {b}", "answer": str(a + b), "id": f"{a}+{b}"} for a, b in [(1, 2), (2, 2), (3, 4)]
]
FEW = Sampling(samples=4, prompts_per_rollout=2, max_new_tokens=4)
FAST = Training(learning_rate=3e-3, micro_batch_size=4, epochs=9)


def dogs(prompts: list[str], completions: list[str]) -> list[float]:
    return [float("dog" in said) for said in completions]


def share_of_dogs(model: Any, tokenizer: Any) -> float:
    answers = Asker(model, tokenizer, dogs, Sampling(samples=64, max_new_tokens=4)).ask(PROMPTS, 5)
    return float(answers["reward"].mean())


def test_the_policy_learns_what_is_rewarded(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    before = share_of_dogs(model, tokenizer)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(model, GRPO(), PROMPTS, run, FAST, tokenizer=tokenizer, reward=dogs, sampling=FEW, samples=8)
        rows = read_metrics(run.directory)
    assert share_of_dogs(model, tokenizer) > before + 0.2
    assert len(rows) == 14  # nine passes over three prompts, two at a time
    assert {"reward", "equal_groups", "answer_tokens", "cut_off", "clipped"} <= set(rows[0])


def test_trl_s_signature_gets_columns_and_token_ids(tiny: Any) -> None:
    model, tokenizer = tiny
    seen: dict[str, Any] = {}

    def reward(
        completions: list[str], completion_ids: list[list[int]], answer: list[str], **others: Any
    ) -> list[float]:
        seen.update(ids=completion_ids, answer=answer, others=sorted(others))
        return [float(a in c.split()) for a, c in zip(answer, completions, strict=True)]

    answers = Asker(model, tokenizer, reward, FEW).ask(PROMPTS[:2], 0)
    assert seen["answer"] == ["3"] * 4 + ["4"] * 4
    assert seen["others"] == ["id", "prompts"]
    spoken = [row[mask].tolist() for row, mask in zip(answers.input_ids, answers.response_mask, strict=True)]
    assert seen["ids"] == spoken
    assert answers["group"].tolist() == [0] * 4 + [1] * 4


def test_a_reward_may_say_more_than_one_number(tiny: Any) -> None:
    class Twice:
        def columns(self, answered: Answered) -> dict[str, torch.Tensor]:
            assert answered.records[0] is PROMPTS[0]
            count = len(answered.texts)
            return {"reward": torch.ones(count), "second": torch.arange(count).float()}

    answers = Asker(*tiny, Twice(), FEW).ask(PROMPTS[:1], 0)
    assert answers["second"].tolist() == [0, 1, 2, 3]


class Recorder(Objective):
    """Learns nothing and keeps what it is given."""

    def __init__(self, needs: tuple[str, ...] = ()) -> None:
        self.seen: list[Sequences] = []
        self.prepared = 0
        self._needs = frozenset(needs)

    def needs(self) -> frozenset[str]:
        return self._needs

    def prepare(self, data: Sequences) -> Sequences:
        self.prepared += 1
        return data.with_columns(row=torch.arange(len(data)))

    def loss(self, model: Any, batch: Sequences, whole: Sequences) -> Loss:
        self.seen.append(batch)
        return Loss(token_logps(model, batch).sum() * 0.0)


@pytest.mark.parametrize(("updates", "passes", "rows"), [(1, 1, 8), (2, 1, 4), (4, 4, 8), (4, 1, 2)])
def test_a_rollout_is_dealt_out_to_its_updates(tiny: Any, tmp_path: Path, updates: int, passes: int, rows: int) -> None:
    sampling = Sampling(samples=4, prompts_per_rollout=2, max_new_tokens=3, updates_per_rollout=updates, passes=passes)
    objective = Recorder()
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(
            tiny[0], objective, PROMPTS[:2], run, Training(micro_batch_size=8), tokenizer=tiny[1], reward=dogs,
            sampling=sampling,
        )  # fmt: skip
    assert objective.prepared == 1
    assert [len(batch) for batch in objective.seen] == [rows] * updates
    dealt = torch.cat([batch["row"] for batch in objective.seen])
    assert sorted(dealt.tolist()) == sorted(list(range(8)) * passes)
    if rows == 4:
        assert all(len(batch["group"].unique()) == 1 for batch in objective.seen), "groups stay together"


def test_needed_columns_are_brought(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    objective = Recorder(("reference_logps",))
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(model, objective, PROMPTS, run, Training(), tokenizer=tokenizer, reward=dogs, sampling=FEW)
    batch = objective.seen[0]
    torch.testing.assert_close(batch["reference_logps"], token_logps(model, batch).detach(), atol=1e-5, rtol=0)
    assert "behaviour_logps" not in batch.columns, "on-policy, the policy is its own behaviour"


def test_the_reference_of_an_adapter_is_the_adapter_switched_off(model_folder: Path) -> None:
    from thrifty.align.adapter import merged, with_lora

    plain, tokenizer = load_lm(model_folder)
    adapted = with_lora(load_lm(model_folder)[0], 2)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    batch = Asker(plain, tokenizer, dogs, FEW).ask(PROMPTS, 0)
    before = token_logps(plain, batch).detach()
    reference = Reference(adapted)
    assert reference.model is adapted
    torch.testing.assert_close(reference.logps(batch), before, atol=1e-5, rtol=0)
    changed = token_logps(adapted, batch).detach()
    assert (changed - before).abs().max() > 0.1
    torch.testing.assert_close(token_logps(merged(adapted), batch).detach(), changed, atol=1e-4, rtol=0)


def test_a_reference_with_another_vocabulary_is_refused(model_folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    other = LlamaForCausalLM(
        LlamaConfig(vocab_size=7, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(InputError, match="vocabulary of 7 tokens, the model one of"):
        Reference(load_lm(model_folder)[0], other)


def test_a_run_that_is_stopped_within_a_rollout_ends_with_the_same_weights(model_folder: Path, tmp_path: Path) -> None:
    sampling = Sampling(samples=4, prompts_per_rollout=2, max_new_tokens=4, updates_per_rollout=3)
    objective = GRPO(kl_coefficient=0.1, entropy_coefficient=0.01)
    calls: list[int] = []

    def go(folder: str, stop_at: int | None) -> Any:
        def reward(prompts: list[str], completions: list[str]) -> list[float]:
            calls.append(1)
            if stop_at is not None and len(calls) == stop_at:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)
            return dogs(prompts, completions)

        model, tokenizer = load_lm(model_folder)
        with Run(tmp_path / folder, seed=3, device="cpu", dtype="float32", config={}) as run:
            training = Training(learning_rate=1e-3, micro_batch_size=4, epochs=2)
            train(model, objective, PROMPTS, run, training, tokenizer=tokenizer, reward=reward, sampling=sampling)
            return model, read_metrics(run.directory)

    whole, log = go("whole", None)
    assert len(calls) == 3
    calls.clear()
    with pytest.raises(StoppedError):
        go("stopped", 2)
    calls.clear()
    resumed, log_again = go("stopped", None)
    assert len(calls) == 1, "the rollout that was under way is kept"
    assert log_again == log
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_dynamic_sampling_replaces_prompts_without_contrast(tiny: Any) -> None:
    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(i % 2) if "3" in prompt else 1.0 for i, prompt in enumerate(prompts)]

    def batch(resample: int) -> Sequences:
        sampling = Sampling(samples=2, prompts_per_rollout=1, max_new_tokens=2, resample=resample)
        asker = Asker(*tiny, reward, sampling)
        rollouts = Rollouts(asker, as_records(PROMPTS), Recorder(), 1, torch.device("cpu"))
        return torch.stack([rollouts.batch(step)["reward"] for step in range(3)])

    assert (batch(0).std(1) == 0).sum() == 2
    assert (batch(8).std(1) > 0).all()


def test_a_history_is_kept_of_any_online_run(tiny: Any, tmp_path: Path) -> None:
    from thrifty.select.history import AccuracyHistory

    history = AccuracyHistory()
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(
            tiny[0], GRPO(), PROMPTS, run, Training(epochs=4), tokenizer=tiny[1], reward=dogs, sampling=FEW,
            history=history,
        )  # fmt: skip
    ids, accuracy, observed = history.matrix()
    assert sorted(ids) == ["1+2", "2+2", "3+4"]
    assert accuracy.shape[1] == 4
    assert observed.any(1).all()


def test_equal_rewards_are_said(tiny: Any, tmp_path: Path, caplog: Any) -> None:
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(
            tiny[0], GRPO(), PROMPTS[:1], run, Training(), tokenizer=tiny[1], reward=lambda p, c: [1.0] * len(c),
            sampling=FEW,
        )  # fmt: skip
        assert read_metrics(run.directory)[0]["equal_groups"] == 1
    assert "no direction" in caplog.text


def test_wrong_input_is_said(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        with pytest.raises(InputError, match="need a reward"):
            train(model, GRPO(), PROMPTS, run, tokenizer=tokenizer)
        with pytest.raises(InputError, match="no prompts"):
            train(model, GRPO(), [], run, tokenizer=tokenizer, reward=dogs)
        with pytest.raises(InputError, match="record 2 has no column 'prompt'"):
            train(model, GRPO(), [PROMPTS[0], {"question": "what"}], run, tokenizer=tokenizer, reward=dogs)
        with pytest.raises(RunError, match="returned nan"):
            train(
                model, GRPO(), ["what"], run, tokenizer=tokenizer, reward=lambda p, c: [float("nan")] * len(c),
                sampling=FEW,
            )  # fmt: skip
        with pytest.raises(InputError, match="context of 64"):
            train(model, GRPO(), ["what " * 70], run, tokenizer=tokenizer, reward=dogs)
    with pytest.raises(InputError, match="samples must be at least 1"):
        Sampling(samples=0)


def test_supervised_learning_of_sampled_answers(tiny: Any, tmp_path: Path) -> None:
    """Any objective goes with any source: here the good ones of one's own answers are imitated."""
    model, tokenizer = tiny
    before = share_of_dogs(model, tokenizer)
    with Run(tmp_path / "r", device="cpu", dtype="float32") as run:
        train(
            model, SFT(), PROMPTS, run, FAST, tokenizer=tokenizer, reward=dogs,
            sampling=Sampling(samples=16, prompts_per_rollout=3, max_new_tokens=4),
        )  # fmt: skip
    assert share_of_dogs(model, tokenizer) > before + 0.2
