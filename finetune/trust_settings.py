"""What is asked of a model beside how well it ranks. No torch, as `--help` must not wait."""

from dataclasses import dataclass

from finetune.content_settings import check_setting as _check


@dataclass(frozen=True, kw_only=True)
class TrustConfig:
    """Groups, exposure and robustness, see `trust.py` and `robustness.py`."""

    group_features: tuple[str, ...] = ()
    """Categorical features of users, items or the context whose values are groups, beside the
    slices: for each group calibration and the gap of its AUC."""

    max_groups: int = 8
    """Values of a feature with the most impressions that are groups of their own; the rest are one
    group, `others`."""

    exposure_k: int = 3
    """Impressions of each user that are shown when they are ranked by score."""

    noise_levels: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Length of the Gaussian noise that is added to the unit vectors of content, for rungs that
    have it; 1 is as long as the content itself. Empty: not asked."""

    missing_shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Share of the items that lose their content, drawn at random. Empty: not asked."""

    def __post_init__(self) -> None:
        for key in ("max_groups", "exposure_k"):
            _check(getattr(self, key) >= 1, f"trust.{key}", getattr(self, key), "at least 1")
        levels, shares = self.noise_levels, self.missing_shares
        _check(all(one > 0 for one in levels), "trust.noise_levels", levels, "numbers above 0")
        ok = all(0 < one <= 1 for one in shares)
        _check(ok, "trust.missing_shares", shares, "shares in (0, 1]")
        for key in ("group_features", "noise_levels", "missing_shares"):
            values = getattr(self, key)
            _check(len(set(values)) == len(values), f"trust.{key}", values, "each value once")
