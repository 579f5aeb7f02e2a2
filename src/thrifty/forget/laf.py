"""Label-agnostic forgetting: forgotten examples' representations leave the places where they used to lie."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from thrifty.core.errors import InputError
from thrifty.core.loop import Shuffled, Stateful, loop
from thrifty.core.method import register
from thrifty.core.run import Run
from thrifty.forget.base import check_finite, check_labels, cross_entropy, device_of, logits, trainable
from thrifty.forget.data import Labelled, Part, Source, as_source, concatenate, labels
from thrifty.forget.density import Output, RepresentationVAE, fit_density
from thrifty.forget.overlap import warn_of_overlap
from thrifty.forget.representation import Representation, find_head, inputs_of, representations


@register("laf")
@dataclass(frozen=True)
class LAF:
    r"""Forgets examples of a classifier without a single label; LAF+R repairs the head with some of them.

    Two autoencoders learn what the original model's representations :math:`e = g_0(x)` are like: h of what is kept,
    :math:`h_f` of what is to be forgotten. Then two steps alternate on mini-batches of both sets, each with an Adam of
    its own over all weights:

    .. math::
        q_i = \|h(e_i) - e_i\|^2, \quad s_i[h] = e^{q_i / (q_i + 1)}, \qquad
        L_{UE} = \sum_{i \in D_r} s_i[h] - \sum_{j \in D_f} s_j[h_f]

    .. math::
        D_i = 1 - \cos(g(x_i), g_0(x_i)), \qquad
        L_{RA} = \sum_{i \in D_r} \log \frac{e^{D_i}}{\sum_{j \in D_f} e^{D_j / \tau}}

    The first keeps representations of the retained data where those lie and drives the others from where theirs lay;
    the second draws the retained ones back to what the original made of them and pushes the others from it. The
    representation is what the last layer is given, which neither loss touches. Optionally that layer is trained on
    labels of retained data afterwards (LAF+R).

    Both losses are sums over a batch, and Adam moves a weight by about its rate a step: what counts is the number of
    steps, however small the forget set. The model is in evaluation mode throughout, as in the authors' code: on batches
    half of forgotten data, batch normalisation would drift. The authors fit h to all training data, here it is the
    retain set.

    Parameters
    ----------
    steps
        Steps of either loss. The paper takes 20 passes over the forget set, 3,750 steps for a class of MNIST.
    unlearning_rate
        Rate of Adam for the first loss; 0 leaves it out. The paper takes 5e-5, and 1e-5 for a ResNet-18.
    alignment_rate
        Rate of Adam for the second loss; 0 leaves it out. The paper takes 1e-4, and 4e-5 to 5e-5 for a ResNet-18.
    temperature
        Tau: divides the distances of forgotten data only. The paper takes 20, and 5 for a random subset of MNIST.
    batch_size
        Examples of either set in a batch.
    latent
        Length of the autoencoders' code: 8, for colour pictures 16.
    density_epochs
        Passes of the autoencoders over the representations.
    density_rate
        Rate of their Adam.
    kl_weight
        Weight of the divergence in their loss.
    decoder_output
        ``sigmoid``, as in the authors' code: no feature above 1 or below 0 can be reconstructed; or ``linear``.
    head
        Name of the layer whose input is the representation; the linear layer that makes the logits when not given.
    repair_epochs
        Passes of LAF+R over labelled retained data, in which the head alone is trained; 0 for plain LAF.
    repair_rate
        Rate of Adam in them. The paper's is not known.
    repair_share
        Part of the retain set whose labels are used for it, above 0 and at most 1; drawn at random.

    Raises
    ------
    InputError
        When a setting is out of its range.

    References
    ----------
    Shen, Zhang, Zhao, Bialkowski, Chen and Xu, Label-Agnostic Forgetting: A Supervision-Free Unlearning in Deep Models,
    ICLR 2024, arXiv 2404.00506.
    """

    steps: int = 3750
    unlearning_rate: float = 5e-5
    alignment_rate: float = 1e-4
    temperature: float = 20.0
    batch_size: int = 32
    latent: int = 8
    density_epochs: float = 10.0
    density_rate: float = 1e-3
    kl_weight: float = 0.025
    decoder_output: Output = "sigmoid"
    head: str | None = None
    repair_epochs: float = 0.0
    repair_rate: float = 1e-3
    repair_share: float = 1.0

    needs: ClassVar[tuple[str, ...]] = ("forget_set", "retain_set")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "latent"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("temperature", "density_epochs", "density_rate", "repair_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, not {getattr(self, name):g}")
        for name in ("unlearning_rate", "alignment_rate", "kl_weight", "repair_epochs"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be at least 0, not {getattr(self, name):g}")
        if not 0 < self.repair_share <= 1:
            raise InputError(f"repair_share must be above 0 and at most 1, not {self.repair_share:g}")
        if self.unlearning_rate == self.alignment_rate == 0:
            raise InputError("unlearning_rate and alignment_rate are both 0, so nothing would change: set one of them")

    @property
    def needs_labels(self) -> bool:
        """Whether labels of the retain set are looked at, as LAF+R does."""
        return self.repair_epochs > 0

    def forget(self, model: nn.Module, forget_set: Any, retain_set: Any, run: Run, repair_set: Any = None) -> nn.Module:
        """A copy of the model that has forgotten.

        Parameters
        ----------
        model
            A classifier of any library.
        forget_set, retain_set
            What to forget and what to keep: inputs, pairs whose labels are not looked at, data sets or batches.
        run
            For its device, checkpoints and metrics.
        repair_set
            Labelled examples for LAF+R; ``repair_share`` of the retain set when ``None``.

        Returns
        -------
        nn.Module
            Of the same class, on the same device, in evaluation mode.

        Raises
        ------
        InputError
            When a set is empty or of token sequences, inputs are not finite, the model is no classifier or its head is
            not found, or labels for LAF+R are missing or no classes.
        NonFiniteError
            When a loss is not finite.
        """
        gone, kept = as_source(forget_set, "forget set"), as_source(retain_set, "retain set")
        warn_of_overlap(gone, kept)
        # In half precision, updates as small as these would be rounded away.
        changed = copy.deepcopy(model).to(run.device, torch.float32).eval()
        head = self.head or find_head(changed, inputs_of(gone, torch.arange(1)).to(run.device).x)
        original = copy.deepcopy(changed).requires_grad_(False)
        g, g0 = Representation(changed, head), Representation(original, head)
        labelled = self._labelled(kept, repair_set, g, run) if self.needs_labels else None
        densities = self._densities(g0, kept, gone, run) if self.unlearning_rate else None
        self._unlearn(g, g0, densities, kept, gone, run.stage("unlearning"))
        if labelled is not None:
            self._repair(g, labelled, run.stage("repair"))
        changed.zero_grad(set_to_none=True)
        return changed.to(device_of(model), next(model.parameters()).dtype)

    def _densities(self, g0: Representation, kept: Source, gone: Source, run: Run) -> Densities:
        def density(name: str, source: Source) -> RepresentationVAE:
            return fit_density(
                representations(g0, source, f"{name} set"),
                run.stage(f"density-{name}"),
                latent=self.latent,
                output=self.decoder_output,
                epochs=self.density_epochs,
                batch_size=self.batch_size,
                learning_rate=self.density_rate,
                kl_weight=self.kl_weight,
            )

        return density("retain", kept), density("forget", gone)

    def _unlearn(
        self, g: Representation, g0: Representation, densities: Densities | None, kept: Source, gone: Source, run: Run
    ) -> None:
        weights = list(trainable(g.model).values())
        push, align = (torch.optim.Adam(weights, lr=rate) for rate in (self.unlearning_rate, self.alignment_rate))
        orders = [Shuffled(len(source), self.batch_size, run.seed + i) for i, source in enumerate((kept, gone))]

        def update(step: int) -> dict[str, Tensor]:
            parts = [inputs_of(source, order(step)) for source, order in zip((kept, gone), orders, strict=True)]
            # One pass for both: in evaluation mode rows do not see each other.
            both, sizes = concatenate(parts).to(run.device), [len(part) for part in parts]
            assert isinstance(both, Labelled)
            x = both.x
            losses: dict[str, Tensor] = {}
            if densities is not None:
                remaining, forgotten = g(x).split(sizes)
                h, h_f = densities
                loss = extractor_unlearning(h(remaining)[0], remaining, h_f(forgotten)[0], forgotten)
                losses["unlearning_loss"] = _descend(loss, weights, push, step)
            if self.alignment_rate:
                with torch.no_grad():
                    remaining_before, forgotten_before = g0(x).split(sizes)
                remaining, forgotten = g(x).split(sizes)
                loss = representation_alignment(
                    remaining, remaining_before, forgotten, forgotten_before, self.temperature
                )
                losses["alignment_loss"] = _descend(loss, weights, align, step)
            return losses

        state: dict[str, Stateful] = {"model": g.model, "push": push, "align": align}
        loop(update, run, self.steps, state, save_every=1000, log_every=10, label="forget")

    def _labelled(self, kept: Source, repair_set: Any, g: Representation, run: Run) -> Source:
        trainable(g.head)  # a frozen one is said now, not behind all the forgetting
        if repair_set is not None:
            source = as_source(repair_set, "repair set")
        else:
            count = max(1, round(self.repair_share * len(kept)))
            source = Part(kept, torch.randperm(len(kept), generator=run.generator("repair"))[:count])
        classes = logits(g.model, inputs_of(source, torch.arange(1)).to(run.device).x).shape[1]
        check_labels(labels(source), classes)
        return source

    def _repair(self, g: Representation, labelled: Source, run: Run) -> None:
        weights = list(trainable(g.head).values())
        optimizer = torch.optim.Adam(weights, lr=self.repair_rate)
        order = Shuffled(len(labelled), self.batch_size, run.seed)

        def update(step: int) -> dict[str, Tensor]:
            batch = labelled.rows(order(step)).to(run.device)
            return {"loss": _descend(cross_entropy(g.model, batch), weights, optimizer, step)}

        steps = max(1, round(self.repair_epochs * order.per_epoch))
        loop(update, run, steps, {"model": g.model, "optimizer": optimizer}, save_every=1000, label="repair")


Densities = tuple[RepresentationVAE, RepresentationVAE]


def bounded_error(
    reconstructed: Float[Tensor, "batch features"], e: Float[Tensor, "batch features"]
) -> Float[Tensor, " batch"]:
    r"""How far representations are from those an autoencoder knows, :math:`e^{q/(q+1)}` with the squared error q.

    Parameters
    ----------
    reconstructed, e
        What the autoencoder made, and of what.

    Returns
    -------
    Tensor
        From 1 to e, Euler's number.
    """
    q = (reconstructed - e).square().sum(1)
    return (q / (q + 1)).exp()


def extractor_unlearning(
    remaining_made: Float[Tensor, "remaining features"],
    remaining: Float[Tensor, "remaining features"],
    forgotten_made: Float[Tensor, "forgotten features"],
    forgotten: Float[Tensor, "forgotten features"],
) -> Float[Tensor, ""]:
    r"""The first loss, :math:`L_{UE} = \sum_{D_r} s[h] - \sum_{D_f} s[h_f]`.

    Parameters
    ----------
    remaining_made, remaining, forgotten_made, forgotten
        Representations of retained and of forgotten data, as h and :math:`h_f` make them anew, and as they are.
    """
    return bounded_error(remaining_made, remaining).sum() - bounded_error(forgotten_made, forgotten).sum()


def moved(e: Float[Tensor, "batch features"], before: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
    r"""How far representations have turned, :math:`D = 1 - \cos(g(x), g_0(x))`, from 0 to 2."""
    return 1 - functional.cosine_similarity(e, before, dim=1)


def representation_alignment(
    remaining: Float[Tensor, "remaining features"],
    remaining_before: Float[Tensor, "remaining features"],
    forgotten: Float[Tensor, "forgotten features"],
    forgotten_before: Float[Tensor, "forgotten features"],
    temperature: float,
) -> Float[Tensor, ""]:
    r"""The second loss, :math:`L_{RA} = \sum_{i} D_i - |D_r| \log \sum_j e^{D_j / \tau}`.

    The temperature divides what is forgotten only, unlike in other contrastive losses.

    Parameters
    ----------
    remaining, remaining_before, forgotten, forgotten_before
        Representations of retained and of forgotten data, now and by the original model.
    temperature
        Tau.
    """
    spread = torch.logsumexp(moved(forgotten, forgotten_before) / temperature, 0)
    return moved(remaining, remaining_before).sum() - len(remaining) * spread


def _descend(loss: Tensor, weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, step: int) -> Tensor:
    check_finite(loss, f"the loss at step {step}")
    if not loss.requires_grad:
        raise InputError("no parameter that the representation depends on requires a gradient: unfreeze some")
    # Only of these weights: the extractor's gradients would be for nothing where the head alone is repaired.
    for weight, slope in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
        weight.grad = slope
    optimizer.step()
    return loss.detach()
