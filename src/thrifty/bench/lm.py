"""Language-model plumbing beside the plain way: time and memory of token log-probabilities, tokens sampled a second.

Ratios come from pairs of runs in alternating order on the same model, data, dtype and threads. Memory is measured in a
fresh process for each way: the highest resident size during the step beyond what the loaded model takes.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

from thrifty.bench._measure import paired, peak_in_fresh_process, peak_of, row
from thrifty.core.run import pick_dtype
from thrifty.data.tasks import arithmetic
from thrifty.lm.chat import prompt_ids
from thrifty.lm.load import load_lm
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample, stop_tokens
from thrifty.lm.sequences import Sequences

MODEL = "smollm2-135m-instruct"
LEAST_SPEEDUP, MOST_TIME, MOST_MEMORY = 3.0, 1.0, 0.3


def run(quick: bool = False) -> list[dict[str, Any]]:
    """Measures on SmolLM2-135M-Instruct in the dtype that the machine does fast.

    Parameters
    ----------
    quick
        Smaller batches and one pair.

    Returns
    -------
    list of dict
        Rows ``name, ratio, ours, peer, unit, runs, min, median, max, target, ok``.
    """
    pairs = 1 if quick else 3
    return [_memory_row(quick), _time_row(quick, pairs), _sampling_row(quick, pairs)]


def _model() -> tuple[Any, Any]:
    return load_lm(MODEL, dtype=pick_dtype("auto", torch.device("cpu")))


def _batch(quick: bool) -> Sequences:
    rows, length = (2, 128) if quick else (8, 512)
    ids = torch.randint(3, 49_000, (rows, length), generator=torch.Generator().manual_seed(0))
    spoken = torch.ones_like(ids, dtype=torch.bool)
    spoken[:, 0] = False
    return Sequences(ids, torch.ones_like(spoken), spoken)


def _ours(model: Any, batch: Sequences) -> Tensor:
    return token_logps(model, batch).sum()


def _plainly(model: Any, batch: Sequences) -> Tensor:
    logps = model(batch.input_ids).logits[:, :-1].float().log_softmax(-1)
    return logps.gather(-1, batch.input_ids[:, 1:, None]).sum()


_WAYS = {"ours": _ours, "plain": _plainly}


def _step(model: Any, batch: Sequences, way: str) -> float:
    """Seconds of one forward and backward pass."""
    started = time.perf_counter()
    _WAYS[way](model, batch).backward()
    seconds = time.perf_counter() - started
    model.zero_grad(set_to_none=True)
    return seconds


def _time_row(quick: bool, pairs: int) -> dict[str, Any]:
    (model, _), batch = _model(), _batch(quick)
    model.train()
    for way in _WAYS:  # the first pass of either is slower
        _step(model, _batch(True), way)
    found = paired(lambda: _step(model, batch, "ours"), lambda: _step(model, batch, "plain"), pairs)
    return row("token_logps / plain, time", found, "s", most=MOST_TIME)


def _memory_row(quick: bool) -> dict[str, Any]:
    size = "quick" if quick else "full"
    ours, plain = (peak_in_fresh_process("thrifty.bench.lm", way, size) for way in _WAYS)
    return row("token_logps / plain, peak memory", [(ours, plain)], "GB", most=MOST_MEMORY)


def peak_memory(way: str, quick: bool) -> float:
    """Gigabytes of resident memory that one forward and backward pass takes at most beyond the loaded model."""
    (model, _), batch = _model(), _batch(quick)
    model.train()
    return peak_of(lambda: _step(model, batch, way))


def _sampling_row(quick: bool, pairs: int) -> dict[str, Any]:
    model, tokenizer = _model()
    count, n, longest = (8, 2, 16) if quick else (64, 4, 64)
    prompts = [problem.prompt for problem in arithmetic().problems(count, 0)]

    def ours() -> float:
        started = time.perf_counter()
        answers = sample(model, tokenizer, prompts, n=n, max_new_tokens=longest, generator=0)
        return int(answers.response_mask.sum()) / (time.perf_counter() - started)

    def generate() -> float:
        started = time.perf_counter()
        tokens = _generated(model, tokenizer, prompts, n, longest)
        return tokens / (time.perf_counter() - started)

    found = paired(ours, generate, pairs)
    return row("sample / transformers.generate, tokens a second", found, "tokens/s", least=LEAST_SPEEDUP)


@torch.no_grad()
def _generated(model: Any, tokenizer: Any, prompts: list[str], n: int, longest: int) -> int:
    """Samples with ``transformers.generate``; returns how many tokens were spoken, stops included."""
    torch.manual_seed(0)
    rows = [prompt_ids(tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    model.eval()
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_return_sequences=n,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=longest,
        pad_token_id=pad,
    )
    ended = torch.isin(out[:, width:], torch.tensor(sorted(stop_tokens(model, tokenizer))))
    # A row's tokens are those up to its first stop token.
    spoken = (ended.int().cumsum(1) - ended.int()) == 0
    return int(spoken.sum())


if __name__ == "__main__":
    sys.stdout.write(json.dumps(peak_memory(sys.argv[1], sys.argv[2] == "quick")))
