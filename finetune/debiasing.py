"""Losses over all pairs, from those that were observed and how likely they were to be.

A pair is a user and an item, a query and a document or an impression and what it showed. Ratings
and clicks exist for pairs that users or an earlier system chose, so their plain mean is an error
on the chosen, not on all. An `error` is any loss left unreduced: squared, log loss, ranking.

Shapes: B observed pairs of a batch, A pairs of a batch drawn from all, observed or not.
"""

import torch
from torch import Tensor

from finetune.propensity import check_propensities


def inverse_weights(propensity_B: Tensor, *, max_weight: float | None = None) -> Tensor:
    """1 / propensity, at most `max_weight`: a little bias for much less variance.

    The cap is that of Swaminathan and Joachims 2015 (Counterfactual risk minimization, min{M, ·}).
    """
    check_propensities(propensity_B)
    if max_weight is not None and not max_weight >= 1:
        raise ValueError(f"max_weight: found {max_weight}, expected at least 1, the least weight")
    weight_B = 1 / propensity_B
    return weight_B if max_weight is None else weight_B.clamp(max=max_weight)


def ips_loss(
    error_B: Tensor, propensity_B: Tensor, *, num_pairs: float, max_weight: float | None = None
) -> Tensor:
    """Σ_{observed} error / propensity, over the number of all pairs: inverse propensity scoring.

    Schnabel et al. 2016, section 3. Unbiased for the mean error of all pairs where the
    propensities are right and none is zero; with `max_weight` it is clipped IPS.

    Args:
        error_B: loss of each observed pair.
        propensity_B: probability with which each was observed.
        num_pairs: pairs, observed or not, that the batch stands for. A share s of the observed
            pairs stands for a share s of all. In a log where every row is an action drawn by a
            known policy, as many as rows.
        max_weight: largest weight of a pair.
    """
    _check_errors(error_B, propensity_B)
    weight_B = inverse_weights(propensity_B, max_weight=max_weight)
    return (weight_B * error_B).sum() / _positive(num_pairs)


def snips_loss(error_B: Tensor, propensity_B: Tensor, *, max_weight: float | None = None) -> Tensor:
    """Σ error / propensity over Σ 1 / propensity: self-normalised IPS.

    Swaminathan and Joachims 2015 (The self-normalized estimator for counterfactual learning). A
    constant added to every error is added to the loss, which IPS does not hold to; the price is a
    bias that vanishes with more pairs. In a batch the normaliser is the batch's own.
    """
    _check_errors(error_B, propensity_B)
    weight_B = inverse_weights(propensity_B, max_weight=max_weight)
    return (weight_B * error_B).sum() / weight_B.sum()


def doubly_robust_loss(
    error_B: Tensor,
    propensity_B: Tensor,
    *,
    imputed_error_B: Tensor,
    imputed_error_A: Tensor,
    num_pairs: float,
    max_weight: float | None = None,
) -> Tensor:
    """mean_A ê + Σ_{observed} (e - ê) / propensity, over the number of all pairs.

    Wang et al. 2019 (Doubly robust joint learning, the DR estimator). Unbiased if the propensities
    are right or if the imputed errors are right on average, whichever.

    For the loss to train a prediction, ê must depend on it: with an imputed label y~ that is held
    fixed, ê is the error of the prediction against y~.

    Args:
        error_B: loss of each observed pair.
        propensity_B: probability with which each was observed.
        imputed_error_B: imputed loss of the same pairs.
        imputed_error_A: imputed loss of pairs drawn uniformly from all, or of all.
        num_pairs: as for `ips_loss`.
        max_weight: largest weight of a pair.
    """
    _check_errors(error_B, propensity_B)
    _check_errors(imputed_error_B, propensity_B, name="imputed_error_B")
    if len(imputed_error_A) == 0:
        raise ValueError("imputed_error_A: found none, expected a sample of all pairs")
    correction = ips_loss(
        error_B - imputed_error_B, propensity_B, num_pairs=num_pairs, max_weight=max_weight
    )
    return imputed_error_A.mean() + correction


def imputation_loss(
    imputed_error_B: Tensor,
    error_B: Tensor,
    propensity_B: Tensor,
    *,
    num_pairs: float,
    max_weight: float | None = None,
) -> Tensor:
    """Σ_{observed} (ê - e)² / propensity, over the number of all pairs (Wang et al. 2019).

    The other half of joint learning; in turns with `doubly_robust_loss`, each with the other's
    model held fixed. Give residuals with their sign where there are any: an imputed label on the
    wrong side of the prediction has the right square.
    """
    _check_errors(error_B, propensity_B)
    _check_errors(imputed_error_B, propensity_B, name="imputed_error_B")
    apart_B = (imputed_error_B - error_B).square()
    return ips_loss(apart_B, propensity_B, num_pairs=num_pairs, max_weight=max_weight)


def _check_errors(error_B: Tensor, propensity_B: Tensor, *, name: str = "error_B") -> None:
    if error_B.shape != propensity_B.shape:
        raise ValueError(
            f"{name}: found shape {tuple(error_B.shape)}, expected that of the propensities, "
            f"{tuple(propensity_B.shape)}; leave the loss unreduced"
        )
    if not bool(torch.isfinite(error_B).all()):
        raise ValueError(f"{name}: found NaN or infinity, expected finite losses")


def _positive(num_pairs: float) -> float:
    if not num_pairs > 0:
        raise ValueError(f"num_pairs: found {num_pairs}, expected a positive number of pairs")
    return num_pairs
