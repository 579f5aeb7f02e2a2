"""What the representations of a set are like: a small variational autoencoder, whose error is small where they lie."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from thrifty.core.loop import Loss, Shuffled, fit
from thrifty.core.run import Run

Output = Literal["sigmoid", "linear"]


class RepresentationVAE(nn.Module):
    """Encoder features-128-32-(mean, log-variance), decoder latent-32-128-features.

    Parameters
    ----------
    features
        Length of a representation.
    latent
        Length of its code.
    output
        What the decoder ends in. A ``sigmoid``, which the paper's code has, can't make a feature outside of 0 to 1.
    """

    def __init__(self, features: int, latent: int, output: Output = "sigmoid") -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, latent), nn.Linear(32, latent)
        self.decoder = nn.Sequential(
            nn.Linear(latent, 32),
            nn.ReLU(),
            nn.Linear(32, 128),
            nn.ReLU(),
            nn.Linear(128, features),
            nn.Sigmoid() if output == "sigmoid" else nn.Identity(),
        )

    def forward(
        self, e: Float[Tensor, "batch features"]
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """The representations made anew from drawn codes (in evaluation mode too), the codes' means and deviations."""
        inner = self.encoder(e)
        mean, deviation = self.mean(inner), (0.5 * self.log_variance(inner)).exp()
        return self.decoder(mean + deviation * torch.randn_like(mean)), mean, deviation


def vae_loss(
    reconstructed: Float[Tensor, "batch features"],
    e: Float[Tensor, "batch features"],
    mean: Float[Tensor, "batch latent"],
    deviation: Float[Tensor, "batch latent"],
    kl_weight: float,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    r"""The loss of the autoencoder and its divergence, means over the batch.

    .. math::
        \tfrac1B \sum_i \|\hat e_i - e_i\|^2 + w \tfrac1B \sum_i KL_i, \qquad
        KL = -\tfrac12 \textstyle\sum (1 + \log(\sigma^2 + 10^{-8}) - \mu^2 - \sigma^2)

    Parameters
    ----------
    reconstructed, e
        The representations, made anew and as they are.
    mean, deviation
        Of the codes.
    kl_weight
        Weight of the divergence.
    """
    variance = deviation.square()
    divergence = -0.5 * (1 + (variance + 1e-8).log() - mean.square() - variance).sum(1).mean()
    return (reconstructed - e).square().sum(1).mean() + kl_weight * divergence, divergence


def fit_density(
    e: Float[Tensor, "N features"],
    run: Run,
    *,
    latent: int,
    output: Output = "sigmoid",
    epochs: float = 10.0,
    batch_size: int = 32,
    learning_rate: float = 1e-3,
    kl_weight: float = 0.025,
) -> RepresentationVAE:
    """A frozen autoencoder that was trained on representations.

    Parameters
    ----------
    e
        Representations, on the run's device.
    run
        For metrics and checkpoints.
    latent, output
        As for :class:`RepresentationVAE`.
    epochs
        Passes over the representations.
    batch_size
        Of them in a batch.
    learning_rate
        Of Adam.
    kl_weight
        As for :func:`vae_loss`.

    Raises
    ------
    NonFiniteError
        When the loss is not finite.
    """
    vae = RepresentationVAE(e.shape[1], latent, output).to(e.device)
    order = Shuffled(len(e), batch_size, run.seed)

    def loss(model: nn.Module, rows: Tensor) -> Loss:
        given = e[rows]
        reconstructed, mean, deviation = model(given)
        value, divergence = vae_loss(reconstructed, given, mean, deviation, kl_weight)
        return Loss(value, {"divergence": divergence.detach()})

    fit(
        loss,
        vae,
        order,
        torch.optim.Adam(vae.parameters(), lr=learning_rate),
        run,
        max(1, round(epochs * order.per_epoch)),
        clip_norm=None,
        save_every=2000,
        log_every=20,
        label="representations",
    )
    return vae.requires_grad_(False)
