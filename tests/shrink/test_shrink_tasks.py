from __future__ import annotations

import dataclasses
from typing import ClassVar

import pytest
import torch

from thrifty.claims import dsnot, flap
from thrifty.claims.compare import arms
from thrifty.claims.harness import measure
from thrifty.data.tasks import Problem
from thrifty.shrink.baselines import Magnitude, Wanda
from thrifty.shrink.measure import accuracy, latency, perplexity, size
from thrifty.shrink.tasks import TASKS, evaluate, scores, shrunk, small


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    found = small(0, True, tmp_path_factory.mktemp("problem"), sparsity=0.4)
    return dataclasses.replace(found, test=found.test[:12])


def test_the_small_decoder_has_learnt_something(problem):
    # Bytes drawn at random have a perplexity of 256, by their frequency about 25.
    assert perplexity(problem.model, problem.test) < 18
    assert problem.windows.shape == (32, 64)
    assert not torch.equal(problem.valid[0], problem.test[0])


@pytest.mark.parametrize("claim", [flap.CLAIM, dsnot.CLAIM])
def test_every_condition_can_be_judged_on_what_the_arms_return(claim, problem, tmp_path):
    found = measure(lambda *_: problem, claim.arms, [0], tmp_path, quick=True)
    assert next(iter(found.values)).startswith(claim.paper_id)
    for condition in claim.conditions:
        for arm in (condition.left, condition.right):
            assert condition.metric in found.values[arm]
    for name, arm in found.values.items():
        assert {name.lstrip("-") for name in claim.metrics} <= set(arm)
        expected = 0.0 if name == "dense" else 0.4
        assert arm["removed"][0] == pytest.approx(expected, abs=0.03)
        assert arm["perplexity"][0] >= found.values["dense"]["perplexity"][0] * 0.98


def test_the_comparison_runs_the_papers_and_the_baselines():
    names = set(arms("shrink", TASKS["small-decoder"]))
    assert {"flap", "dsnot", "dense", "magnitude", "wanda", "sparsegpt", "wanda-sp", "magnitude-sp"} <= names


def test_of_several_settings_the_one_counts_that_is_best_on_text_held_out_for_choosing(problem):
    methods = (Magnitude(), Wanda())
    models = [shrunk(method, problem) for method in methods]
    on_valid = [perplexity(model, problem.valid) for model in models]
    # Other text than that of the scores, and other results.
    assert on_valid[0] != on_valid[1]
    best = models[on_valid.index(min(on_valid))]
    assert evaluate(methods, problem)["perplexity"] == pytest.approx(perplexity(best, problem.test))
    assert evaluate(methods[0], problem)["perplexity"] == pytest.approx(perplexity(models[0], problem.test))


def test_perplexity_is_that_of_the_models_own_loss(llama, windows):
    loss = llama(windows, labels=windows).loss.detach()
    assert perplexity(llama, windows) == pytest.approx(float(loss.exp()), rel=1e-4)


def test_size_counts_weights_and_operations(llama, problem):
    found = size(llama, context=10)
    weights = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48)
    assert found["parameters"] == pytest.approx(sum(p.numel() for p in llama.parameters()) / 1e6)
    assert found["gflops"] == pytest.approx(2 * (weights + 97 * 32 + 2 * 10 * 2 * 32) / 1e9)
    assert found["sparsity"] == 0
    assert latency(llama, 8, 1) > 0
    assert scores(problem, problem.model, 0.0)["removed"] == 0


def test_problems_are_asked_and_judged(llama, tokenizer):
    class Judge:
        answers: ClassVar[dict[str, str]] = {}

        def score(self, problem, completion):
            self.answers[problem.prompt] = completion
            return float(problem.prompt == "w1 w2")

    asked = [Problem("w1 w2", "", "0"), Problem("w3", "", "1")]
    assert accuracy(llama, tokenizer, Judge(), asked) == 0.5
    # The answers are the model's likeliest words.
    for problem in asked:
        ids = tokenizer(problem.prompt, return_tensors="pt").input_ids
        likeliest = llama(ids).logits[0, -1].argmax()
        assert Judge.answers[problem.prompt].split()[0] == tokenizer.decode(likeliest)
