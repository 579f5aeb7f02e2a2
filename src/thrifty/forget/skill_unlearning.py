"""Skill unlearning: a language model's skill is switched off by hooks on its feed-forward layers, without training."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.forget.interventions import Intervention, attach, attached
from thrifty.forget.key_space import REFUSAL, KeySpaceDetector, Response, fit_key_space
from thrifty.forget.neuron_adjust import fit_neuron_adjust
from thrifty.forget.neurons import Probe, moments, sequences_of
from thrifty.forget.overlap import warn_of_overlap
from thrifty.lm.chat import Prompt
from thrifty.lm.sample import sample

_log = logging.getLogger("thrifty")
_HELD_OUT = 4  # one text of so many is kept for choosing the scale
_FEWEST = 8


@register("skill-unlearning")
@dataclass(frozen=True)
class SkillUnlearning:
    r"""Switches off a skill of a language model: Key Space Detection, or Neuron Adjust.

    **Key Space Detection** (``abstain``) refuses where the key vector v, the input of a feed-forward layer's last map,
    lies in the box of the skill's keys K:

    .. math::
        |v_j - \mu_j| \le \alpha k^* sd_j \quad \text{for all } j, \qquad
        k^* = \max_{ij} \frac{|K_{ij} - \mu_j|}{sd_j}

    **Neuron Adjust** moves the pre-activations x of the neurons whose mean on the skill lies farthest above that on
    other texts, :math:`\mu_f - \mu_r`, where they look like the skill's:

    .. math::
        x \leftarrow \mu_r - (x - \mu_f) \frac{\sigma_r}{\sigma_f}
        \quad \text{where } p_f(x) \ge p_r(x), \text{ with probability } \frac{p_f(x)}{p_f(x) + p_r(x)}

    Neither can be folded into the weights: one decides, the other draws, at each token. So the model that is returned
    has hooks (:mod:`thrifty.forget.interventions`), which ``detach`` takes off and ``save_unlearned`` saves.

    In place of the refusal that the released code puts over a whole answer, a model with the detector ends its turn at
    the flagged token, so that ``generate`` and :mod:`thrifty.lm` obey it; :func:`answers` puts the refusal into words.
    Where the released code differs otherwise, see ``released``.

    Parameters
    ----------
    abstain
        Key Space Detection; off, Neuron Adjust.
    scale
        :math:`\alpha` of the detector, larger recognises more. Not given, it is chosen on a held-out quarter of the
        forget set, for ``recall``. The authors take 0.06 to 2, by task and model.
    recall
        Share of the skill's texts that the detector is to recognise, where the scale is chosen.
    layer
        Whose keys the detector looks at; -1 is the last.
    response
        What follows a flagged token: ``end`` ends the turn; ``steer`` overwrites the key by that of refusals (the
        refusal set is needed); ``none`` changes nothing, and ``flags`` of the detector tells.
    percent
        Of all neurons, the share that Neuron Adjust moves, in percent. The authors take 0.5 for languages and 3 for
        mathematics and code.
    absolute
        Select neurons by the magnitude of the difference of means, not by how far the skill's lies above.
    released
        Neuron Adjust as the released code computes it: the variance where the deviation belongs, the skill's mean for
        its deviation, and one random number for a whole forward pass.
    probe
        Which tokens of the texts are looked at: those of the ``prompt`` or of the whole ``text``. The detector takes
        the last of them (of a text, the last before its end). Not given: ``prompt`` for the detector, since that is
        where an answer begins, and ``text`` for Neuron Adjust.
    probes
        Texts of each set that are looked at, at most.
    batch_size
        Texts read at once.
    draw
        Seed of the choice of texts and of Neuron Adjust's draws.

    Raises
    ------
    InputError
        For settings out of range; see :meth:`forget`.

    References
    ----------
    Effective Skill Unlearning through Intervention and Abstention, NAACL 2025, arXiv 2503.21730.
    """

    abstain: bool = True
    scale: float | None = None
    recall: float = 0.95
    layer: int = -1
    response: Response = "end"
    percent: float = 0.5
    absolute: bool = False
    released: bool = False
    probe: Probe | None = None
    probes: int = 200
    batch_size: int = 16
    draw: int = 0

    needs_labels: ClassVar[bool] = False
    embedded: ClassVar[str] = "skill"

    def __post_init__(self) -> None:
        if self.scale is not None and not self.scale > 0:
            raise InputError(f"scale must be above 0, not {self.scale:g}")
        if not 0 < self.recall <= 1:
            raise InputError(f"recall must be above 0 and at most 1, not {self.recall:g}")
        if not 0 < self.percent <= 100:
            raise InputError(f"percent must be above 0 and at most 100, not {self.percent:g}")
        for name in ("probes", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")

    @property
    def needs(self) -> tuple[str, ...]:
        """The sets that :meth:`forget` takes: the detector needs the skill's texts only."""
        if not self.abstain:
            return ("forget_set", "retain_set")
        return ("forget_set", "refusal_set") if self.response == "steer" else ("forget_set",)

    def forget(
        self,
        model: nn.Module,
        forget_set: Any,
        retain_set: Any = None,
        refusal_set: Any = None,
        *,
        inplace: bool = False,
    ) -> nn.Module:
        """Puts the intervention on a model.

        Parameters
        ----------
        model
            A causal language model of transformers, without an intervention.
        forget_set
            Texts of the skill: :class:`~thrifty.lm.sequences.Sequences` (``lm.from_records``).
        retain_set
            Texts of other skills, for Neuron Adjust.
        refusal_set
            Refusals, for ``response="steer"``.
        inplace
            Put the hooks on ``model`` itself instead of a copy; ``detach`` takes them off.

        Returns
        -------
        nn.Module
            A model of the same class, with unchanged weights.

        Raises
        ------
        InputError
            When a set is missing, empty or no texts, the forget set is too small, the model's feed-forward layers
            can't be found, or it has an intervention.
        """
        if attached(model) is not None:
            raise InputError("the model has an intervention already: take it off first (detach)")
        fitted = self.fit(model, forget_set, retain_set, refusal_set)
        return attach(model if inplace else copy.deepcopy(model).eval(), fitted)

    def fit(self, model: nn.Module, forget_set: Any, retain_set: Any = None, refusal_set: Any = None) -> Intervention:
        """The intervention alone; parameters as for :meth:`forget`."""
        skill = sequences_of(forget_set, "forget set", self.probes, self.draw)
        if not self.abstain:
            if retain_set is None:
                raise InputError("Neuron Adjust compares with other skills: give a retain set")
            others = sequences_of(retain_set, "retain set", self.probes, self.draw)
            warn_of_overlap(skill, others)
            adjusted = fit_neuron_adjust(
                *(
                    moments(model, rows, self.probe or "text", batch_size=self.batch_size)[0]
                    for rows in (skill, others)
                ),
                percent=self.percent,
                absolute=self.absolute,
                released=self.released,
                seed=self.draw,
            )
            _log.info("%d neurons of %d layers are adjusted", adjusted.selected, len(adjusted.layers))
            return adjusted
        held_out = None
        if self.scale is None:
            if len(skill) < _FEWEST:
                raise InputError(
                    f"the forget set has {len(skill)} texts: at least {_FEWEST} are needed to choose the scale of the "
                    "detector; give more, or scale"
                )
            kept = len(skill) // _HELD_OUT
            held_out, skill = skill.select(slice(0, kept)), skill.select(slice(kept, None))
        return fit_key_space(
            model,
            skill,
            held_out,
            scale=self.scale,
            recall=self.recall,
            layer=self.layer,
            response=self.response,
            steer=None if refusal_set is None else sequences_of(refusal_set, "refusal set", self.probes, self.draw),
            probe=self.probe or "prompt",
            batch_size=self.batch_size,
        )


def answers(
    model: nn.Module, tokenizer: Any, prompts: list[Prompt], *, refusal: str = REFUSAL, **sampling: Any
) -> tuple[list[str], torch.Tensor]:
    """Answers to prompts, those for which the model's detector was set off replaced by a refusal.

    Parameters
    ----------
    model
        A language model, with any intervention or none.
    tokenizer
        Of the model.
    prompts
        Strings, messages or token ids.
    refusal
        What is said instead.
    sampling
        As for :func:`thrifty.lm.sample.sample`: ``max_new_tokens``, ``greedy``, ...

    Returns
    -------
    tuple
        The answers, and whether the model abstained, bool [N].
    """
    spoken = sample(model, tokenizer, prompts, **sampling)
    detector = attached(model)
    texts = spoken.texts(tokenizer)
    if not isinstance(detector, KeySpaceDetector):
        return texts, torch.zeros(len(texts), dtype=torch.bool)
    flags = detector.flags(model, spoken)
    return [refusal if flag else text for text, flag in zip(texts, flags.tolist(), strict=True)], flags
