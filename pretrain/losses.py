"""Contrastive losses as pure functions. Letters: see `batch.py`."""

from __future__ import annotations

import torch
from torch import Tensor


def log_inclusion_probability(probability_G: Tensor, *, num_draws: Tensor | float) -> Tensor:
    """Log Q: how likely an item is among the *distinct* targets of `num_draws` draws.

    The sampled-softmax correction of Yi et al. (RecSys 2019, eq. 3) with the inclusion
    probability 1 - (1 - p)^N of a de-duplicated batch in the place of the frequency p.
    Items that are never drawn get the smallest positive number, so that the result is finite.
    """
    inclusion_G = -torch.expm1(num_draws * torch.log1p(-probability_G.double().clamp(max=1 - 1e-9)))
    return inclusion_G.clamp(min=1e-12).log().float()


def first_occurrences(rows_G: Tensor) -> Tensor:
    """For each row, the position at which its value occurs first (a repeated item is one item)."""
    _, inverse_G = torch.unique(rows_G, return_inverse=True)
    first = torch.full((int(inverse_G.max()) + 1,), len(rows_G), device=rows_G.device)
    positions_G = torch.arange(len(rows_G), device=rows_G.device)
    first = first.scatter_reduce(0, inverse_G, positions_G, reduce="amin")
    return first[inverse_G]


def positions_of(values: Tensor, *, rows_G: Tensor) -> Tensor:
    """First position of each value in `rows_G`, -1 where it does not occur; any shape."""
    order_G = torch.argsort(rows_G, stable=True)
    sorted_G = rows_G[order_G]
    found = torch.searchsorted(sorted_G, values.contiguous()).clamp(max=len(rows_G) - 1)
    return torch.where(sorted_G[found] == values, order_G[found], -1)


def scaled_cosines(left_PD: Tensor, right_GD: Tensor, *, scale: Tensor) -> Tensor:
    """[P, G] logits in float32 even under autocast: bf16 has 3 digits, a scale of 100 eats 2."""
    with torch.autocast(left_PD.device.type, enabled=False):
        logits_PG: Tensor = scale.float() * left_PD.float() @ right_GD.float().T
    return logits_PG


def user_item_losses(
    query_PD: Tensor,
    candidate_GD: Tensor,
    *,
    target_P: Tensor,
    excluded_PG: Tensor,
    log_q_G: Tensor,
    scale: Tensor,
) -> Tensor:
    """InfoNCE of each query against every rank's distinct items (van den Oord et al. 2018, eq. 4).

    Args:
        query_PD: unit vectors of users, each at the moment before its target.
        candidate_GD: unit vectors of the candidates of every rank.
        target_P: position of each query's item among the candidates.
        excluded_PG: True where a candidate is no negative of the query (repeated item, the user's
            own history). It is taken out *before* the softmax: it adds nothing to the denominator.
        log_q_G: popularity correction subtracted from the logits, zeros for none.
        scale: inverse temperature.

    Returns:
        One loss a query, [P].
    """
    logits_PG = scaled_cosines(query_PD, candidate_GD, scale=scale) - log_q_G
    target_P1 = target_P[:, None]
    excluded_PG = excluded_PG.scatter(1, target_P1, False)
    logits_PG = logits_PG.masked_fill(excluded_PG, float("-inf"))
    return logits_PG.logsumexp(1) - logits_PG.gather(1, target_P1).squeeze(1)


def pair_losses(
    left_PD: Tensor,
    left_GD: Tensor,
    *,
    right_PD: Tensor,
    right_GD: Tensor,
    own_P: Tensor,
    scale: Tensor,
) -> Tensor:
    """Symmetric InfoNCE of two views of the same items (CLIP, Radford et al. 2021, fig. 3).

    Args:
        left_PD: this rank's unit vectors of one view (say, the picture).
        left_GD: that view on every rank, each item once.
        right_PD: this rank's unit vectors of the other view, same items.
        right_GD: the other view on every rank.
        own_P: where this rank's items stand in the gathered ones.
        scale: inverse temperature.

    Returns:
        One loss an item, [P]: the mean of the two directions.
    """
    left_PG = scaled_cosines(left_PD, right_GD, scale=scale)
    right_PG = scaled_cosines(right_PD, left_GD, scale=scale)
    forward_P = torch.nn.functional.cross_entropy(left_PG, own_P, reduction="none")
    backward_P = torch.nn.functional.cross_entropy(right_PG, own_P, reduction="none")
    return (forward_P + backward_P) / 2
