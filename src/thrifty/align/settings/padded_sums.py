"""Sums with padding behind them, with a small decoder trained here: TULU 3's three stages in a minute.

A decoder of two layers learns sums from answers of which three in ten are wrong, with none to four marks behind each.
Its own right and wrong answers make preference pairs in which the right one is mostly the longer, by chance. Then the
sums themselves are rewarded. Training and sampling are the room's own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from thrifty.align.asking import Asker, Record, Sampling
from thrifty.align.base import Training
from thrifty.align.critic import RewardModelling, ValueModel
from thrifty.align.dpo import DPO
from thrifty.align.ppo import PPO
from thrifty.align.preference import Kind
from thrifty.align.reference import Reference
from thrifty.align.settings.base import best, budget, split, taught
from thrifty.align.sft import SFT
from thrifty.core.seeding import derive_seed, generator
from thrifty.core.threads import one_thread
from thrifty.lm.records import from_records
from thrifty.lm.sequences import Sequences
from thrifty.lm.small import character_tokenizer, decoder_for

MARK, LARGEST, MOST_MARKS, WRONG = "!", 39, 4, 0.3
LONGEST, LIMIT = 12, 6
"""Tokens of an answer, and of one that is rewarded: longer ones are cut off."""
LONGER = 0.8
RATES = (1e-4, 3e-4, 1e-3)
PREFERENCE_RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SUPERVISED_RATES = (1e-3, 2e-3, 4e-3)
"""Every stage picks one of its own by its accuracy on development sums."""
BETAS: Mapping[str, float] = {"dpo-norm": 5.0, "dpo": 0.1}


@dataclass(frozen=True, eq=False)
class Setting:
    """What all arms of one seed share.

    Parameters
    ----------
    tokenizer
        Of the decoders.
    supervised, preferred
        The decoders after the supervised stage, and after length-normalised DPO.
    value
        The reward model.
    pairs, held_out
        Preference pairs to train on (the better is mostly longer) and of other sums (as often shorter).
    train, development, unseen
        Sums.
    directory, seed, quick
        Of the measurement.
    """

    tokenizer: Any
    supervised: Any
    preferred: Any
    value: ValueModel
    pairs: Sequences
    held_out: Sequences
    train: Sequence[Record]
    development: Sequence[Record]
    unseen: Sequence[Record]
    directory: Path
    seed: int
    quick: bool


def right(completions: Sequence[str], answer: Sequence[str]) -> list[float]:
    """1 where the completion begins with the answer and no further digit, else 0."""
    said = [text[: len(text) - len(text.lstrip("0123456789"))] for text in completions]
    return [float(number == wanted) for number, wanted in zip(said, answer, strict=True)]


@one_thread()
def prepare(seed: int, quick: bool, directory: Path) -> Setting:
    """The supervised decoder, its answers as pairs, a reward model of them, and the decoder after dpo-norm."""
    draw = generator(seed, "sums")
    numbers = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1)]
    sums = [{"prompt": f"{a:02d}+{b:02d}=", "answer": str(a + b)} for a, b in numbers]
    development, unseen, known = split(sums, draw, 60, 100)
    tokenizer = character_tokenizer(f"0123456789+={MARK}")
    fresh = decoder_for(tokenizer)
    data = from_records([{**row, "completion": _noisy(row, draw)} for row in known], tokenizer)

    def learn(rate: float) -> Any:
        lessons = budget(rate, 2 if quick else 30, schedule="cosine", warmup_ratio=0.05)
        return taught(copy.deepcopy(fresh), SFT(), data, lessons, directory / f"supervised {rate:g}", seed)

    def solved(model: Any) -> float:
        return _share_right(model, tokenizer, development, seed)

    decoder = best(SUPERVISED_RATES[1:2] if quick else SUPERVISED_RATES, learn, solved)[1]
    asked = known[: 60 if quick else 300]
    pairs = from_records(_pairs(decoder, tokenizer, asked, LONGER, seed), tokenizer)
    held_out = from_records(_pairs(decoder, tokenizer, unseen, 0.5, seed), tokenizer)
    value = taught(ValueModel.of(decoder), RewardModelling(), pairs, _budget(3e-4, 4), directory / "reward model", seed)
    setting = Setting(
        tokenizer, decoder, decoder, value, pairs, held_out, known, development, unseen, directory, seed, quick
    )
    return replace(setting, preferred=chosen(setting, "dpo-norm"))


def _noisy(row: Record, draw: torch.Generator) -> str:
    """The sum or a wrong one, and marks."""
    chance, slip, marks = torch.rand(3, generator=draw).tolist()
    total = int(row["answer"])
    total = max(0, total + (-10, -2, -1, 1, 2, 10)[int(slip * 6)]) if chance < WRONG else total
    return f"{total}{MARK * int(marks * (MOST_MARKS + 1))}"


def _pairs(model: Any, tokenizer: Any, rows: Sequence[Record], longer: float, seed: int) -> list[dict[str, str]]:
    """Right answers against wrong ones of another length; the right one is the longer in the wanted share of pairs."""
    answers = Asker(model, tokenizer, right, Sampling(samples=16, max_new_tokens=LONGEST)).ask(rows, seed)
    texts, draw = answers.texts(tokenizer), generator(seed, "pairs", len(rows))
    found = []
    for number, row in enumerate(rows):
        mine = ((answers["group"] == number) & answers["finished"].bool()).nonzero()[:, 0].tolist()
        for _ in range(2):
            wanted = float(torch.rand((), generator=draw)) < longer
            fitting = [
                (texts[good], texts[bad])
                for good in mine
                for bad in mine
                if answers["reward"][good] > answers["reward"][bad]
                and len(texts[good]) != len(texts[bad])
                and (len(texts[good]) > len(texts[bad])) == wanted
            ]
            if fitting:
                won, lost = fitting[int(torch.randint(len(fitting), (), generator=draw))]
                found.append({"prompt": row["prompt"], "chosen": won, "rejected": lost})
    return found


def _budget(rate: float, epochs: float) -> Training:
    return budget(rate, epochs, schedule="linear", warmup_ratio=0.1)


def answers_to(model: Any, tokenizer: Any, rows: Sequence[Record], seed: int, longest: int = LONGEST) -> Sequences:
    """Sixteen answers to each sum at temperature 1, with ``reward`` and ``finished``."""
    sampling = Sampling(samples=16, max_new_tokens=longest)
    return Asker(model, tokenizer, right, sampling).ask(rows, derive_seed(seed, "answers", len(rows)))


def _share_right(model: Any, tokenizer: Any, rows: Sequence[Record], seed: int) -> float:
    return float(answers_to(model, tokenizer, rows, seed)["reward"].mean())


def _best(setting: Setting, learn: Any, given: Sequence[float]) -> Any:
    """The decoder of the learning rate that is best on development sums."""

    def found(model: Any) -> float:
        return _share_right(model, setting.tokenizer, setting.development, setting.seed)

    return best(given[:1] if setting.quick else given, learn, found)[1]


def chosen(setting: Setting, kind: Kind) -> Any:
    """The supervised decoder after a preference loss, at its best learning rate."""

    def learn(rate: float) -> Any:
        model, objective = copy.deepcopy(setting.supervised), DPO(kind=kind, beta=BETAS[kind])
        where = setting.directory / f"{kind} {rate:g}"
        return taught(model, objective, setting.pairs, _budget(rate, 8), where, setting.seed)

    return _best(setting, learn, PREFERENCE_RATES)


def reinforced(setting: Setting, penalty: float | None) -> Any:
    """The decoder after dpo-norm, rewarded for right sums, with a score for answers that do not end."""
    objective = PPO(value_start=setting.value, non_stop_penalty=penalty)

    def learn(rate: float) -> Any:
        model, rollouts = copy.deepcopy(setting.preferred), 2 if setting.quick else 30
        sampling = replace(PPO.sampling, prompts_per_rollout=96, max_new_tokens=LIMIT)
        training = Training(learning_rate=rate, micro_batch_size=96, epochs=rollouts * 96 / len(setting.train))
        return taught(
            model, objective, setting.train, training, setting.directory / f"rlvr {penalty} {rate:g}", setting.seed,
            tokenizer=setting.tokenizer, reward=right, sampling=sampling,
        )  # fmt: skip

    return _best(setting, learn, RATES)


def scores(model: Any, setting: Setting, kind: Kind = "dpo-norm") -> Mapping[str, float]:
    """Accuracy and length on unseen sums, how many answers end within the limit, and what pairs are ordered rightly."""
    free, limited = (
        answers_to(model, setting.tokenizer, setting.unseen, setting.seed, longest) for longest in (LONGEST, LIMIT)
    )
    data = setting.held_out.with_columns(reference_logps=Reference(setting.supervised).logps(setting.held_out))
    found = DPO(kind=kind, beta=BETAS[kind]).loss(model, data, data)
    return {
        "accuracy": float(free["reward"].mean()),
        "length": float(free.response_lengths.float().mean()),
        "ended": float(limited["finished"].float().mean()),
        "preference accuracy": float(found.metrics["accuracy"]),
    }


def supervised_arm(setting: Setting) -> Mapping[str, float]:
    """The decoder before preference tuning, which is what preferences are measured against."""
    return {name: value for name, value in scores(setting.supervised, setting).items() if name != "preference accuracy"}


def preference_arm(kind: Kind, setting: Setting) -> Mapping[str, float]:
    """After a preference loss."""
    return scores(setting.preferred if kind == "dpo-norm" else chosen(setting, kind), setting, kind)


def rlvr_arm(penalty: float | None, setting: Setting) -> Mapping[str, float]:
    """After all three stages."""
    return scores(reinforced(setting, penalty), setting)


def arm(work: Any, *given: Any) -> Any:
    """An arm on one thread."""
    return one_thread()(partial(work, *given))
