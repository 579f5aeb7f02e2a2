"""Short reviews by a small decoder trained here, and a lexicon that scores them: open-ended text in seconds.

Sums have one right answer, which the first policy's best of eight often is. A review can always be better: its score is
a sum over clauses, so that the best of a few falls short of what can be had, as with a reward model of real text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from thrifty.align.diversity import distinct_n, spoken
from thrifty.align.settings.base import budget, examples, taught
from thrifty.align.sft import SFT
from thrifty.core.seeding import derive_seed
from thrifty.core.threads import one_thread
from thrifty.lm.logps import token_logps
from thrifty.lm.sample import sample
from thrifty.lm.sequences import Sequences
from thrifty.lm.small import small_decoder

TOPICS = ("film", "book", "hotel", "phone", "play", "train", "meal", "coat", "course", "song", "garden", "lamp")
ASPECTS = ("start", "end", "sound", "look", "price", "size", "staff", "plot", "view", "feel", "taste", "speed")
POLARITY = {
    **dict.fromkeys(("good", "great", "lovely", "fine", "clever", "warm"), 1),
    **dict.fromkeys(("bad", "poor", "dull", "cold", "weak", "silly"), -1),
    **dict.fromkeys(("usual", "short", "long", "plain", "new", "old"), 0),
}
ADVERBS = ("very", "quite", "rather")
WORDS = ("<end>", ":", "the", "was", "not", "and", "but", *ADVERBS, *TOPICS, *ASPECTS, *POLARITY)
LONGEST = 30
"""Tokens of the longest review."""
CLAUSES = 4
"""As many good clauses as the best score takes."""
_ID = {word: number for number, word in enumerate(WORDS)}
_END = _ID["<end>"]
_CORPUS = 1500
SAMPLES = 50
"""Fresh reviews of each topic that a model is judged by."""


@dataclass(frozen=True)
class Reviews:
    """What all arms of one seed share.

    Parameters
    ----------
    base
        The decoder that has learnt to write reviews, good and bad ones; arms train copies of it.
    prompts
        Topics to train on, as token ids, each many times: no prompt is new, its reviews are.
    directory
        Where runs go.
    seed
        Of everything.
    quick
        Whether a quarter of the work will do.
    """

    base: PreTrainedModel
    prompts: list[list[int]]
    directory: Path
    seed: int
    quick: bool


def prompt(topic: str) -> list[int]:
    """``the film :`` as token ids."""
    return [_ID["the"], _ID[topic], _ID[":"]]


def polarity(completion_ids: Sequence[Sequence[int]]) -> list[float]:
    """The score of reviews in [-1, 1]: good words minus bad ones, turned round after ``not``, over four."""
    found = []
    for said in completion_ids:
        words = [WORDS[token] for token in said]
        signs = (
            POLARITY.get(word, 0) * (-1 if before == "not" else 1)
            for before, word in zip(["", *words], words, strict=False)
        )
        found.append(max(-1.0, min(1.0, sum(signs) / CLAUSES)))
    return found


@one_thread()
def prepare(seed: int, quick: bool, directory: Path) -> Reviews:
    """The decoder, trained on reviews whose words are drawn without regard to their polarity."""
    draw = np.random.default_rng(derive_seed(seed, "reviews"))
    corpus = examples([(prompt(str(draw.choice(TOPICS))), _review(draw)) for _ in range(_CORPUS)], _END)
    base = small_decoder(len(WORDS), _END)
    taught(base, SFT(), corpus, budget(3e-3, 2 if quick else 6), directory / "base", seed)
    return Reviews(base, [prompt(topic) for topic in TOPICS] * 32, directory, seed, quick)


def _review(draw: np.random.Generator) -> list[int]:
    words: list[str] = []
    for number in range(int(draw.integers(2, CLAUSES + 1))):
        words += [str(draw.choice(["and", "but"]))] if number else []
        words += ["the", str(draw.choice(ASPECTS)), "was"]
        words += [str(draw.choice(ADVERBS))] if draw.random() < 0.4 else []
        words += ["not"] if draw.random() < 0.2 else []
        words.append(str(draw.choice(list(POLARITY))))
    return [_ID[word] for word in words] + [_END]


def written(model: PreTrainedModel, setting: Reviews, part: str) -> Sequences:
    """Fresh reviews at temperature 1."""
    return sample(
        model,
        None,
        [prompt(topic) for topic in TOPICS],
        n=SAMPLES,
        max_new_tokens=LONGEST,
        stop_ids=[_END],
        generator=derive_seed(setting.seed, part),
    )


def scores(model: PreTrainedModel, setting: Reviews, part: str) -> dict[str, float]:
    """Mean score of fresh reviews, their distinct-2, mean length, and perplexity under the first decoder."""
    reviews = written(model, setting, part)
    said = spoken(reviews)
    with torch.no_grad():
        logps = token_logps(setting.base, reviews)
    return {
        "reward": sum(polarity(said)) / len(said),
        "distinct-2": distinct_n(said),
        "tokens": sum(map(len, said)) / len(said),
        "perplexity": float((-logps.sum() / reviews.response_mask.sum()).exp()),
    }
