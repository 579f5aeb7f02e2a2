"""Losses that TRL's trainers compute too have its values, in float32 on the same batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lm.conftest import VOCABULARY, make_model, make_tokenizer
from torch import Tensor

from thrifty.align import DPO, GRPO, SFT
from thrifty.align.nll import weighted_nll
from thrifty.align.preference import preference_kind, preference_loss
from thrifty.lm.logps import sequence_logps, token_logps
from thrifty.lm.sequences import Sequences, from_rows

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

CLOSE = {"rtol": 0, "atol": 1e-4}


def settings(directory: Path) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }


def other_model() -> Any:
    """What the policy is compared with: near it, and another one."""
    model = make_model("llama")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return model


def pairs() -> list[dict[str, str]]:
    answers = [
        ("one two three", "four five"),
        ("a cat", "the dog says hello there"),
        ("six", "two"),
        ("you are", "how"),
    ]
    return [
        {"prompt": f"what is w{40 + number} plus one", "chosen": " " + won, "rejected": " " + lost}
        for number, (won, lost) in enumerate(answers)
    ]


def sequences_of(ids: Tensor, real: Tensor, spoken: Tensor) -> Sequences:
    return Sequences(ids, real.bool(), spoken.bool())


def first_batch(trainer: Any) -> dict[str, Tensor]:
    batch: dict[str, Tensor] = next(iter(trainer.get_train_dataloader()))
    return batch


def trl_loss(trainer: Any, batch: dict[str, Tensor]) -> float:
    trainer.model.train()
    return float(trainer.compute_loss(trainer.model, dict(batch)).detach())


@pytest.mark.parametrize(
    ("kind", "theirs", "beta"),
    [
        ("dpo", "sigmoid", 0.1),
        ("dpo", "sigmoid", 0.7),
        ("dpo-norm", "sigmoid_norm", 5.0),
        ("ipo", "ipo", 0.3),
        ("hinge", "hinge", 0.2),
        ("nca", "nca_pair", 0.1),
    ],
)
def test_preference_losses(kind: Any, theirs: str, beta: float, tmp_path: Path) -> None:
    trainer = trl.DPOTrainer(
        make_model("llama"),
        other_model(),
        args=trl.DPOConfig(**settings(tmp_path), loss_type=[theirs], beta=beta),
        train_dataset=datasets.Dataset.from_list(pairs()),
        processing_class=make_tokenizer(template=None),
    )
    batch = first_batch(trainer)
    expected = trl_loss(trainer, batch)

    ids, real, spoken = batch["input_ids"], batch["attention_mask"], batch["completion_mask"]
    assert int(spoken.sum()) > len(ids) * 2
    order = torch.arange(len(ids)).view(2, -1).t().flatten()  # TRL has all chosen ones first
    rows = sequences_of(ids, real, spoken).select(order)
    reference = token_logps(other_model(), rows).detach()
    data = rows.with_columns(
        reference_logps=reference,
        group=torch.arange(len(rows)) // 2,
        chosen=torch.arange(len(rows)) % 2 == 0,
    )
    ours = DPO(kind=kind, beta=beta).loss(make_model("llama"), data, data).value
    torch.testing.assert_close(float(ours.detach()), expected, **CLOSE)


@pytest.mark.parametrize(
    ("kind", "theirs", "gamma"),
    [("tpo", "sigmoid", 0.0), ("tpo-l", "tpo-l", 0.5), ("tpo-hinge", "hinge", 0.0), ("tpo-ipo", "ipo", 0.0)],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_triple_preference_optimisation(kind: Any, theirs: str, gamma: float, smoothing: float, tmp_path: Path) -> None:
    tpo = pytest.importorskip("trl.experimental.tpo")
    records = [{**pair, "reference": pair["chosen"] + " minus seven"} for pair in pairs()]
    trainer = tpo.TPOTrainer(
        make_model("llama"),
        args=tpo.TPOConfig(
            **settings(tmp_path), loss_type=theirs, beta=0.3, tpo_alpha=0.7, tpo_l_gamma=0.5, label_smoothing=smoothing
        ),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=make_tokenizer(template=None),
    )
    batch = first_batch(trainer)
    expected = trl_loss(trainer, batch)
    rows = sequences_of(batch["input_ids"], batch["attention_mask"], batch["completion_mask"])
    logps, mask = token_logps(make_model("llama"), rows).detach(), rows.response_mask
    chosen, rejected, _ = sequence_logps(logps, mask, preference_kind(kind).reduction).chunk(3)
    gold, spoken = logps.chunk(3)[2], mask.chunk(3)[2]
    preference = preference_loss(chosen, rejected, kind=kind, beta=0.3, gamma=gamma, label_smoothing=smoothing).mean()
    likelihood = weighted_nll(gold, spoken, spoken.float())
    torch.testing.assert_close(float(preference + 0.7 * likelihood), expected, **CLOSE)


def test_supervised_fine_tuning(tmp_path: Path) -> None:
    records = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs()]
    trainer = trl.SFTTrainer(
        make_model("llama"),
        args=trl.SFTConfig(**settings(tmp_path), completion_only_loss=True),
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=make_tokenizer(template=None),
    )
    batch = first_batch(trainer)
    expected = trl_loss(trainer, batch)
    rows = sequences_of(batch["input_ids"], batch["attention_mask"], batch["labels"] != -100)
    data = SFT().prepare(rows.with_columns(reward=torch.ones(len(rows))))
    ours = SFT().loss(make_model("llama"), data, data).value
    torch.testing.assert_close(float(ours.detach()), expected, **CLOSE)


def answers() -> Sequences:
    generator = torch.Generator().manual_seed(3)

    def words(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=generator).tolist()

    rows = []
    for length, longest in ((6, (5, 2, 7, 4)), (9, (3, 7, 1, 6))):
        prompt = words(length)
        rows += [(prompt + words(count), [False] * length + [True] * count) for count in longest]
    return from_rows(rows)


def split(rows: Sequences, column: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row the prompt, padded on the left, and the answer, padded on the right: TRL's way to hold them."""
    starts = rows.response_mask.int().argmax(1).tolist()
    ends = rows.lengths.tolist()
    before, after = max(starts), max(end - start for start, end in zip(starts, ends, strict=True))
    prompts, said = column.new_zeros((len(rows), before)), column.new_zeros((len(rows), after))
    for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
        prompts[row, before - start :] = column[row, :start]
        said[row, : end - start] = column[row, start:end]
    return prompts, said


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (GRPO(aggregation="sequence"), {"loss_type": "grpo"}),
        (GRPO(aggregation="token"), {"loss_type": "bnpo"}),
        (GRPO(aggregation="token", clip_high=0.28), {"loss_type": "dapo", "epsilon_high": 0.28}),
        (GRPO(aggregation="constant", longest=7, credit="centred"), {"loss_type": "dr_grpo", "scale_rewards": "none"}),
        (GRPO(aggregation="sequence", kl_coefficient=0.1), {"loss_type": "grpo"}),
        (
            GRPO(aggregation="sequence", ratio="sequence"),
            {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        ),
    ],
    ids=["grpo", "bnpo", "dapo", "dr_grpo", "kl", "gspo"],
)
def test_group_relative_policy_optimisation(ours: GRPO, theirs: dict[str, Any], tmp_path: Path) -> None:
    trainer = trl.GRPOTrainer(
        make_model("llama"),
        lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            **settings(tmp_path), num_generations=4, max_completion_length=7, use_bias_correction_kl=False, **theirs
        ),
        train_dataset=datasets.Dataset.from_list([{"prompt": pair["prompt"]} for pair in pairs()]),
        processing_class=make_tokenizer(template=None),
    )
    trainer.current_gradient_accumulation_steps = 1
    trainer.beta = ours.kl_coefficient  # set afterwards: a trainer told so before loads its reference from a path
    rows, reference = answers(), other_model()
    group = torch.arange(8) // 4
    reward = torch.tensor([1.0, 0.0, 0.5, 0.0, 2.0, 2.0, 2.0, -1.0])
    # A policy that has moved on since it sampled, far enough for the clip to matter.
    old = token_logps(make_model("llama"), rows).detach()
    old = old + 0.4 * torch.randn(old.shape, generator=torch.Generator().manual_seed(4)) * rows.response_mask
    data = rows.with_columns(
        reward=reward, group=group, behaviour_logps=old, reference_logps=token_logps(reference, rows).detach()
    )
    prepared = ours.prepare(data)
    grouped = reward.view(2, 4)
    advantage = grouped - grouped.mean(1, keepdim=True)
    if theirs.get("scale_rewards") != "none":
        advantage = advantage / (grouped.std(1, keepdim=True) + 1e-4)
    prompt_ids, completion_ids = split(rows, rows.input_ids)
    prompt_mask, completion_mask = split(rows, rows.attention_mask.long())
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": completion_ids,
        "completion_mask": completion_mask,
        "advantages": advantage.flatten(),
        "old_per_token_logps": split(rows, old)[1],
        "ref_per_token_logps": split(rows, data["reference_logps"])[1],
        "num_items_in_batch": completion_mask.sum(),
    }
    model = make_model("llama")
    loss = ours.loss(model, prepared, prepared)
    assert float(loss.metrics["clipped"]) > 0
    torch.testing.assert_close(float(loss.value.detach()), trl_loss(trainer, inputs), **CLOSE)
