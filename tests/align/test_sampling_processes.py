"""Answers sampled by processes of their own train the policy as its own do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from thrifty.core.errors import InputError
from thrifty.lm.remote import sampler_apart, sampling_processes

JOB = Path(__file__).with_name("sampling_processes_job.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]


def ran(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def trained(launcher: list[str], out: Path, folder: Path, apart: int, rank: int) -> tuple[list[dict[str, float]], Path]:
    said = ran([*launcher, str(JOB), str(out), str(folder), str(apart), str(rank)])
    assert "no answer was asked" not in said
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return metrics, next((out / "model").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("processes", "apart", "rank"), [(2, 1, 2), (4, 2, 0)], ids=["one and one, adapters", "two and two"]
)
def test_training_on_answers_of_other_processes_is_training_on_one_s_own(
    processes: int, apart: int, rank: int, model_folder: Path, tmp_path: Path
) -> None:
    own, own_weights = trained([sys.executable], tmp_path / "own", model_folder, 0, rank)
    metrics, weights = trained(torchrun(processes), tmp_path / "apart", model_folder, apart, rank)
    assert len(own) == len(metrics) == 4
    for a, b in zip(own, metrics, strict=True):
        for name in ("loss", "reward", "answer_tokens", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], abs=1e-5), name
    assert len({line["reward"] for line in own}) > 1
    expected = load_file(own_weights)
    for name, weight in load_file(weights).items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-4)


def test_the_command_sets_processes_apart(model_folder: Path, log_file: Path, tmp_path: Path) -> None:
    command = [*torchrun(2), "-m", "thrifty", "run", "topr", "--model", str(model_folder), "--data", str(log_file)]
    command += ["--iterations", "1", "--task", "arithmetic", "--problems", "4", "--prompts-per-rollout", "2"]
    command += ["--samples", "2", "--max-new-tokens", "4", "--device", "cpu", "--out", str(tmp_path / "run")]
    said = ran([*command, "--sampling-processes", "1"], tmp_path)
    assert (tmp_path / "run" / "model" / "config.json").exists(), said
    assert "no answer was asked" not in said


def test_a_process_must_be_left_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"1 of 1 processes can't sample: .* --nproc-per-node 2"):
        sampling_processes(1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="leave one for training"):
        sampling_processes(2)
    assert sampling_processes(0) is False
    assert sampler_apart(None, None) is None
