from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from thrifty import cli
from thrifty.claims import catalogue, fingerprint, store
from thrifty.claims.harness import Claim, Condition
from thrifty.core import index
from thrifty.core.errors import DiskFullError, InputError
from thrifty.core.method import Room, Task
from thrifty.core.run import Run

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "directory", lambda: tmp_path / "results")
    return tmp_path


def refused(capsys: Captured, *arguments: str, code: int = 2) -> str:
    assert cli.main(list(arguments)) == code
    said = capsys.readouterr().err.strip()
    assert "\n" not in said, "an error is one line"
    assert said.startswith("thrifty: error: ")
    assert "Traceback" not in said
    return said.removeprefix("thrifty: error: ")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Inputs of the toy room.

    Parameters
    ----------
    data
        A number to add to.
    fail
        How to go wrong.
    """

    data: int = 1
    fail: str = ""


@dataclasses.dataclass(frozen=True)
class Toy:
    """A method that adds.

    Parameters
    ----------
    amount
        What is added.
    """

    amount: float = 2.0


def toy_run(toy: Toy, inputs: Inputs, run: Run) -> dict[str, Any]:
    if inputs.fail:
        raise {"input": InputError("data: wrong"), "disk": DiskFullError("no space left")}.get(
            inputs.fail, ZeroDivisionError("division by zero")
        )
    run.log(0, value=inputs.data)
    return {"table": [{"result": inputs.data + toy.amount}]}


TOY_TASK = Task(
    summary="adding",
    gives=frozenset({"model", "forget-set", "retain-set"}),
    prepare=lambda seed, quick, directory: seed,
    evaluate=lambda toy, seed: {"sum": toy.amount + seed},
    baselines={"nothing": lambda seed: {"sum": float(seed)}},
    metrics=("sum",),
    variants={"more": lambda: Toy(3.0)},
)
TOY_CLAIM = Claim(
    "ssd", "adding adds", "numbers", lambda s, q, d: s,
    {"toy": lambda s: {"sum": 2.0}, "nothing": lambda s: {"sum": 0.0}}, ["sum"], [Condition("sum", "toy", "nothing")],
)  # fmt: skip


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    room = Room(Inputs, toy_run, {"adding": TOY_TASK})
    for place in ("cli", "jobs", "claims.compare"):
        monkeypatch.setattr(f"thrifty.{place}.load", lambda paper_id: Toy)
    for place in ("jobs", "claims.compare"):
        monkeypatch.setattr(f"thrifty.{place}.load_room", lambda name: room)
    monkeypatch.setattr(index, "implemented", lambda paper: paper.id == "ssd")
    monkeypatch.setattr(catalogue, "load_claim", lambda paper_id: TOY_CLAIM)
    for module in (fingerprint, store):
        monkeypatch.setattr(module, "fingerprint", lambda name: "code")


def test_help_names_every_command(capsys: Captured) -> None:
    assert cli.main([]) == cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name} " in said for name in cli.COMMANDS)
    for name in cli.COMMANDS:
        assert cli.main([name, "--help"]) == 0
        assert "usage: thrifty " + name in capsys.readouterr().out
    assert cli.main(["--version"]) == 0


def test_wrong_words_are_one_line_with_the_nearest(capsys: Captured) -> None:
    assert refused(capsys, "lst") == "no command 'lst': did you mean 'list'?"
    assert "did you mean 'ssd'?" in refused(capsys, "show", "sdd")
    assert "did you mean 'ssd'?" in refused(capsys, "run", "sdd")
    assert "did you mean --room?" in refused(capsys, "list", "--rom", "x")
    assert "did you mean 'forget'?" in refused(capsys, "list", "--room", "forgett")
    assert "give the paper's id first" in refused(capsys, "run", "--seed", "3")
    assert "not implemented yet" in refused(capsys, "run", "redco")
    assert "give a run's directory, or --index" in refused(capsys, "report")
    assert "is no run" in refused(capsys, "report", "nowhere")
    assert "no bench 'speed'" in refused(capsys, "bench", "speed")
    assert "nothing in it is implemented yet" in refused(capsys, "compare", "scale")


def test_list_as_json_and_as_a_table(capsys: Captured, toy: None) -> None:
    assert cli.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 73
    assert cli.main(["list", "--room", "forget", "--have", "model, forget-set, retain-set", "--json"]) == 0
    few = json.loads(capsys.readouterr().out)
    assert "ssd" in {row["id"] for row in few}
    assert all(set(row["needs"]) <= {"model", "forget-set", "retain-set"} for row in few)
    assert cli.main(["list", "--room", "forget"]) == 0
    assert "ssd" in capsys.readouterr().out


def test_show_tells_arguments_and_claim(capsys: Captured, toy: None) -> None:
    assert cli.main(["reproduce", "ssd", "--store"]) == 0
    capsys.readouterr()
    assert cli.main(["show", "ssd"]) == 0
    said = capsys.readouterr().out
    assert "--amount (default 2.0)" in said
    assert "What is added." in said
    assert "verdict: holds" in said
    assert cli.main(["show", "ssd", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["arguments"] == [{"name": "amount", "type": "float", "default": "2.0", "help": "What is added."}]
    assert shown["claim"]["status"] == "holds"
    assert cli.main(["show", "redco"]) == 0
    assert "not implemented yet" in capsys.readouterr().out


def test_run_takes_the_dataclass_s_fields(capsys: Captured, toy: None, elsewhere: Path) -> None:
    assert cli.main(["run", "ssd", "--data", "5", "--amount", "0.5", "--seed", "3", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["table"] == [{"result": 5.5}]
    config = json.loads((elsewhere / "runs/ssd/config.json").read_text())
    assert config["method"] == {"amount": 0.5}
    assert config["seed"] == 3
    assert (elsewhere / "runs/ssd/report.html").exists()
    assert cli.main(["run", "ssd"]) == 0  # the finished one stays: a new directory
    assert (elsewhere / "runs/ssd-2/summary.json").exists()
    said = capsys.readouterr().out
    assert "runs/ssd-2" in said
    assert "could not convert" in refused(capsys, "run", "ssd", "--amount", "x")
    assert "did you mean --amount?" in refused(capsys, "run", "ssd", "--amout", "1")


def test_a_method_s_field_named_like_the_room_s_is_one_line(
    capsys: Captured, toy: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    clashing = dataclasses.make_dataclass("Clashing", [("amount", float, 1.0), ("data", int, 2)])
    monkeypatch.setattr("thrifty.jobs.load", lambda paper_id: clashing)
    said = refused(capsys, "run", "ssd", code=1)
    assert said.startswith("ValueError: Clashing can't have a field 'data': Inputs has one")


def test_every_implemented_method_shares_a_command_line_with_its_room(capsys: Captured) -> None:
    ready = [paper.id for paper in index.papers().values() if index.implemented(paper)]
    assert "ssd" in ready
    for paper_id in ready:
        assert cli.main(["run", paper_id, "--help"]) == 0
        assert "--overwrite" in capsys.readouterr().out


def test_an_output_directory_that_exists_is_left_alone(capsys: Captured, toy: None, elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine/a.txt").write_text("a")
    assert "exists and holds no run" in refused(capsys, "run", "ssd", "--out", "mine")
    assert cli.main(["run", "ssd", "--out", "done"]) == 0
    capsys.readouterr()
    assert "holds a finished run" in refused(capsys, "run", "ssd", "--out", "done")
    assert cli.main(["run", "ssd", "--out", "done", "--overwrite"]) == 0


def test_exit_codes_and_debug(capsys: Captured, toy: None) -> None:
    assert refused(capsys, "run", "ssd", "--fail", "input") == "data: wrong"
    assert refused(capsys, "run", "ssd", "--fail", "disk", code=1) == "no space left"
    said = refused(capsys, "run", "ssd", "--fail", "bug", code=1)
    assert said == "ZeroDivisionError: division by zero (--debug shows where)"
    assert cli.main(["run", "ssd", "--fail", "bug", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_of_the_same_settings_goes_on(toy: None, capsys: Captured, elsewhere: Path) -> None:
    refused(capsys, "run", "ssd", "--fail", "disk", code=1)
    refused(capsys, "run", "ssd", "--fail", "disk", code=1)
    assert [p.name for p in (elsewhere / "runs").iterdir()] == ["ssd"]
    assert cli.main(["run", "ssd"]) == 0
    assert (elsewhere / "runs/ssd-2/summary.json").exists()


def test_wrong_input_leaves_no_directory_behind(toy: None, capsys: Captured, elsewhere: Path) -> None:
    refused(capsys, "run", "ssd", "--fail", "input")
    assert list((elsewhere / "runs").iterdir()) == []
    assert cli.main(["run", "ssd"]) == 0
    assert (elsewhere / "runs/ssd/summary.json").exists()


def test_reproduce_computes_and_stores_only_when_asked(capsys: Captured, toy: None, elsewhere: Path) -> None:
    assert cli.main(["reproduce", "ssd", "--quick"]) == 0
    assert "quick: decides nothing" in capsys.readouterr().out
    assert cli.main(["reproduce", "ssd", "--seeds", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [0, 1]
    assert not (elsewhere / "results").exists()
    assert cli.main(["reproduce", "--store"]) == 0  # all that are outdated
    assert json.loads((elsewhere / "results/ssd.json").read_text())["verdict"] == "holds"
    assert catalogue.outdated() == []


def test_compare_runs_methods_variants_and_baselines(capsys: Captured, toy: None) -> None:
    assert cli.main(["compare", "forget", "--json", "--seeds", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert list(result["arms"]) == ["ssd", "more", "nothing"]
    assert result["arms"]["more"]["metrics"]["sum"]["values"] == [3.0, 4.0]
    assert cli.main(["compare", "forget", "--quick"]) == 0
    assert "adding" in refused(capsys, "compare", "forget", "--task", "subtracting")


def test_the_report_of_a_comparison_plots_the_task_s_trade_off(
    capsys: Captured, toy: None, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    task = dataclasses.replace(TOY_TASK, metrics=["sum", "-cost"], axes=("-cost", "sum"))
    task = dataclasses.replace(task, baselines={"nothing": lambda problem: {"sum": 0.0, "cost": 1.0}}, variants={})
    task = dataclasses.replace(task, evaluate=lambda method, problem: {"sum": 1.0, "cost": 2.0})
    room = Room(Inputs, toy_run, {"adding": task})
    for place in ("jobs", "claims.compare"):
        monkeypatch.setattr(f"thrifty.{place}.load_room", lambda name: room)
    assert cli.main(["compare", "forget", "--json", "--out", "compared"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["axes"], result["baselines"]) == (["-cost", "sum"], ["nothing"])
    assert "sum against cost: a point for each of ssd, nothing" in (elsewhere / "compared" / "report.html").read_text()


BENCH_ROW = {
    "name": "a / b", "ratio": 2, "ours": 4.0, "peer": 2.0, "unit": "s", "runs": [2], "min": 2, "median": 2, "max": 2,
    "target": ">= 1", "ok": True,
}  # fmt: skip


def test_bench_prints_its_rows(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("thrifty.bench.load_bench", lambda name: lambda quick: [BENCH_ROW])
    assert cli.main(["bench", "core", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["ratio"] == 2
    assert cli.main(["bench", "core"]) == 0


def test_fetch_lists_and_refuses_unknown_names(
    capsys: Captured, monkeypatch: pytest.MonkeyPatch, elsewhere: Path
) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(elsewhere / "cache"))
    assert cli.main(["fetch", "--json"]) == 0
    assert "smollm2-135m-instruct" in {row["name"] for row in json.loads(capsys.readouterr().out)}
    assert cli.main(["fetch"]) == 0
    capsys.readouterr()
    assert "did you mean 'digits'?" in refused(capsys, "fetch", "digts")
    (elsewhere / "here").mkdir()
    assert cli.main(["fetch", "./here"]) == 0


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m thrifty.cli list --json | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=os.environ, check=False)
    assert done.stdout == "[\n"
    assert done.stderr == ""


def test_listing_needs_no_heavy_library() -> None:
    code = "import sys; from thrifty import cli; cli.main(['list', '--json']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_python_dash_m_is_the_command() -> None:
    said = subprocess.run([sys.executable, "-m", "thrifty", "show", "no-such-paper"], capture_output=True, text=True)
    assert said.returncode == 2
    assert len(said.stderr.strip().splitlines()) == 1
