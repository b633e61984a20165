"""What a run reads. No torch, as `--help` must not wait for it."""

from dataclasses import dataclass, field
from pathlib import Path

from finetune.content_settings import check_setting as _check
from finetune.task_settings import TaskConfig


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What a run reads."""

    dataset_dir: Path
    """Dataset folder written by `python -m data_prep shard`."""

    embeddings_dir: Path | None = None
    """Folder written by `python -m pretrain embed`; needed by every rung but `none`."""

    released: Path | None = None
    """Released folder written by `python -m pretrain export`; needed by the rung `aligned`."""

    allow_look_ahead: bool = False
    """Accept a release that has seen events of the validation or test time. The report says so."""

    history_length: int = 30
    """Latest positive events strictly before an impression that are given to the head; 0: none,
    for heads that read fields alone."""

    multi_length: int = 8
    """Values kept of a feature that is a list."""

    min_count: int = 2
    """Training impressions below which a value shares the unknown value's embedding."""

    hash_buckets: dict[str, int] = field(default_factory=dict)
    """Categorical or multi features, or user_id or item_id, whose values are hashed into so many
    rows of the table instead of having a vocabulary; values may collide."""

    hash_above: int | None = None
    """Values above which a vocabulary gives way to hashing into as many rows; null: never. A model
    that goes on from an older one hashes what that one hashed."""

    log_features: tuple[str, ...] = ()
    """Numeric features taken as sign(x) log(1 + |x|) before they are standardised."""

    item_sequences: tuple[str, ...] = ()
    """Multi features whose values are item ids; they read the embedding rows of the items."""

    memory_mb: int | None = None
    """Memory for one encoded split; a larger one is kept in files and mapped. null: a quarter of
    the memory that is free."""

    shuffle_rows: int = 1_048_576
    """Impressions that an epoch mixes fully; of a larger split, blocks in random order are mixed
    so many impressions at a time. Bounds what is held of a mapped split."""

    cache_dir: Path | None = None
    """Folder for encoded splits that are mapped; null: $TRIPTYCH_CACHE or ~/.cache/triptych."""

    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """Labels to learn, by name, such as {label: {}, is_like: {weight: 2}}; reports are about the
    first one. Empty: the click alone, which is called `label`."""

    def __post_init__(self) -> None:
        _check(self.history_length >= 0, "history_length", self.history_length, "0 or more")
        for key in ("multi_length", "min_count", "shuffle_rows"):
            value = getattr(self, key)
            _check(value >= 1, key, value, "at least 1")
        for key in ("hash_above", "memory_mb"):
            value = getattr(self, key)
            _check(value is None or value >= 1, key, value, "null or at least 1")
        for name, buckets in self.hash_buckets.items():
            _check(buckets >= 1, f"hash_buckets.{name}", buckets, "at least 1")
