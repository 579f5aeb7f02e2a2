"""The demo: SmolLM2-135M-Instruct learns from 1,000 of its own right and wrong answers.

A small instruct model answered arithmetic word problems; a verifier scored each answer +1 or -1. Three ways to learn
from that log, with the same number of steps, are measured on problems that are not in it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from thrifty.align.arithmetic import LEARNING_RATES, answer_after, default_topr, prepare
from thrifty.align.base import Objective
from thrifty.align.evaluate import Accuracy
from thrifty.align.sft import SFT, naive_reinforce
from thrifty.claims.harness import versions
from thrifty.core.atomic import write_json
from thrifty.core.errors import ThriftyError
from thrifty.core.run import Run
from thrifty.report.plots import arms_plot
from thrifty.report.run import write_report
from thrifty.report.tables import claim_table, print_table

ARMS: dict[str, Objective | None] = {
    "TOPR": default_topr(),
    "supervised on right answers": SFT(),
    "naive REINFORCE": naive_reinforce(),
    "untrained": None,
}


def main() -> int:
    """Runs the arms one after the other; prints the table and where the report is."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # the conversion of the model has three bars of its own
    directory = free_directory(Path("runs"))
    arms: dict[str, Any] = {}
    with Run(directory, config={"command": "make demo"}) as run, tempfile.TemporaryDirectory() as scratch:
        setting = prepare(seed=0, quick=False, directory=Path(scratch))
        for name, method in ARMS.items():
            print(f"... {name}", flush=True)
            measured, seconds = answer_after(method, setting, LEARNING_RATES.get(name.partition(" ")[0], 1e-4))
            arms[name] = {"metrics": shares(measured), "seconds": seconds}
        result = {
            "says": "Learning from one's own right and wrong answers",
            "setting": (
                f"SmolLM2-135M-Instruct, {len(setting.log)} of its own logged answers to arithmetic word problems, "
                f"{setting.training.steps(len(setting.log))} steps of {setting.training.batch_size}; "
                f"{len(setting.problems)} held-out problems, {setting.samples} answers each at temperature 1; "
                "95% intervals of the shares; seconds of training"
            ),
            "quick": False,
            "seeds": [0],
            "metric": "accuracy",
            "metrics": ["accuracy", "-invalid answers"],
            "arms": arms,
            "versions": versions(),
        }
        write_json(run.directory / "result.json", result)
        arms_plot(result, run.directory / "demo.png")
        run.finish({"table": [], "versions": result["versions"]})
    print(result["setting"])
    print_table(claim_table(result))
    print(f"plot:   {directory / 'demo.png'}\nreport: {write_report(directory)}")
    print(
        "\nOn your own model and data (JSONL with the columns prompt, completion, reward):\n"
        "  thrifty run topr --model DIRECTORY_OR_HUB_ID --data LOG.jsonl --positive-fraction 0.15 --out my-run\n"
        "  thrifty list --have language-model,prompts,rewards      # what else these data allow"
    )
    return 0


def shares(measured: Accuracy) -> dict[str, Any]:
    """Accuracy and share of invalid answers with their intervals."""
    named = {"accuracy": measured.accuracy, "invalid answers": measured.invalid_share}
    return {name: {"mean": i.mean, "low": i.low, "high": i.high, "values": [i.mean]} for name, i in named.items()}


def free_directory(base: Path) -> Path:
    """The first of ``demo``, ``demo-2``, ... that is not there yet."""
    names = (base / ("demo" if number == 1 else f"demo-{number}") for number in range(1, 10_000))
    return next(path for path in names if not path.exists())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThriftyError as error:
        sys.exit(f"demo: {error}")
