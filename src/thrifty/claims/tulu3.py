"""Each stage of TULU 3 improves on the one before, and length-normalised DPO does not reward length."""

from __future__ import annotations

from thrifty.align.settings.padded_sums import arm, preference_arm, prepare, rlvr_arm, supervised_arm
from thrifty.claims.harness import Claim, Condition

CLAIM = Claim(
    paper_id="tulu3",
    says=(
        "Reinforcement learning with verifiable rewards improves on the preference-tuned model, and that on the "
        "supervised one; length-normalised DPO orders held-out pairs as well as DPO while answers grow less in length; "
        "the penalty for answers without an end makes them end"
    ),
    setting=(
        "A two-layer decoder trained here on sums of numbers up to 39, three in ten wrong, with 0 to 4 marks behind "
        "them; pairs of its own right and wrong answers to 300 sums, the right one longer in 80%; PPO with a value "
        "model from a reward model of these pairs, 30 rollouts of 96 sums, answers of at most 6 tokens; DPO at beta "
        "0.1 and dpo-norm at 5 for as many steps; every stage of every arm at the best of three learning rates (five "
        "for preferences, whose losses are on sums and on means) on 60 development sums; 100 unseen sums with 16 "
        "answers each at temperature 1"
    ),
    prepare=prepare,
    arms={
        "tulu3": arm(rlvr_arm, -10.0),
        "without penalty": arm(rlvr_arm, None),
        "dpo-norm": arm(preference_arm, "dpo-norm"),
        "dpo": arm(preference_arm, "dpo"),
        "supervised": arm(supervised_arm),
    },
    metrics=("accuracy", "-length", "ended", "preference accuracy"),
    conditions=(
        Condition("accuracy", "tulu3", "dpo-norm"),
        Condition("accuracy", "dpo-norm", "supervised"),
        Condition("length", "dpo-norm", "dpo", less=True),
        Condition("preference accuracy", "dpo-norm", "dpo", margin=-0.05),
        Condition("ended", "tulu3", "without penalty"),
    ),
    seeds=6,
    tried=(
        "Sums of numbers up to 19, of which 240 were known: the decoder learns these by heart and is right on one "
        "unseen sum in five after the supervised and preference stages, which can't be told apart. Three seeds could "
        "not tell three of the pairs apart: their number was doubled. DPO had three rates, of which the smallest was "
        "chosen and made it worse than no tuning: smaller ones were added, for both."
    ),
)
