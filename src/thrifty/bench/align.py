"""Alignment beside TRL: a GRPO step and a DPO-norm step in time and peak memory, and a learning step beside the peak.

Both sides get the same model, prompts or pairs, dtype, batch and hyper-parameters; what is not named is TRL's default
and set to the same here. Ratios come from pairs of runs in alternating order; memory is that of a fresh process
beyond the loaded model. Both sides can compute activations again to save memory, ours to any degree. Time is compared
where neither does (TRL without gradient checkpointing, ours with room for all activations) and so is memory; the rows
"lean" compare the memory of TRL's default, gradient checkpointing, and ours.
"""

from __future__ import annotations

import importlib.util
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thrifty.align import DPO, GRPO, Sampling, Training, train
from thrifty.bench._measure import paired, peak_in_fresh_process, peak_of, row
from thrifty.core.errors import InputError
from thrifty.core.run import Run
from thrifty.data.tasks import arithmetic
from thrifty.lm.load import load_lm
from thrifty.lm.logps import token_logps
from thrifty.lm.records import from_records
from thrifty.lm.sequences import Sequences, from_rows

MODEL = "smollm2-135m-instruct"
LEAST_GRPO, MOST_GRPO_MEMORY = 4.0, 0.35
LEAST_DPO, MOST_DPO_MEMORY = 3.0, 0.4
LEAST_OF_PEAK = 0.5
ROOM = 2.25  # GiB of activations where none are computed again
RATE, BETA, LONGEST = 1e-6, 5.0, 256  # beta as in the paper that introduced dpo-norm
_PROMPTS, _SAMPLES, _NEW, _PAIRS, _PART = 16, 8, 64, 16, 32


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measures on SmolLM2-135M-Instruct in bfloat16.

    Parameters
    ----------
    quick
        Smaller batches and one pair.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.

    Raises
    ------
    InputError
        When TRL is not installed.
    """
    if importlib.util.find_spec("trl") is None:
        raise InputError("the peer of this bench is missing: pip install thrifty[peers]")
    pairs = 1 if quick else 3
    size = "quick" if quick else "full"
    # Memory first: TRL's processes need most of a machine's, and this one holds on to what it once had.
    peaks = {name: [peak_in_fresh_process("thrifty.bench.align", name, way, size) for way in _WAYS] for name in _LABELS}
    rows = [_learning_row(quick, pairs)]
    for name, least, most in (("grpo", LEAST_GRPO, MOST_GRPO_MEMORY), ("dpo", LEAST_DPO, MOST_DPO_MEMORY)):
        ours, peer = (partial(_timed, name, way, quick) for way in ("ours", "trl"))
        found = paired(ours, peer, pairs)
        label = _LABELS[name]
        rows.append(row(f"{label} step / TRL, times as fast", found, "s", least=least, inverse=True))
        for place, way in enumerate(("", " lean")):
            mine, theirs = peaks[name][2 * place : 2 * place + 2]
            rows.append(row(f"{label} step / TRL, peak memory{way}", [(mine, theirs)], "GB", most=most))
    return rows


_WAYS = ("ours", "trl", "ours-lean", "trl-lean")
_LABELS = {"grpo": "GRPO", "dpo": "DPO-norm"}


def _model() -> tuple[Any, Any]:
    return load_lm(MODEL, dtype=torch.bfloat16)


def _step(job: str, way: str, quick: bool, directory: str) -> tuple[Any, Callable[[], object]]:
    """The loaded model and one optimizer step on it, made ready."""
    model, tokenizer = _model()
    if way.startswith("ours"):
        make = {"grpo": _our_grpo, "dpo": _our_dpo}[job]
        return model, lambda: make(model, tokenizer, quick, directory, way == "ours-lean")
    make_trainer = {"grpo": _trl_grpo, "dpo": _trl_dpo}[job]
    return model, lambda: make_trainer(model, tokenizer, quick, directory, way == "trl-lean").train()


def _timed(job: str, way: str, quick: bool) -> float:
    """Seconds of one step, trainer and data included; the model is there."""
    with tempfile.TemporaryDirectory() as directory:
        _, step = _step(job, way, quick, directory)
        started = time.perf_counter()
        step()
        return time.perf_counter() - started


def peak_memory(job: str, way: str, quick: bool) -> float:
    """Gigabytes that a step takes at most beyond the loaded model; needs a process that has done nothing else."""
    with tempfile.TemporaryDirectory() as directory:
        model, step = _step(job, way, quick, directory)
        found = peak_of(step)
        del model
        return found


def letters(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:  # noqa: ARG001 (TRL's signature)
    """A reward that tells answers apart and costs nothing: the share of vowels."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in texts]


def _prompts(quick: bool) -> list[str]:
    return [problem.prompt for problem in arithmetic().problems(4 if quick else _PROMPTS, 0)]


