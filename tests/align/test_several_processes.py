"""One process and two, started by ``torchrun``, train alike; killed, they go on as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

JOB = Path(__file__).with_name("several_processes_job.py")
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def start(launcher: list[str], out: Path, objective: str, pause: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, str(JOB), str(out), objective, str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finished(launcher: list[str], out: Path, objective: str) -> list[dict[str, float]]:
    job = start(launcher, out, objective)
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("objective", ["topr", "sft"])
def test_two_processes_train_as_one_does(objective: str, tmp_path: Path) -> None:
    one = finished(ALONE, tmp_path / "one", objective)
    two = finished(TWO, tmp_path / "two", objective)
    assert len(one) == len(two) == {"topr": 11, "sft": 7}[objective]
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], abs=1e-4)
    weights = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two")]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-4, rtol=1e-4)


def kill_at(lines: int, out: Path) -> None:
    """Starts two processes and kills both without warning once the log has so many lines."""
    job = start(TWO, out, "topr", pause=0.3)
    log = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and len(log.read_text().splitlines()) >= lines):
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    subprocess.run(["pkill", "-9", "-f", str(out)], check=False)  # torchrun's own children
    assert not (out / "summary.json").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    out = tmp_path_factory.mktemp("undisturbed") / "whole"
    return finished(TWO, out, "topr"), load_file(out / "model" / "model.safetensors")


def test_killed_twice_and_started_again_two_processes_end_with_the_same_bits(whole, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    kill_at(random.randint(1, 4), out)
    kill_at(random.randint(5, 9), out)
    assert finished(TWO, out, "topr") == whole[0]
    weights = load_file(out / "model" / "model.safetensors")
    assert all(torch.equal(weight, weights[name]) for name, weight in whole[1].items())


def test_a_run_of_two_processes_is_not_gone_on_with_by_one(tmp_path: Path) -> None:
    """Each process keeps the states of its own generators."""
    kill_at(3, tmp_path / "killed")
    job = start(ALONE, tmp_path / "killed", "topr")
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 1
    assert "was begun by 2 processes, not 1: start as many to go on with it" in said
