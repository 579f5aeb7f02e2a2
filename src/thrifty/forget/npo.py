"""Negative preference optimization: answers are pushed down, and the push fades as the model forgets them."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.atomic import write_json
from thrifty.core.errors import InputError
from thrifty.core.loop import Loss
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.core.seeding import generator, seed_everything
from thrifty.forget.base import device_of, trainable
from thrifty.forget.evaluate import agreement
from thrifty.forget.preference import Direction, dpo_loss, kto_loss, retain_kl
from thrifty.forget.text_training import Answers, Schedule, Step, answers, text_sets, train_texts, width, with_reference
from thrifty.forget.texts import compared, positions
from thrifty.lm.backbone import check_causal, evaluating

_log = logging.getLogger("thrifty")
_BETAS = (1.0, 0.3, 0.1, 0.03, 0.01)
_RATE, _WIDTH = 1e-5, 4096  # the paper's learning rate, and the width of the model that it is for
_SAMPLE = 512  # examples on which predictions are compared
Said = Mapping[str, Answers]


@register("npo")
@dataclass(frozen=True)
class NPO:
    r"""Trains a causal language model until it has forgotten answers, without the collapse of gradient ascent.

    .. math::
        L_{NPO} = \frac2\beta \operatorname{mean} \log\!\left(1 + \left(
        \frac{\pi_\theta(y|x)}{\pi_{ref}(y|x)}\right)^{\!\beta}\right), \qquad
        \nabla L_{NPO} = \operatorname{mean} W \nabla \log \pi_\theta(y|x), \quad
        W = \frac{2 \pi_\theta^\beta}{\pi_\theta^\beta + \pi_{ref}^\beta}

    The reference is the model before unlearning. What it says of the forget set is computed once, so that it is not
    kept for that; the KL term needs all of it, and takes the model given.

    The paper's methods are pairs of ``kind`` and ``retain``: GA is ``ga``, GradDiff (GA+RT) ``ga`` with ``grad-diff``,
    GA+KL ``ga`` with ``kl``, and NPO, NPO+RT, NPO+KL the same with ``npo``. Of each step's retain examples there are
    as many as of the forget set; they are drawn in shuffled passes, where the authors' code draws each independently.

    Parameters
    ----------
    kind
        What becomes of the forget set: ``npo``; ``ga``, gradient ascent on the mean over tokens; ``dpo``, a refusal is
        preferred to the answer; ``idk``, the refusal is learnt; ``kto`` and ``kto-log``, the authors' KTO forms. The
        last four need refusals.
    retain
        What holds the rest: ``none``; ``grad-diff`` (RT), cross-entropy on the retain set; ``kl``, staying near the
        reference's predictions there.
    beta
        Inverse temperature: near 0 it is gradient ascent, larger stops sooner. Meant for sums over an answer's tokens.
    forget_weight, retain_weight
        Of the two terms.
    kl_direction
        ``ref||policy`` (the authors' code) or ``policy||ref``.
    kl_positions
        After which tokens predictions are compared: those before an ``answer`` token, all of the ``text``, or ``all``
        of the batch, padding included, as the authors' code does.
    learning_rate
        Of AdamW at its highest: it rises for ``warmup_epochs`` and falls linearly to 0. Not given, it is the paper's
        1e-5 for models as wide as its own (4096) and more for narrower ones, in inverse proportion.
    weight_decay
        Of AdamW, decoupled.
    epochs, warmup_epochs
        Passes over the forget set, in all and while the learning rate rises.
    batch_size, micro_batch_size
        Examples of the forget set in an optimizer step, and in a forward pass.
    auto
        Choose beta from 1, 0.3, 0.1, 0.03 and 0.01 instead. Each is tried with a fifth of the retain set (at least one
        example) held out; chosen is the one for which the share of token predictions that stay as they were is
        largest on the held-out part less that on the forget set; of equals, the largest. It takes six trainings, and
        forgets more thoroughly than a retrained model, which still knows how such answers are worded.

    Raises
    ------
    InputError
        When a setting is out of range.

    References
    ----------
    Zhang, Lin, Bai and Mei, Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning,
    COLM 2024, arXiv 2404.05868.
    """

    kind: Literal["npo", "ga", "dpo", "idk", "kto", "kto-log"] = "npo"
    retain: Literal["none", "grad-diff", "kl"] = "none"
    beta: float = 0.1
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    kl_direction: Direction = "ref||policy"
    kl_positions: Literal["answer", "text", "all"] = "answer"
    learning_rate: float | None = None
    weight_decay: float = 0.01
    epochs: float = 10.0
    warmup_epochs: float = 1.0
    batch_size: int = 32
    micro_batch_size: int = 32
    auto: bool = False

    needs_labels: ClassVar[bool] = True
    embedded: ClassVar[str] = "authors"

    def __post_init__(self) -> None:
        for name, known in (("kind", tuple(_KINDS)), ("retain", ("none", "grad-diff", "kl"))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name in ("beta", "epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} must be above 0, not {value:g}")
        for name in ("forget_weight", "retain_weight", "weight_decay", "warmup_epochs"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if min(self.batch_size, self.micro_batch_size) < 1:
            raise InputError(f"a batch must be at least 1, not {min(self.batch_size, self.micro_batch_size)}")
        if self.auto and not _KINDS[self.kind].compares:
            raise InputError(f"kind {self.kind} has no beta to choose: leave auto out")

    @property
    def needs(self) -> tuple[str, ...]:
        """The sets that these settings look at."""
        wanted = {
            "forget_set",
            *_KINDS[self.kind].sets,
            *(("retain_set",) if self.auto or self.retain != "none" else ()),
        }
        return tuple(name for name in ("forget_set", "retain_set", "refusal_set") if name in wanted)

    def forget(
        self,
        model: nn.Module,
        forget_set: Any,
        retain_set: Any = None,
        refusal_set: Any = None,
        *,
        run: Run,
        inplace: bool = False,
    ) -> nn.Module:
        """Trains the answers away.

        Parameters
        ----------
        model
            A causal language model, on the run's device.
        forget_set
            Token sequences whose response tokens are the answers to forget.
        retain_set
            Sequences to keep, where :attr:`needs` says so.
        refusal_set
            The forget set's prompts with a refusal as the answer, row for row, where :attr:`needs` says so.
        run
            For the seed, metrics and checkpoints: a training that was killed goes on.
        inplace
            Change ``model`` itself instead of a copy, so that there is one model in memory (with the KL term, two).

        Returns
        -------
        nn.Module
            A model of the same class, in evaluation mode.

        Raises
        ------
        InputError
            When a set is missing, empty or no texts, or the model is no causal language model.
        NonFiniteError
            When the loss leaves the finite numbers; gradient ascent can.
        """
        check_causal(model)
        if device_of(model).type != run.device.type:
            raise InputError(f"the model is on {device_of(model)}, the run on {run.device}: move the model there first")
        given = {"forget_set": forget_set, "retain_set": retain_set, "refusal_set": refusal_set}
        sets = text_sets({name: given[name] for name in self.needs})
        chosen = self._choose(model, sets, run) if self.auto else self
        return chosen._train(model, sets, run, inplace=inplace)

    def _train(
        self, model: nn.Module, sets: Step, run: Run, *, inplace: bool = False, save_every: int | None = 50
    ) -> nn.Module:
        reference = copy.deepcopy(model) if inplace and self.retain == "kl" else model
        trained = model if inplace else copy.deepcopy(model)
        trainable(trained)
        used = {name: rows for name, rows in sets.items() if name != "retain_set" or self.retain != "none"}
        if _KINDS[self.kind].compares:
            used |= {name: with_reference(trained, used[name]) for name in _KINDS[self.kind].sets}
        rate, sizes = self.learning_rate or _RATE * _WIDTH / width(trained), (self.batch_size, self.micro_batch_size)
        schedule = Schedule(rate, self.weight_decay, self.epochs, self.warmup_epochs, *sizes)
        objective = partial(self._loss, reference=reference)
        return train_texts(trained, objective, used, run, schedule, apart=("retain_set",), save_every=save_every)

    def _loss(self, model: nn.Module, step: Step, reference: nn.Module) -> Loss:
        kind = _KINDS[self.kind]
        asked = {*kind.sets, *(("retain_set",) if self.retain == "grad-diff" else ())}
        said = answers(model, {name: rows for name, rows in step.items() if name in asked})
        forget = kind.loss(said, self.beta)
        total, measured = self.forget_weight * forget, {"forget_loss": forget.detach()}
        if self.retain != "none":
            kept = said["retain_set"].nll if self.retain == "grad-diff" else self._kl(model, step, reference)
            total, measured["retain_loss"] = total + self.retain_weight * kept, kept.detach()
        return Loss(total, measured)

    def _kl(self, model: nn.Module, step: Step, reference: nn.Module) -> Tensor:
        rows, distance = step["retain_set"], partial(retain_kl, direction=self.kl_direction)
        with evaluating(reference):
            return compared(model, reference, rows, positions(rows, self.kl_positions), distance)

    def _choose(self, model: nn.Module, sets: Step, run: Run) -> NPO:
        file, retain = run.directory / "betas.json", sets["retain_set"]
        order = torch.randperm(len(retain), generator=generator(run.seed, "held out"))
        held_out, kept = order.tensor_split([max(1, len(order) // 5)])
        if not len(kept):
            raise InputError("auto holds a part of the retain set out, which has 1 example: give more, or beta")
        samples = [rows.select(slice(0, _SAMPLE)).trim() for rows in (retain.select(held_out), sets["forget_set"])]
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        for beta in _BETAS:
            if str(beta) not in found:
                tried = replace(self, beta=beta, auto=False)
                part = {**sets, "retain_set": retain.select(kept)}
                changed = tried._train(model, part, run.stage(f"beta-{beta:g}"), save_every=None)
                stay, gone = (agreement(model, changed, sample) for sample in samples)
                found[str(beta)] = stay - gone
                write_json(file, found)
        best = max(_BETAS, key=lambda beta: found[str(beta)])
        _log.info("beta %g was chosen", best)
        seed_everything(run.seed)  # a run that goes on finds stages done that drew from the global generators
        return replace(self, beta=best, auto=False)


def npo_loss(
    logps: Float[Tensor, " row"], reference_logps: Float[Tensor, " row"], *, beta: float = 0.1
) -> Float[Tensor, ""]:
    r"""The paper's loss, :math:`-\frac2\beta \operatorname{mean} \log \sigma(-\beta \log [\pi_\theta / \pi_{ref}])`.

    At least 0, where gradient ascent has no bound. For beta towards 0 it is :math:`\frac2\beta \log 2` and the mean of
    ``logps - reference_logps``, which is gradient ascent.

    Parameters
    ----------
    logps
        Log-probability of each answer under the model: the sum over its tokens.
    reference_logps
        The same before unlearning.
    beta
        Inverse temperature, above 0.
    """
    return -2 / beta * functional.logsigmoid(-beta * (logps - reference_logps)).mean()


def npo_weight(
    logps: Float[Tensor, " row"], reference_logps: Float[Tensor, " row"], *, beta: float = 0.1
) -> Float[Tensor, " row"]:
    r"""How hard NPO pushes each answer, :math:`W = 2 \sigma(\beta [\log \pi_\theta - \log \pi_{ref}])`.

    Its gradient is the mean of W times the gradient of ``logps``: 1 at the start, towards 0 for what is forgotten,
    where gradient ascent always pushes with 1.

    Parameters
    ----------
    logps, reference_logps, beta
        As for :func:`npo_loss`.
    """
    return 2 * torch.sigmoid(beta * (logps - reference_logps))


@dataclass(frozen=True)
class _Kind:
    """The sets whose answers a kind looks at, what it minimises, and whether it compares with the reference."""

    sets: tuple[str, ...]
    loss: Callable[[Said, float], Tensor]
    compares: bool = True


def _moved(answers: Answers) -> tuple[Tensor, Tensor]:
    return answers.total, answers.reference


def _contrast(said: Said) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *_moved(said["refusal_set"]), *_moved(said["forget_set"])


_BOTH = ("forget_set", "refusal_set")
_KINDS: Mapping[str, _Kind] = {
    "npo": _Kind(("forget_set",), lambda said, beta: npo_loss(*_moved(said["forget_set"]), beta=beta)),
    "ga": _Kind(("forget_set",), lambda said, _: -said["forget_set"].nll, compares=False),
    "dpo": _Kind(_BOTH, lambda said, beta: dpo_loss(*_contrast(said), beta=beta)),
    # The authors' code takes one mean over the tokens of refusals and retain set; here, as elsewhere, two are added.
    "idk": _Kind(("refusal_set",), lambda said, _: said["refusal_set"].nll, compares=False),
    "kto": _Kind(_BOTH, lambda said, beta: kto_loss(*_contrast(said), beta=beta)),
    "kto-log": _Kind(_BOTH, lambda said, beta: kto_loss(*_contrast(said), beta=beta, log=True)),
}
