"""How likely a pair was to be observed, estimated where no system has logged it.

Shapes: N pairs, F features, R values a label can take.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def check_propensities(propensity: Tensor, *, name: str = "propensity") -> None:
    """Refuse what is no probability of something that did happen.

    Raises:
        ValueError: none is given, or one is NaN, zero, negative or above one.
    """
    if propensity.numel() == 0:
        raise ValueError(f"{name}: found none, expected one a row; leave empty batches out")
    wrong = ~((propensity > 0) & (propensity <= 1))  # written so that NaN is wrong too
    if wrong.any():
        first = propensity[wrong].flatten()[0].item()
        raise ValueError(
            f"{name}: found {int(wrong.sum())} of {propensity.numel()} outside (0, 1], such as "
            f"{first:g}; correct the column or estimate it (finetune/propensity.py)"
        )


def naive_bayes(label_N: Tensor, *, marginal_R: Tensor, num_pairs: int) -> Tensor:
    """P(O=1 | Y=r) = P(Y=r | O=1) P(O=1) / P(Y=r) of each observed pair, [N].

    Schnabel et al. 2016, section 5.1. The propensity depends on the label alone, so it serves to
    train and to evaluate on observed pairs, never to predict who will be observed.

    Args:
        label_N: labels of the observed pairs, counted from 0.
        marginal_R: P(Y=r) over all pairs. The observed pairs cannot tell it: it needs a small
            random sample, or an estimate that is itself weighted.
        num_pairs: pairs that could have been observed.
    """
    if len(label_N) == 0 or num_pairs < len(label_N):
        raise ValueError(
            f"naive_bayes: found {len(label_N)} observed of {num_pairs} pairs, expected at least "
            "one observed, and no more than there are"
        )
    count_R = torch.bincount(label_N, minlength=len(marginal_R)).to(marginal_R.dtype)
    known = len(count_R) == len(marginal_R) and bool((marginal_R[count_R > 0] > 0).all())
    if not known:
        raise ValueError(
            f"marginal_R: found {marginal_R.tolist()}, expected a positive share for every label "
            f"that was observed, here {sorted(set(label_N.tolist()))}"
        )
    propensity_R = (count_R / num_pairs) / marginal_R
    # An estimated marginal may be smaller than the share already observed.
    return propensity_R.clamp(max=1.0)[label_N]


class LogisticPropensity(nn.Module):
    """P(O=1 | x) = σ(wᵀ x + b) (Schnabel et al. 2016, section 5.2); x a pair's features."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(num_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, feature_NF: Tensor) -> Tensor:
        """Propensities [N]."""
        logit_N: Tensor = self.linear(feature_NF).squeeze(1)
        return torch.sigmoid(logit_N)


def fit_logistic(
    feature_NF: Tensor,
    observed_N: Tensor,
    *,
    l2: float,
    max_steps: int = 100,
    weight_N: Tensor | None = None,
) -> LogisticPropensity:
    """Fit on all pairs, observed or not: mean log loss + l2 |w|², by L-BFGS.

    With `weight_N` a row counts as often as that; None: once.

    Convex, so neither seed nor order matters. `l2` bounds the weights; without it a feature that
    was always observed would run to a propensity of one.
    """
    observed_N = observed_N.to(feature_NF.dtype)
    share = float(observed_N.mean()) if len(observed_N) else float("nan")
    if not 0 < share < 1 or not bool(torch.isfinite(feature_NF).all()):
        raise ValueError(
            f"fit_logistic: found {len(observed_N)} pairs of which the share {share:g} is "
            "observed, expected finite features, and observed and unobserved pairs"
        )
    model = LogisticPropensity(feature_NF.shape[1]).to(feature_NF)
    nn.init.constant_(model.linear.bias, float(torch.logit(torch.tensor(share))))
    optimiser = torch.optim.LBFGS(
        model.parameters(), max_iter=max_steps, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        logit_N = model.linear(feature_NF).squeeze(1)
        loss = F.binary_cross_entropy_with_logits(logit_N, observed_N, weight=weight_N)
        loss = loss + l2 * model.linear.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type,no-untyped-call]
    return model.requires_grad_(False)
