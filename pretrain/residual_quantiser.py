"""Residual quantisation that is learnt: an autoencoder with codes between (RQ-VAE).

Lee et al. 2022 (arXiv 2203.01941), as in TIGER (Rajput et al. 2023, arXiv 2305.05065, section 3.1).
Letters: see `residual_codes.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.residual_codes import (
    decode_residual,
    encode_residual,
    nearest_codes,
    residual_kmeans,
)

COMMITMENT = 0.25
"""Weight of pulling the encoder to its codes (van den Oord et al. 2017, eq. 3)."""


@dataclass(frozen=True)
class Quantised:
    """Codes of some rows, and what training needs."""

    codes_nV: Tensor
    loss: Tensor


class ResidualQuantiser(nn.Module):
    """Encoder → V residual codebooks → decoder."""

    def __init__(self, width: int, *, hidden: int, levels: int, num_codes: int) -> None:
        super().__init__()
        self.num_codes = num_codes
        self.encoder = nn.Sequential(
            nn.Linear(width, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.decoder = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, width)
        )
        self.codebooks_VKD = nn.Parameter(torch.zeros(levels, num_codes, hidden))

    @torch.no_grad()
    def start_from(self, rows_nD: Tensor, *, seed: int) -> None:
        """Codebooks by residual k-means of the encoder's output, so that all codes are in use."""
        hidden = self.encoder(rows_nD)
        levels, num_codes, _ = self.codebooks_VKD.shape
        start = residual_kmeans(
            hidden, levels=levels, num_codes=num_codes, seed=seed, iterations=10
        )
        self.codebooks_VKD.copy_(start)

    @torch.no_grad()
    def revive(self, rows_nD: Tensor) -> None:
        """Move each level's unused codes to the residuals of the worst served rows."""
        left_nD = self.encoder(rows_nD)
        for codes_KD in self.codebooks_VKD:
            code_n = nearest_codes(left_nD, codes_KD)
            error_n = (left_nD - codes_KD[code_n]).square().sum(1)
            unused = (torch.bincount(code_n, minlength=self.num_codes) == 0).nonzero()[:, 0]
            unused = unused[: len(error_n)]
            codes_KD[unused] = left_nD[error_n.topk(len(unused)).indices]
            left_nD = left_nD - codes_KD[nearest_codes(left_nD, codes_KD)]

    def forward(self, rows_nD: Tensor) -> Quantised:
        """Squared error of the reconstruction, plus that of each level's residual to its code."""
        hidden_nD = self.encoder(rows_nD)
        codes_nV = encode_residual(hidden_nD.detach(), self.codebooks_VKD.detach())
        left_nD, sum_nD = hidden_nD, torch.zeros_like(hidden_nD)
        quantising = hidden_nD.new_zeros(())
        for level, code_n in enumerate(codes_nV.T):
            code_nD = self.codebooks_VKD[level, code_n]
            quantising = quantising + F.mse_loss(code_nD, left_nD.detach())
            quantising = quantising + COMMITMENT * F.mse_loss(left_nD, code_nD.detach())
            left_nD, sum_nD = left_nD - code_nD.detach(), sum_nD + code_nD
        through_nD = hidden_nD + (sum_nD - hidden_nD).detach()  # straight through
        return Quantised(codes_nV, F.mse_loss(self.decoder(through_nD), rows_nD) + quantising)

    @torch.no_grad()
    def encode(self, rows_nD: Tensor) -> Tensor:
        """Codes [n, V]."""
        return encode_residual(self.encoder(rows_nD), self.codebooks_VKD)

    @torch.no_grad()
    def decode(self, codes_nV: Tensor) -> Tensor:
        """Reconstructed rows [n, D]."""
        rows_nD: Tensor = self.decoder(decode_residual(codes_nV, self.codebooks_VKD))
        return rows_nD


def train_quantiser(
    rows_nD: Tensor, *, hidden: int, levels: int, num_codes: int, steps: int, seed: int
) -> ResidualQuantiser:
    """Fit to these rows; the same seed gives the same quantiser."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        quantiser = ResidualQuantiser(
            rows_nD.shape[1], hidden=hidden, levels=levels, num_codes=num_codes
        )
        # The autoencoder alone first: codes of a random encoder would be worth nothing.
        through = nn.Sequential(quantiser.encoder, quantiser.decoder)
        warm_up = max(1, steps // 4)
        optimizer = torch.optim.Adam(quantiser.parameters(), lr=2e-3)
        for step in range(warm_up + steps):
            batch = rows_nD[torch.randint(len(rows_nD), (min(1024, len(rows_nD)),))]
            if step == warm_up:
                quantiser.start_from(rows_nD, seed=seed)
            loss = F.mse_loss(through(batch), batch) if step < warm_up else quantiser(batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step > warm_up and step % 50 == 0 and step < warm_up + steps * 3 // 4:
                quantiser.revive(rows_nD)
    return quantiser.eval()
