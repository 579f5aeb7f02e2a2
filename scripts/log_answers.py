"""Makes src/thrifty/align/arithmetic.jsonl: a model's own answers to arithmetic problems, scored by a verifier.

Each line holds the prompt, the completion, its token ids, the log-probability of each token when it was sampled,
the reward (+1 right, -1 wrong), and the problem's id. Run again, it writes the same file on the same machine:

    python scripts/log_answers.py --out answers.jsonl
"""

from __future__ import annotations

from pathlib import Path

import torch
import tyro

from thrifty.align.log import LONGEST_ANSWER, as_logged
from thrifty.core.run import pick_dtype
from thrifty.data.readers import write_jsonl
from thrifty.data.tasks import arithmetic
from thrifty.lm.load import load_lm
from thrifty.lm.sample import sample


def main(out: Path, model: str = "smollm2-135m-instruct", problems: int = 250, samples: int = 4, seed: int = 0) -> None:
    """Samples and scores answers.

    Parameters
    ----------
    out
        The JSONL file to write; an existing one is not overwritten.
    model
        What answers, at temperature 1.
    problems
        Training problems that are asked.
    samples
        Answers to each.
    seed
        Of problems and sampling.
    """
    task = arithmetic()
    lm, tokenizer = load_lm(model, dtype=pick_dtype("auto", torch.device("cpu")))
    asked = as_logged(task.problems(problems, seed, "train"))
    answers = sample(
        lm,
        tokenizer,
        [problem.prompt for problem in asked],
        n=samples,
        max_new_tokens=LONGEST_ANSWER,
        generator=torch.Generator().manual_seed(seed),
    )
    records = []
    for row, text in enumerate(answers.texts(tokenizer)):
        problem = asked[int(answers["group"][row])]
        spoken = answers.response_mask[row]
        records.append(
            {
                "id": problem.id,
                "prompt": problem.prompt,
                "completion": text,
                "reward": 1.0 if task.score(problem, text) >= 1 else -1.0,
                "completion_ids": answers.input_ids[row][spoken].tolist(),
                "behaviour_logps": [round(x, 5) for x in answers["behaviour_logps"][row][spoken].tolist()],
            }
        )
    write_jsonl(out, records)
    right = sum(record["reward"] > 0 for record in records)
    print(f"{len(records)} answers, {right} right, to {out}")


if __name__ == "__main__":
    tyro.cli(main)
