"""One process and two, started by ``torchrun``, train alike, also with sharded parameters; killed, they go on as if
nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

JOB = Path(__file__).with_name("several_processes_job.py")
ALONE = [sys.executable]
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WHOLE: dict[str, str] = {}
SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # what accelerate launch --use_fsdp sets


def start(
    launcher: list[str], out: Path, objective: str, layout: dict[str, str], pause: float = 0.0
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*launcher, str(JOB), str(out), objective, str(pause)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, **layout, "OMP_NUM_THREADS": "1"},
    )


class Finished:
    """What a run left behind."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        self.weights = LlamaForCausalLM.from_pretrained(out / "model").state_dict()

    def checkpoint(self) -> dict[str, list[int]]:
        """Names and shapes of what its last checkpoint holds."""
        with safe_open(max((self.out / "checkpoints").iterdir()), "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118


def finished(launcher: list[str], out: Path, objective: str, layout: dict[str, str]) -> Finished:
    job = start(launcher, out, objective, layout)
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 0, said
    return Finished(out)


Undisturbed = Callable[[list[str], str, dict[str, str]], Finished]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Runs that nothing happens to, each made once."""
    made: dict[Any, Finished] = {}

    def run(launcher: list[str], objective: str, layout: dict[str, str]) -> Finished:
        key = len(launcher), objective, len(layout)
        if key not in made:
            made[key] = finished(launcher, tmp_path_factory.mktemp("undisturbed") / "run", objective, layout)
        return made[key]

    return run


@pytest.mark.parametrize("layout", [WHOLE, SHARDED], ids=["whole", "sharded"])
@pytest.mark.parametrize("objective", ["topr", "sft", "ppo"])
def test_two_processes_train_as_one_does(objective: str, layout: dict[str, str], undisturbed: Undisturbed) -> None:
    one, two = undisturbed(ALONE, objective, WHOLE), undisturbed(TWO, objective, layout)
    assert len(one.metrics) == len(two.metrics) == {"topr": 11, "sft": 7, "ppo": 11}[objective]
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        norms = [name for name in a if name.endswith("gradient_norm")]
        assert len(norms) == (2 if objective == "ppo" else 1)
        assert [b[name] for name in norms] == pytest.approx([a[name] for name in norms], abs=1e-4)
    for name, weight in one.weights.items():
        torch.testing.assert_close(two.weights[name], weight, atol=1e-4, rtol=1e-4)


def test_a_sharded_run_s_checkpoint_holds_what_any_holds(undisturbed: Undisturbed) -> None:
    assert undisturbed(TWO, "topr", SHARDED).checkpoint() == undisturbed(TWO, "topr", WHOLE).checkpoint()


def kill_at(lines: int, out: Path, layout: dict[str, str]) -> None:
    """Starts two processes and kills both without warning once the log has so many lines."""
    job = start(TWO, out, "topr", layout, pause=0.3)
    log = out / "metrics.jsonl"
    until = time.monotonic() + 120
    while time.monotonic() < until and not (log.exists() and len(log.read_text().splitlines()) >= lines):
        time.sleep(0.05)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    subprocess.run(["pkill", "-9", "-f", str(out)], check=False)  # torchrun's own children
    assert not (out / "summary.json").exists()


@pytest.mark.parametrize(
    ("layout", "moments"), [(WHOLE, [(1, 4), (5, 9)]), (SHARDED, [(1, 9)])], ids=["whole, twice", "sharded"]
)
def test_killed_and_started_again_two_processes_end_with_the_same_bits(
    layout: dict[str, str], moments: list[tuple[int, int]], undisturbed: Undisturbed, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    for moment in moments:
        kill_at(random.randint(*moment), out, layout)
    again, whole = finished(TWO, out, "topr", layout), undisturbed(TWO, "topr", layout)
    assert again.metrics == whole.metrics
    assert all(torch.equal(weight, again.weights[name]) for name, weight in whole.weights.items())


def test_a_run_of_two_processes_is_not_gone_on_with_by_one(tmp_path: Path) -> None:
    """Each process keeps the states of its own generators."""
    kill_at(3, tmp_path / "killed", WHOLE)
    job = start(ALONE, tmp_path / "killed", "topr", WHOLE)
    said, _ = job.communicate(timeout=200)
    assert job.returncode == 1
    assert "was begun by 2 processes, not 1: start as many to go on with it" in said
