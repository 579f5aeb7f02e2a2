"""A small pool of prompts on which reinforcement learning takes a second: the embedded history, and the claim's data.

A prompt is a vector of 24 numbers, its answer one of 8 classes of a hidden linear map. The policy is linear too. Of 400
prompts, 120 are mostly solved by the base policy already, 160 are not yet, and 120 have a wrong reference answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from thrifty.core.loop import Shuffled
from thrifty.core.seeding import derive_seed, generator
from thrifty.select.history import AccuracyHistory
from thrifty.select.policy import Examples, Policy, reinforce

FEATURES, ANSWERS = 24, 8
PROMPTS = 400
EPOCHS, STEPS_PER_EPOCH, BATCH = 20, 8, 48  # 384 of the 400 prompts in an epoch: 4% are missing, as in the paper
_FORM_CUT = 0.52  # the base policy has the right form for the three tenths of inputs beyond it


class Mix(NamedTuple):
    """How many prompts of each kind a pool has."""

    trivial: int = 120
    learnable: int = 160
    mislabelled: int = 120


def drawn_mix(seed: int) -> Mix:
    """A mix of 400 prompts drawn at random: 60 to 160 trivial and as many mislabelled ones, the rest learnable."""
    trivial, mislabelled = torch.randint(60, 161, (2,), generator=generator(seed, "mix")).tolist()
    return Mix(trivial, PROMPTS - trivial - mislabelled, mislabelled)


@dataclass(frozen=True, eq=False)
class Pool:
    """Prompts to learn from, a base policy, and clean examples to choose settings and to test on.

    Parameters
    ----------
    train
        Trivial, learnable and mislabelled prompts, in this order.
    kinds
        Of each training prompt: ``trivial``, ``learnable`` or ``mislabelled``.
    base
        The policy before reinforcement learning.
    validation, test
        With right reference answers, drawn like all inputs.
    """

    train: Examples
    kinds: tuple[str, ...]
    base: Policy
    validation: Examples
    test: Examples

    @property
    def ids(self) -> list[str]:
        """An id for each training prompt."""
        return [f"{kind}-{row}" for row, kind in enumerate(self.kinds)]


def elicitation_pool(seed: int, mix: Mix | None = None) -> Pool:
    """A pool whose base policy knows nearly all answers, but gives most of them in a form that is not checked.

    Trivial prompts are those for which it mostly has the right form already.

    Parameters
    ----------
    seed
        Of everything in it.
    mix
        How many of each kind.
    """
    mix = mix or Mix()
    draw = generator(seed, "elicitation pool")
    hidden, direction = _normal(draw, FEATURES, ANSWERS), _normal(draw, FEATURES)
    direction = direction / direction.norm()
    known = Examples(*_labelled(_normal(draw, 3000, FEATURES), hidden))
    right_form = (known.x @ direction > _FORM_CUT) ^ (torch.rand(len(known.x), generator=draw) < 0.1)
    base = _fitted(known, (~right_form).long(), forms=2)
    many = _normal(draw, 4000, FEATURES)
    solved = many @ direction > _FORM_CUT
    x = torch.cat([many[solved][: mix.trivial], many[~solved][: mix.learnable + mix.mislabelled]])
    return _pool(x, hidden, base, mix, draw)


def learning_pool(seed: int, mix: Mix | None = None) -> Pool:
    """A pool whose base policy has seen the answers of its trivial prompts only, and must learn the map from the rest.

    Parameters
    ----------
    seed
        Of everything in it.
    mix
        How many of each kind.
    """
    mix = mix or Mix()
    draw = generator(seed, "learning pool")
    hidden = _normal(draw, FEATURES, ANSWERS)
    x = _normal(draw, sum(mix), FEATURES)
    known = Examples(*_labelled(x[: mix.trivial], hidden))
    return _pool(x, hidden, _fitted(known, torch.zeros(mix.trivial, dtype=torch.long), forms=1), mix, draw)


def record_history(pool: Pool, seed: int, *, learning_rate: float = 0.3, kl: float = 0.1) -> AccuracyHistory:
    """The history of a run on the full pool: 20 epochs of 8 steps on 48 prompts, 8 samples each.

    Parameters
    ----------
    pool
        Where the prompts are.
    seed
        Of the order and the samples.
    learning_rate, kl
        As for :func:`reinforce`.
    """
    ids = pool.ids
    history = AccuracyHistory(ids)
    steps = EPOCHS * STEPS_PER_EPOCH
    batches = Shuffled(len(ids), BATCH, derive_seed(seed, "history"), last="drop")
    draw = generator(seed, "history")
    policy = pool.base
    for step in range(steps):
        rows = batches(step)
        policy, success = reinforce(policy, pool.base, pool.train.rows(rows), draw, learning_rate=learning_rate, kl=kl)
        history.update([ids[row] for row in rows.tolist()], success, step // STEPS_PER_EPOCH)
    return history


def trained(
    pool: Pool, rows: Int[Tensor, " M"], seed: int, *, updates: int, batch_size: int, learning_rate: float, kl: float
) -> Policy:
    """The base policy after so many updates on some of the pool's prompts.

    Parameters
    ----------
    pool
        Where the prompts are.
    rows
        Which of them are trained on.
    seed
        Of the order and the samples.
    updates, batch_size
        How many updates, of how many prompts each.
    learning_rate, kl
        As for :func:`reinforce`.
    """
    batches = Shuffled(len(rows), batch_size, derive_seed(seed, "train"), last="fill")
    draw = generator(seed, "train")
    policy = pool.base
    for step in range(updates):
        batch = pool.train.rows(rows[batches(step)])
        policy, _ = reinforce(policy, pool.base, batch, draw, learning_rate=learning_rate, kl=kl)
    return policy


def _normal(draw: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=draw)


def _labelled(x: Float[Tensor, "N D"], hidden: Float[Tensor, "D A"]) -> tuple[Tensor, Tensor]:
    return x, (x @ hidden).argmax(1)


def _pool(x: Float[Tensor, "N D"], hidden: Float[Tensor, "D A"], base: Policy, mix: Mix, draw: torch.Generator) -> Pool:
    y = _labelled(x, hidden)[1]
    shift = torch.randint(1, ANSWERS, (mix.mislabelled,), generator=draw)
    y[-mix.mislabelled :] = (y[-mix.mislabelled :] + shift) % ANSWERS
    kinds = tuple(kind for kind, count in zip(mix._fields, mix, strict=True) for _ in range(count))
    validation, test = (Examples(*_labelled(_normal(draw, size, FEATURES), hidden)) for size in (1000, 2000))
    return Pool(Examples(x, y), kinds, base, validation, test)


def _fitted(known: Examples, form: Int[Tensor, " N"], *, forms: int, decay: float = 1e-3) -> Policy:
    """The policy that supervised learning with weight decay makes of known answers and forms."""
    policy = Policy(torch.zeros(FEATURES, ANSWERS), torch.zeros(FEATURES + 1, forms))
    heads = [head.requires_grad_() for head in policy]
    optimizer = torch.optim.LBFGS(heads, max_iter=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        answers, shapes = policy.log_probabilities(known.x)
        loss = functional.nll_loss(answers, known.y) + functional.nll_loss(shapes, form)
        loss = loss + decay * sum((head.square().sum() for head in heads), torch.zeros(()))
        loss.backward()
        return loss

    optimizer.step(closure)
    return Policy(*(head.detach() for head in heads))
