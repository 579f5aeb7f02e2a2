"""The demo: SmolLM2-135M-Instruct learns from 1,000 of its own right and wrong answers.

A small instruct model answered arithmetic word problems; a verifier scored each answer +1 or -1. Three ways to learn
from that log, with the same number of steps, are measured on problems that are not in it.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

from thrifty.align.arithmetic import Setting, answer_after, default_topr, prepare
from thrifty.align.base import Objective
from thrifty.align.sft import SFT, naive_reinforce
from thrifty.core.errors import ThriftyError
from thrifty.core.run import Run
from thrifty.report.plots import shares_plot
from thrifty.report.run import write_report
from thrifty.report.tables import print_table

ARMS: dict[str, Objective | None] = {
    "the model as it is": None,
    "TOPR": default_topr(),
    "supervised fine-tuning on right answers": SFT(),
    "naive REINFORCE": naive_reinforce(),
}


def main() -> int:
    """Runs the arms one after the other and prints the table."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    directory = free_directory(Path("runs"))
    rows, shares = [], []
    with Run(directory, config={"command": "make demo"}) as run, tempfile.TemporaryDirectory() as scratch:
        setting: Setting = prepare(seed=0, quick=False, directory=Path(scratch))
        for name, method in ARMS.items():
            print(f"... {name}", flush=True)
            measured, seconds = answer_after(method, setting)
            rows.append(
                {
                    "method": name,
                    "accuracy [95% interval]": "{:.3f} [{:.3f}, {:.3f}]".format(*measured.accuracy),
                    "invalid answers [95% interval]": "{:.3f} [{:.3f}, {:.3f}]".format(*measured.invalid_share),
                    "training seconds": round(seconds, 1),
                }
            )
            shares.append({"method": name, "accuracy": measured.accuracy, "invalid answers": measured.invalid_share})
        shares_plot(shares, run.directory / "demo.png")
        run.finish({"table": rows, "title": "Learning from one's own right and wrong answers"})
    print_table(rows, title="SmolLM2-135M-Instruct on held-out arithmetic problems, sampled at temperature 1")
    print(f"plot:   {directory / 'demo.png'}\nreport: {write_report(directory)}")
    print(
        "\nOn your own model and data (JSONL with the columns prompt, completion, reward):\n"
        "  thrifty run topr --model DIRECTORY_OR_HUB_ID --data LOG.jsonl --positive-fraction 0.15 --out my-run\n"
        "  thrifty list --have language-model,prompts,rewards      # what else these data allow"
    )
    return 0


def free_directory(base: Path) -> Path:
    """The first of ``demo``, ``demo-2``, ... that is not there yet."""
    numbers = (number for number in range(1, 10_000))
    names = (base / ("demo" if number == 1 else f"demo-{number}") for number in numbers)
    return next(path for path in names if not path.exists())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ThriftyError as error:
        sys.exit(f"demo: {error}")
