"""Makes src/thrifty/align/history.jsonl: how often a model solves each problem, epoch by epoch of an online run.

Trains the model with GRPO on all problems and writes the share of right answers to each in every pass over them. Run
again, it writes the same file on the same machine:

    python scripts/log_history.py --out history.jsonl
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import tyro

from thrifty.align.adapter import train_last_layers
from thrifty.align.asking import Sampling
from thrifty.align.base import Training
from thrifty.align.job import as_record
from thrifty.align.log import LONGEST_ANSWER, as_logged
from thrifty.align.one_shot_rlvr import OneShotRLVR
from thrifty.align.training import train
from thrifty.core.run import Run
from thrifty.data.tasks import arithmetic
from thrifty.lm.load import load_lm
from thrifty.reward.verifiers import task_reward
from thrifty.select.history import AccuracyHistory


def main(
    out: Path,
    model: str = "smollm2-135m-instruct",
    problems: int = 100,
    epochs: int = 5,
    seed: int = 0,
    limit: int = 24,
) -> None:
    """Trains and records.

    Parameters
    ----------
    out
        The JSONL file to write; an existing one is not overwritten.
    model
        What is trained, its last ten layers.
    problems
        Training problems that the first ``limit`` are taken of.
    epochs
        Passes over them.
    seed
        Of problems and run.
    limit
        How many are trained on.
    """
    task, history = arithmetic(), AccuracyHistory()
    asked = as_logged(task.problems(problems, seed, "train"))[:limit]
    with TemporaryDirectory() as folder, Run(Path(folder) / "run", seed=seed, device="cpu") as run:
        lm, tokenizer = load_lm(model, dtype=run.dtype, device=run.device)
        train_last_layers(lm, 10)
        train(
            lm,
            OneShotRLVR(temperature=1.0),
            [as_record(problem) for problem in asked],
            run,
            Training(learning_rate=3e-5, epochs=epochs, micro_batch_size=32),
            tokenizer=tokenizer,
            reward=task_reward(task),
            sampling=Sampling(samples=8, prompts_per_rollout=4, max_new_tokens=LONGEST_ANSWER),
            history=history,
            save_every=None,
        )
        run.finish({})
    history.save(out)


if __name__ == "__main__":
    tyro.cli(main)
