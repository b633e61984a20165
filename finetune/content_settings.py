"""What the parts of a rung are made of, see `rungs.py`. No torch, as `--help` must not wait."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Similarity = Literal["user_to_item", "history_max_to_item", "history_mean_to_item"]
SIMILARITIES: tuple[Similarity, ...] = get_args(Similarity)


def check_setting(ok: bool, key: str, found: object, expected: str) -> None:
    """Refuse a setting that is out of its range, by its key."""
    if not ok:
        raise ValueError(f"{key}: found {found}, expected {expected}; correct it in the config")


@dataclass(frozen=True, kw_only=True)
class ContentConfig:
    """What the parts of a rung are made of, see `rungs.py`."""

    similarities: tuple[Similarity, ...] = (
        "user_to_item", "history_max_to_item", "history_mean_to_item",
    )  # fmt: skip
    """Cosines to the target that a rung with content is given: of the user's vector, and of the
    history's items (highest and mean). A release has seen the choices of its training time, so that
    its user_to_item is better on the impressions a head learns from than on later ones; leave it
    out if validation says so. The part `rate` has all three."""

    tiers: int = 20
    """simtier: tiers of equal width in which cosines from -1 to 1 are counted."""

    tier_history: int = 100
    """simtier: latest positive events that are counted; nothing is learnt of them one by one, so
    this may be longer than history_length."""

    attention_width: int = 16
    """attention: width to which content is projected."""

    attention_hidden: tuple[int, ...] = (32,)
    """attention: widths of the activation unit's layers."""

    code_levels: int = 3
    """codes: codes an item."""

    num_codes: int = 64
    """codes: codes of a level to choose from."""

    code_min_count: int = 10
    """codes: training impressions below which a code (behind those before it) counts as unknown."""

    tune: Literal["adapter", "top_k", "lora", "full"] = "adapter"
    """tuned: what is trained of the item encoder. Adapters and fusion always are; beyond `adapter`
    also the towers: their last blocks, low-rank adapters, or all."""

    tune_lr: float = 1.0e-4
    """tuned: Adam's learning rate for the item encoder."""

    top_k: int = 1
    """tuned: blocks nearest the output that `tune: top_k` trains."""

    lora_rank: int = 8
    """tuned: rank of the adapters of `tune: lora`."""

    lora_alpha: float = 16.0
    """tuned: these adapters are scaled by lora_alpha / lora_rank."""

    features_dir: Path | None = None
    """tuned: features of `python -m pretrain features`, which spare `tune: adapter` from running
    frozen towers once over all items."""

    make_epochs: int = 10
    """make: most passes of the content model over the training impressions."""

    make_patience: int = 2
    """make: its epochs without a better validation AUC before it stops."""

    make_lr: float = 1.0e-3
    """make: Adam's learning rate for it."""

    make_hidden: tuple[int, ...] = (64, 16)
    """make: widths of its layers; the last one's output is what the head is given."""

    def __post_init__(self) -> None:
        given = self.similarities
        ok = len(given) > 0 and len(set(given)) == len(given)
        check_setting(ok, "content.similarities", given, "at least one, each once")
        for key in ("attention_hidden", "make_hidden"):
            widths = getattr(self, key)
            ok = len(widths) > 0 and all(width > 0 for width in widths)
            check_setting(ok, f"content.{key}", widths, "at least one positive width")
        for key in (
            "tiers", "tier_history", "attention_width", "code_levels", "code_min_count", "top_k",
            "lora_rank", "make_epochs", "make_patience",
        ):  # fmt: skip
            value = getattr(self, key)
            check_setting(value >= 1, f"content.{key}", value, "at least 1")
        for key in ("tune_lr", "lora_alpha", "make_lr"):
            value = getattr(self, key)
            check_setting(value > 0, f"content.{key}", value, "a positive number")
        check_setting(self.num_codes >= 2, "content.num_codes", self.num_codes, "at least 2")
