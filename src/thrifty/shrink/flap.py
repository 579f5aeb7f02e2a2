"""Fluctuation-based adaptive pruning: heads and neurons that hardly vary go, and a bias takes over their mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from thrifty.core.errors import InputError
from thrifty.core.method import register
from thrifty.shrink.base import check_batch_size, check_sparsity
from thrifty.shrink.input_statistics import InputStatistics
from thrifty.shrink.structured import Structure, shrink_units

Metric = Literal["wifv", "ifv", "wifn"]


@register("flap")
@dataclass(frozen=True)
class FLAP:
    r"""Cuts attention heads and feed-forward neurons out of a language model in one pass over text, without training.

    .. math::
        S_j = v_j \lVert W_{:,j} \rVert_2^2, \qquad
        Z = (S - \mathrm{mean}\, S) / \mathrm{std}\, S, \qquad
        b = \textstyle\sum_{j\,\text{pruned}} W_{:,j}\, m_j

    with :math:`m_j` and :math:`v_j` the mean and the variance of channel j of what goes into the output map of a
    layer's attention or feed-forward part. A unit is a neuron, or a key/value head with the query heads that share
    it (so that grouped queries stay whole groups); its worth is the mean of Z over its channels. Units of all layers
    compete, each at the cost of its weights, and the bias b replaces what a removed unit gave on average. Statistics
    are those of the dense model. At least one unit of each part stays.

    The model gets matrices of other sizes in each layer. Where all layers come out alike (``ul-um``, ``ul-mm``) and
    the family's config can say it, it loads with ``from_pretrained``; else with
    :func:`thrifty.shrink.storing.load_shrunk`.

    Parameters
    ----------
    sparsity
        Share of the weights of the decoder layers' linear maps to remove; embeddings and norms do not count.
    metric
        ``wifv`` (above), ``ifv`` (the variance alone) or ``wifn`` (mean magnitude of a column times the input's norm).
    structure
        ``al-am``: heads and neurons of all layers compete. ``ul-um``: the same share in every layer and module.
        ``al-mm`` and ``ul-mm``: ``remove_heads`` heads, over all layers or alike in each, the rest from neurons.
    compensate
        Whether to add the bias.
    remove_heads
        Query heads to remove in all, for ``al-mm`` and ``ul-mm``.
    square_attention
        Square the attention's channel scores before they are standardised, as the released code does.
    fluctuation
        ``exact`` variance, or the ``released`` code's running one, which leaves out the first window.
    physical
        Make the matrices smaller; off, what is removed is set to 0 and shapes stay.
    batch_size
        Windows that run at once; by default as many as make 4096 tokens.

    Raises
    ------
    InputError
        For a sparsity outside of 0 and 1 or beyond what can be reached (the largest possible is said), or a model
        without feed-forward layers of a known form.

    References
    ----------
    An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024, arXiv 2312.11983.
    """

    kind: ClassVar[str] = "language-model"
    needs: ClassVar[tuple[str, ...]] = ("windows",)

    sparsity: float = 0.2
    metric: Metric = "wifv"
    structure: Structure = "al-am"
    compensate: bool = True
    remove_heads: int = 8
    square_attention: bool = False
    fluctuation: Literal["exact", "released"] = "exact"
    physical: bool = True
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.remove_heads < 0:
            raise InputError(f"remove_heads must be at least 0, not {self.remove_heads}")
        check_batch_size(self.batch_size)

    def shrink(self, model: nn.Module, windows: Int[Tensor, "window token"], *, inplace: bool = False) -> nn.Module:
        """The model with fewer heads and neurons.

        Parameters
        ----------
        model
            A causal language model of transformers.
        windows
            Calibration text, see :func:`thrifty.shrink.calibration.windows_of`; the authors take 1024 of 128 tokens.
        inplace
            Change ``model`` itself instead of a copy.

        Raises
        ------
        InputError
            As above, or when the windows are no token ids of the model.
        """
        return shrink_units(
            model,
            windows,
            self.score,
            sparsity=self.sparsity,
            structure=self.structure,
            remove_heads=self.remove_heads,
            bias=mean_replacement_bias if self.compensate else None,
            physical=self.physical,
            batch_size=self.batch_size,
            inplace=inplace,
        )

    def score(self, weight: Float[Tensor, "out in"], seen: InputStatistics, is_attention: bool) -> Float[Tensor, " in"]:
        """The channel scores of one output map; standardised where layers compete."""
        variance = seen.variance if self.fluctuation == "exact" else seen.released_fluctuation
        if self.metric == "wifn":
            found = weighted_norm(weight, seen.norm)
        else:
            found = weighted_fluctuation(weight, variance) if self.metric == "wifv" else variance
        if is_attention and self.square_attention:
            found = found.square()
        return standardise(found) if self.structure.startswith("al") else found


def weighted_fluctuation(weight: Float[Tensor, "out in"], variance: Float[Tensor, " in"]) -> Float[Tensor, " in"]:
    r"""WIFV, :math:`v_j \lVert W_{:,j} \rVert_2^2`: what the output's square changes when a channel becomes its mean.

    Parameters
    ----------
    weight
        Of the map.
    variance
        Of its input channels.
    """
    return variance * weight.square().sum(0)


def weighted_norm(weight: Float[Tensor, "out in"], norm: Float[Tensor, " in"]) -> Float[Tensor, " in"]:
    r"""WIFN, :math:`\mathrm{mean}_i |W_{ij}| \, \lVert x_j \rVert_2`.

    Parameters
    ----------
    weight
        Of the map.
    norm
        Of its input channels over the calibration text.
    """
    return weight.abs().mean(0) * norm


def standardise(score: Float[Tensor, " channel"]) -> Float[Tensor, " channel"]:
    """Scores of one module with mean 0 and (unbiased) standard deviation 1; all 0 where they do not differ."""
    centred = score - score.mean()
    spread = centred.square().sum().div(max(len(score) - 1, 1)).sqrt()
    return centred / spread if spread > 0 else centred


def mean_replacement_bias(
    weight: Float[Tensor, "out in"], mean: Float[Tensor, " in"], pruned: Bool[Tensor, " in"]
) -> Float[Tensor, " out"]:
    r"""What pruned channels gave on average, :math:`b_i = \sum_{j\,\text{pruned}} W_{ij} m_j`.

    Parameters
    ----------
    weight
        Of the map, before it is cut.
    mean
        Of its input channels.
    pruned
        True where a channel goes.
    """
    return weight @ (mean * pruned)
