"""How large, how fast and how good a language model is: what every method of the room is judged by."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from thrifty.data.tasks import Problem, Task, arithmetic
from thrifty.lm.backbone import evaluating, unwrapped
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences
from thrifty.shrink.decoder import decoder_layers, matrices

_TOKENS = 2048  # that are looked at in one pass
_NEW_TOKENS = 48


@torch.no_grad()
def perplexity(model: nn.Module, windows: Int[Tensor, "window token"]) -> float:
    """The exponential of the mean negative log-likelihood of all tokens but each window's first.

    Parameters
    ----------
    model
        A causal language model.
    windows
        Held-out text as token ids. Longer windows give lower values: compare at one length only.
    """
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with evaluating(model):
        for part in windows.split(max(1, _TOKENS // windows.shape[1])):
            mask = torch.ones_like(part, dtype=torch.bool)
            spoken = mask.clone()
            spoken[:, 0] = False
            total -= float(token_logps(model, Sequences(part, mask, spoken).to(device)).double().sum())
            count += int(spoken.sum())
    return float(torch.tensor(total / count).double().exp())


def accuracy(model: Any, tokenizer: Any, task: Task, problems: Sequence[Problem]) -> float:
    """The mean score of a model's most likely answers to problems that can be checked."""
    found = sample(model, tokenizer, [problem.prompt for problem in problems], max_new_tokens=_NEW_TOKENS, greedy=True)
    answers = [
        tokenizer.decode(ids[mask], skip_special_tokens=True)
        for ids, mask in zip(found.input_ids, found.response_mask, strict=True)
    ]
    scores = [task.score(problem, answer) for problem, answer in zip(problems, answers, strict=True)]
    return sum(scores) / len(scores)


def size(model: nn.Module, context: int = 1) -> dict[str, float]:
    """What a model holds and does.

    Parameters
    ----------
    model
        A causal language model.
    context
        Tokens that attention looks back on.

    Returns
    -------
    dict
        ``parameters`` in millions; ``sparsity``, the share of the weights of the decoder layers' linear maps that are
        0; ``gflops``, billions of operations of a forward pass for one token, as the matrices stand (zeros in them
        save nothing).
    """
    layers, weights = decoder_layers(model), matrices(model)
    held = sum(weight.numel() for weight in weights)
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    width = sum(part.groups * part.queries * part.head_size for layer in layers if (part := layer.attention))
    head = unwrapped(model).get_output_embeddings().weight.numel()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()) / 1e6,
        "sparsity": zeros / held,
        "gflops": 2 * (held + head + 2 * context * width) / 1e9,
    }


def removed(before: nn.Module, after: nn.Module) -> float:
    """The share of the weights of the decoder layers' linear maps that are gone or 0."""

    left = sum(int((weight != 0).sum()) for weight in matrices(after))
    return 1 - left / sum(weight.numel() for weight in matrices(before))


@torch.no_grad()
def latency(model: Any, tokens: int = 256, runs: int = 5) -> float:
    """Milliseconds of a forward pass over one sequence, the median of several."""
    device = next(model.parameters()).device
    ids = torch.ones(1, tokens, dtype=torch.long, device=device)
    found = []
    with evaluating(model):
        for _ in range(runs + 1):
            started = time.perf_counter()
            float(model(input_ids=ids, use_cache=False).logits[0, -1, 0])  # waits for the device
            found.append(time.perf_counter() - started)
    return 1e3 * statistics.median(found[1:])


def measured(
    model: Any, test: Int[Tensor, "window token"], tokenizer: Any = None, problems: int = 0
) -> dict[str, float]:
    """All of the above in one row.

    Parameters
    ----------
    model
        A causal language model.
    test
        Held-out text; its windows' length is the context of size and speed.
    tokenizer
        Needed where problems are asked.
    problems
        How many problems of arithmetic to ask; without any there is no ``accuracy``.
    """
    found = {"perplexity": perplexity(model, test)}
    if problems:
        task = arithmetic()
        found["accuracy"] = accuracy(model, tokenizer, task, task.problems(problems, 0, "test"))
    context = test.shape[1]
    return found | size(model, context) | {"milliseconds": latency(model, context)}
