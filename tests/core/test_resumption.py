"""Exact resumption: real child processes, killed at random moments, must end as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("resumable_job.py")
STEPS = 40
RESULTS = ("final.safetensors", "first/metrics.jsonl", "second/metrics.jsonl")


def start(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, str(JOB), str(directory), str(STEPS)], stderr=subprocess.PIPE)


def results(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in RESULTS}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], float]:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    began = time.monotonic()
    assert start(directory).wait() == 0
    return results(directory), time.monotonic() - began


def lines(directory: Path) -> int:
    return sum(len(p.read_bytes().splitlines()) for p in directory.glob("*/metrics.jsonl"))


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_random_moments_ends_bit_equal(
    seed: int, undisturbed: tuple[dict[str, bytes], float], tmp_path: Path
) -> None:
    draw, directory, kills = random.Random(seed), tmp_path / "run", 0
    for _ in range(3):
        child, target = start(directory), lines(directory) + draw.randint(1, STEPS // 2)
        while child.poll() is None and lines(directory) < target:
            time.sleep(0.02)
        time.sleep(draw.random() * 0.01)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += child.wait() == -signal.SIGKILL
    assert kills >= 1
    last = start(directory)
    if last.wait() != 0:  # it had finished before the last kill
        assert b"finished run" in last.stderr.read()
    assert results(directory) == undisturbed[0]


def test_sigterm_saves_and_leaves_and_goes_on(undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    child = start(tmp_path / "run")
    while lines(tmp_path / "run") < 5:
        time.sleep(0.02)
    child.terminate()
    assert child.wait() == 1
    assert b"stopped at step" in child.stderr.read()
    assert start(tmp_path / "run").wait() == 0
    assert results(tmp_path / "run") == undisturbed[0]


def test_a_truncated_checkpoint_is_passed_over(undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    child = start(tmp_path / "run")
    while lines(tmp_path / "run") < 12:
        time.sleep(0.02)
    child.kill()
    child.wait()
    newest = max((tmp_path / "run/first/checkpoints").glob("step-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-50])
    again = start(tmp_path / "run")
    assert again.wait() == 0
    assert b"using the checkpoint before it" in again.stderr.read()
    assert results(tmp_path / "run") == undisturbed[0]


@pytest.mark.slow
def test_many_kill_points(undisturbed: tuple[dict[str, bytes], float], tmp_path: Path) -> None:
    """Twenty runs, each killed after a random share of the undisturbed run's time, again and again."""
    draw = random.Random(0)
    for trial in range(20):
        directory = tmp_path / str(trial)
        for _ in range(2):
            child = start(directory)
            try:
                child.wait(draw.uniform(0.3, 1.0) * undisturbed[1])
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        start(directory).wait()
        assert results(directory) == undisturbed[0]
