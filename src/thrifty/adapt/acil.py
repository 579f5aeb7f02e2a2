"""What G-ACIL adds, taken away again: ACIL, which is made for streams whose classes come in one session only."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from thrifty.adapt.g_acil import GACIL


class ACIL(GACIL):
    """The recursion of disjoint classes on any stream: no label gain for classes seen before the call.

    Examples of known classes still count among the features (R), but their labels are not learnt: the paper's
    decomposition without its exposed class label gain. On a stream of disjoint sessions it is G-ACIL.

    References
    ----------
    Zhuang et al., ACIL, NeurIPS 2022.
    """

    def _targets(self, codes: Int[Tensor, " N"], exposed: Bool[Tensor, " C"]) -> Float[Tensor, "N C"]:
        return torch.where(exposed, 0.0, super()._targets(codes, exposed))