def preference_records(pairs: int, tokenizer: Any, longest: int = LONGEST) -> list[dict[str, Any]]:
    """Pairs of conversations of up to that many tokens, of made-up text.

    Parameters
    ----------
    pairs
        How many.
    tokenizer
        Measures them.
    longest
        Tokens of the longest.
    """
    draw = random.Random(0)
    words = " ".join(problem.prompt for problem in arithmetic().problems(200, 1)).split()

    def said(tokens: int) -> str:
        text = " ".join(draw.choices(words, k=tokens))
        return str(tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids[:tokens]))

    records = []
    for _ in range(pairs):
        # The template's own tokens take about 40.
        prompt = draw.randrange(longest // 8, longest // 4)
        answers = [draw.randrange(longest // 4, longest - prompt - 44) for _ in range(2)]
        records.append(
            {
                "prompt": [{"role": "user", "content": said(prompt)}],
                **{
                    name: [{"role": "assistant", "content": said(length)}]
                    for name, length in zip(("chosen", "rejected"), answers, strict=True)
                },
            }
        )
    return records


def _room(lean: bool) -> float | None:
    return None if lean else ROOM


def _our_run(directory: str) -> Run:
    return Run(Path(directory) / "run", device="cpu")


def _our_grpo(model: Any, tokenizer: Any, quick: bool, directory: str, lean: bool) -> None:
    prompts = _prompts(quick)
    sampling = Sampling(samples=_SAMPLES, prompts_per_rollout=len(prompts), max_new_tokens=_NEW)
    training = Training(
        learning_rate=RATE, batch_size=len(prompts) * _SAMPLES, micro_batch_size=_PART, activation_gib=_room(lean)
    )
    with _our_run(directory) as job:
        train(
            model,
            GRPO(aggregation="token"),
            prompts,
            job,
            training,
            tokenizer=tokenizer,
            reward=letters,
            sampling=sampling,
            save_every=None,
        )


def _our_dpo(model: Any, tokenizer: Any, quick: bool, directory: str, lean: bool) -> None:
    pairs = 4 if quick else _PAIRS
    data = from_records(preference_records(pairs, tokenizer), tokenizer, max_length=LONGEST)
    training = Training(
        learning_rate=RATE, batch_size=2 * pairs, micro_batch_size=2 * pairs, activation_gib=_room(lean)
    )
    with _our_run(directory) as job:
        train(model, DPO(kind="dpo-norm", beta=BETA), data, job, training, save_every=None)


def _trl_settings(directory: str, batch: int, lean: bool) -> dict[str, Any]:
    """One step on the whole batch; all else as TRL's defaults have it."""
    return {
        "output_dir": str(Path(directory) / "trl"),
        "max_steps": 1,
        "per_device_train_batch_size": batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "gradient_checkpointing": lean,
        "bf16": True,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "seed": 0,
    }


def _trl_grpo(model: Any, tokenizer: Any, quick: bool, directory: str, lean: bool) -> Any:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    prompts = [{"prompt": [{"role": "user", "content": text}]} for text in _prompts(quick)]
    settings = GRPOConfig(
        **_trl_settings(directory, len(prompts) * _SAMPLES, lean),
        num_generations=_SAMPLES,
        max_completion_length=_NEW,
        loss_type="dapo",  # the mean over all tokens
        temperature=1.0,
        beta=0.0,
        epsilon=0.2,
    )
    return GRPOTrainer(
        model, letters, args=settings, train_dataset=Dataset.from_list(prompts), processing_class=tokenizer
    )


def _trl_dpo(model: Any, tokenizer: Any, quick: bool, directory: str, lean: bool) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    records = preference_records(4 if quick else _PAIRS, tokenizer)
    settings = DPOConfig(
        **_trl_settings(directory, len(records), lean), loss_type=["sigmoid_norm"], beta=BETA, max_length=LONGEST
    )
    return DPOTrainer(model, args=settings, train_dataset=Dataset.from_list(records), processing_class=tokenizer)


def _groups(prompts: int) -> Sequences:
    """Groups of answers of 20 to 64 tokens to prompts of about 50."""
    generator = torch.Generator().manual_seed(0)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    def words(count: int) -> list[int]:
        return torch.randint(3, 49_000, (count,), generator=generator).tolist()

    rows = []
    for _ in range(prompts):
        prompt = words(number(44, 57))
        for _ in range(_SAMPLES):
            answer = words(number(20, _NEW + 1))
            rows.append((prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    return from_rows(rows)


def model_flops(model: Any, batch: Sequences, prompts: int) -> float:
    """Floating-point operations that a learning step on groups of answers can't do without.

    Six per weight and token, forwards and backwards: of the body for each token that is read (a prompt's once), of
    the head for each token that is predicted.
    """
    head = model.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in model.parameters()) - head  # one matrix is both embedding and head
    spoken = int(batch.response_mask.sum())
    shared = int((batch.lengths - batch.response_lengths).view(prompts, -1)[:, 0].sum())
    return 6.0 * (body * (spoken + shared - len(batch)) + head * spoken)


def _learning_row(quick: bool, pairs: int) -> dict[str, Any]:
    model, _ = _model()
    model.train()
    prompts = 4 if quick else _PROMPTS
    batch = _groups(prompts)
    work = model_flops(model, batch, prompts)

    def learn() -> float:
        started = time.perf_counter()
        for part in range(0, len(batch), _PART):
            token_logps(model, batch.select(slice(part, part + _PART)).trim()).sum().backward()
        seconds = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
        return work / seconds / 1e9

    learn()
    return row("learning step / matrix product's peak", paired(learn, _peak, pairs), "GFLOP/s", least=LEAST_OF_PEAK)


def _peak() -> float:
    """GFLOP/s of a large product in bfloat16, the best of a few."""
    a: Tensor = torch.randn(4096, 4096).bfloat16()
    best = 0.0
    for _ in range(4):
        started = time.perf_counter()
        a @ a
        best = max(best, 2 * 4096**3 / (time.perf_counter() - started) / 1e9)
    return best


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(peak_memory(sys.argv[1], sys.argv[2], sys.argv[3] == "quick")))
