"""The claim of RAFT is well formed, its arms run, and its reviews are scored as they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from thrifty.align.settings import reviews
from thrifty.claims import raft
from thrifty.claims.harness import reproduce


def test_conditions_name_arms_and_metrics_that_exist() -> None:
    for condition in raft.CLAIM.conditions:
        assert condition.left in raft.CLAIM.arms
        assert condition.right in raft.CLAIM.arms
    assert next(iter(raft.CLAIM.arms)) == "raft"
    assert raft.CLAIM.seeds >= 3


def test_a_review_is_scored_by_its_words() -> None:
    def scored(text: str) -> float:
        return reviews.polarity([[reviews.WORDS.index(word) for word in text.split()]])[0]

    assert scored("the plot was good and the end was very lovely <end>") == 0.5
    assert scored("the plot was not good but the end was usual <end>") == -0.25
    assert scored("the plot was not quite bad <end>") == -0.25, "only the word that is denied is turned round"
    assert scored("bad bad bad bad bad") == -1.0
    assert scored("<end>") == 0.0


def test_reviews_of_the_corpus_are_neither_good_nor_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    draw = np.random.default_rng(0)
    corpus = [reviews._review(draw) for _ in range(500)]
    assert abs(sum(reviews.polarity(corpus)) / 500) < 0.05
    assert max(map(len, corpus)) <= reviews.LONGEST


def test_arms_get_the_answers_that_the_claim_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raft, "LEARNING_RATES", (1e-3,))
    monkeypatch.setattr(raft, "PROMPTS", 8)
    monkeypatch.setattr(raft, "EPOCHS", 1)
    monkeypatch.setattr(reviews, "_CORPUS", 64)
    monkeypatch.setattr(reviews, "SAMPLES", 2)
    monkeypatch.setattr(raft, "LONGEST", 6)
    monkeypatch.setattr(reviews, "LONGEST", 6)
    asked: dict[str, int] = {}
    names = iter(name for name in raft.CLAIM.arms if name != "untrained")
    plain, current = reviews.polarity, [""]

    def counting(completion_ids: list[list[int]]) -> list[float]:
        asked[current[0]] = asked.get(current[0], 0) + len(completion_ids)
        return plain(completion_ids)

    monkeypatch.setattr(raft, "polarity", counting)
    arms = dict(raft.CLAIM.arms)
    work = {
        name: (lambda problem, arm=arm: (current.__setitem__(0, next(names)), arm(problem))[1])
        if name != "untrained"
        else arm
        for name, arm in arms.items()
    }
    import dataclasses

    result = reproduce(dataclasses.replace(raft.CLAIM, arms=work), tmp_path, quick=True)
    # Quick runs do half the rounds; the one round can't be halved.
    assert asked == {"raft": 128, "raft K=4": 64, "own samples": 16, "one round": 256, "REINFORCE": 128}
    assert all(math.isfinite(arm["metrics"]["reward"]["mean"]) for arm in result["arms"].values())
    assert result["arms"]["untrained"]["metrics"]["perplexity"]["mean"] > 1
