"""Light-R1's curriculum beats shuffled data, NCA keeps right answers likely, and a band of prompts teaches more."""

from __future__ import annotations

from thrifty.align.settings.chain_school import measured, preferred, prepare, reinforced, supervised
from thrifty.claims.harness import Claim, Condition

CLAIM = Claim(
    paper_id="light-r1",
    says=(
        "A second supervised stage on the hardest questions improves on the first alone, and the two on the same data "
        "shuffled and on hard ones only; NCA on own mistakes keeps the chosen answers likely where DPO does not; "
        "reinforcement learning improves further, on prompts of middling difficulty more than on all"
    ),
    setting=(
        "A two-layer decoder trained here on chains of 1 to 6 operations with numbers up to 4 and their partial "
        "results, by a teacher that slips in 6% of steps; filters, pairs and rewards of the recipe; all supervised "
        "arms take 500 steps of 64, GRPO 100 updates on 64 prompts with 8 answers, and every stage is at the better "
        "of two learning rates on development chains; unseen chains of 5 and 6 operations with 16 answers each at "
        "temperature 1"
    ),
    prepare=prepare,
    arms={
        "curriculum": measured(lambda school: school.second),
        "shuffled": measured(supervised, "shuffled"),
        "hard only": measured(supervised, "hard only"),
        "first stage": measured(supervised, "first"),
        "curriculum + nca": measured(preferred, "nca"),
        "curriculum + dpo": measured(preferred, "dpo"),
        "curriculum + grpo": measured(reinforced, "band"),
        "curriculum + grpo on all": measured(reinforced, "all"),
    },
    metrics=("accuracy", "chosen log-probability", "length"),
    conditions=(
        Condition("accuracy", "curriculum", "first stage"),
        Condition("accuracy", "curriculum", "shuffled"),
        Condition("accuracy", "curriculum", "hard only"),
        Condition("chosen log-probability", "curriculum + nca", "curriculum + dpo"),
        Condition("accuracy", "curriculum + grpo", "curriculum"),
        Condition("accuracy", "curriculum + grpo", "curriculum + grpo on all"),
    ),
    tried=(
        "Numbers up to 9: all arms are right on one hard chain in seven, three seeds could not tell any two apart. "
        "GRPO from 16 prompts a rollout, at 1e-4 and 3e-4, makes this decoder worse or changes nothing: rewards by "
        "the toss of a coin ruin it as fast, so that what is learnt drowns in noise. From 64 prompts it learns, on a "
        "seed that is not among these."
    ),
)
