"""Where the data is and how it is cut into steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_prep.behaviour_pairs import PairConfig
from pretrain.samples import SetSplit


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data is and how it is cut into steps."""

    dataset_dir: Path
    """Dataset folder of python -m data_prep shard."""

    features_dir: Path | None = None
    """Cached backbone features of python -m pretrain features; the towers are then not run."""

    global_batch_size: int = 256
    """Samples (windows of users' events) of all ranks together in one step."""

    targets_per_sample: int = 8
    """Events of a window that are predicted in one step, drawn anew each epoch."""

    item_pairs: int = 0
    """Item-item pairs of all ranks together in one step, for `loss.behaviour_weight`."""

    pairs: PairConfig = field(default_factory=PairConfig)
    """Which items belong together by behaviour."""

    encode: Literal["distinct", "every_reference"] = "distinct"
    """Whether an item that a batch names several times is read and encoded once, or each time
    (the same loss at a higher cost: what de-duplication is measured against)."""

    set_split: SetSplit = "half"
    """Where order is unknown, how much of a window is predicted from the rest: half, or with `any`
    each number of events with equal chance. At most targets_per_sample; what is left is read."""

    seed: int = 0
    """Seed of the order of samples and of the targets drawn."""

    valid_queries: int = 2000
    """Validation queries, drawn once from the positives of the validation period."""

    decode_threads: int = 1
    """Threads of each rank that decode pictures."""

    cache_mb: int = 512
    """Decoded pictures each rank keeps in memory, in MiB."""

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "targets_per_sample", "decode_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("valid_queries", "cache_mb", "item_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"data.{name} must not be negative, got {getattr(self, name)}")
