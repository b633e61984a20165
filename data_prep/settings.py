"""Settings of `shard` and `verify`: what is done with the raw tables, and where."""

import os
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from data_prep.columns import ImpressionColumns, InteractionColumns, ItemColumns, UserColumns
from data_prep.privacy_settings import PrivacyConfig


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """The two cut-offs: train < valid_start <= valid < test_start <= test.

    Give both as times, or both as quantiles of the interactions' times.
    """

    valid_start: str | None = None
    """ISO 8601 (UTC where no zone is given) or unix seconds."""
    test_start: str | None = None
    """ISO 8601 (UTC where no zone is given) or unix seconds."""
    valid_quantile: float | None = None
    """Share of the interactions before `valid_start`."""
    test_quantile: float | None = None
    """Share of the interactions before `test_start`."""
    may_be_empty: list[Literal["valid", "test"]] = field(default_factory=list)
    """Splits that need no events, where a protocol other than time divides the log."""

    def __post_init__(self) -> None:
        times, quantiles = ("valid_start", "test_start"), ("valid_quantile", "test_quantile")
        given = tuple(n for n in times + quantiles if getattr(self, n) is not None)
        if given not in (times, quantiles):
            raise ValueError(
                f"split: found {', '.join(given) or 'nothing'}, expected both valid_start and "
                "test_start, or both valid_quantile and test_quantile; give one pair"
            )
        if self.valid_quantile is not None and self.test_quantile is not None:
            if not 0 < self.valid_quantile < self.test_quantile < 1:
                raise ValueError(
                    f"split: found valid_quantile {self.valid_quantile} and test_quantile "
                    f"{self.test_quantile}, expected 0 < valid_quantile < test_quantile < 1"
                )
        elif self.valid_start is not None and self.test_start is not None:
            valid = parse_time(self.valid_start, name="split.valid_start")
            if not valid < (test := parse_time(self.test_start, name="split.test_start")):
                raise ValueError(
                    f"split: found valid_start {self.valid_start} and test_start "
                    f"{self.test_start} ({valid} and {test} ms), expected the first to be earlier"
                )


ImpressionDuplicates = Literal["keep_all", "keep_exact_once"]


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """What is left out of the interactions and of the impressions."""

    duplicates: Literal["keep_exact_once", "keep_first", "keep_all"] = "keep_exact_once"
    """Of the interactions alone. keep_exact_once: of rows with the same user, item and time, one
    stays. keep_first: of a user's events with an item, the earliest stays. keep_all: all stay."""
    impression_duplicates: ImpressionDuplicates = "keep_all"
    """Of the impressions. keep_exact_once: of rows that are equal in every column that the settings
    name, one stays. keep_all: all stay, and the manifest says how many repeat another."""
    min_user_events: int = 0
    """k-core: users with fewer events before `valid_start` lose these; 0 is off."""
    min_item_events: int = 0
    """k-core: items with fewer events before `valid_start` lose these; 0 is off.
    Both count and remove training events only, so that validation and test stay as they are."""

    def __post_init__(self) -> None:
        for name in ("min_user_events", "min_item_events"):
            if getattr(self, name) < 0:
                raise ValueError(f"filter.{name}: found {getattr(self, name)}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """How pictures are stored."""

    short_side: int = 144
    """Pixels; larger pictures are shrunk, smaller ones stay."""
    max_megapixels: float = 50.0
    """Larger pictures are refused before they are decoded."""
    jpeg_quality: int = 87
    """Quality of pictures that are encoded anew; JPEG of the right size passes through."""
    max_frames: int = 8
    """Pictures kept of an item's `frames`, evenly spread over them."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_frames <= 100:
            raise ValueError(f"pictures.max_frames: found {self.max_frames}, expected 1 to 100")
        if self.short_side < 8:
            raise ValueError(f"pictures.short_side: found {self.short_side}, expected at least 8")
        if self.max_megapixels <= 0:
            raise ValueError(
                f"pictures.max_megapixels: found {self.max_megapixels}, expected more than 0"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise ValueError(f"pictures.jpeg_quality: found {self.jpeg_quality}, expected 1 to 100")


@dataclass(frozen=True, kw_only=True)
class SoundConfig:
    """Which sound clips are kept; they stay the files they are."""

    max_seconds: float = 60.0
    """Longer clips are set aside."""

    def __post_init__(self) -> None:
        if self.max_seconds <= 0:
            raise ValueError(f"sounds.max_seconds: found {self.max_seconds}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class FetchConfig:
    """How pictures and clips are read that lie in files or behind URLs."""

    threads: int = 8
    """Cells of a column read at once by each process."""
    retries: int = 3
    """Further attempts at a URL; what then fails is not fetched, see max_not_fetched_share."""
    wait_s: float = 0.5
    """Seconds before the first further attempt; doubled for each one after it."""
    per_second: float = 100.0
    """Requests a second of each process, over all its columns and threads; 0 is no limit."""
    max_mb: float = 50.0
    """Larger files are set aside, unread."""

    @property
    def max_bytes(self) -> int:
        """`max_mb` in bytes."""
        return int(self.max_mb * 1e6)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"fetch.threads: found {self.threads}, expected at least 1")
        for name in ("retries", "wait_s", "per_second"):
            if getattr(self, name) < 0:
                raise ValueError(f"fetch.{name}: found {getattr(self, name)}, expected 0 or more")
        if self.max_mb <= 0:
            raise ValueError(f"fetch.max_mb: found {self.max_mb}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """Token ids made at shard time, so that training does not tokenise."""

    tokenizer: str
    """`open_clip`; or what a transformers tower is called: a folder with a tokenizer.json,
    `package:NAME/FOLDER` inside an installed Python package, or a hub name."""
    max_tokens: int = 77
    """Texts are cut after this many tokens; as in the tower that will read them."""

    def __post_init__(self) -> None:
        if not 2 <= self.max_tokens <= 1 << 16:
            raise ValueError(f"tokens.max_tokens: found {self.max_tokens}, expected 2 to 65,536")


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """Raw tables to a dataset folder."""

    name: str
    """Name of the dataset, written into its manifest."""
    dataset_dir: str
    """Folder to write; ${VARIABLES} expand."""
    interactions: InteractionColumns
    """The log that users' histories are made of."""
    items: ItemColumns
    """The catalogue and its content."""
    split: SplitConfig
    """The cut-offs."""
    users: UserColumns | None = None
    """What is known of users; null: nothing."""
    impressions: ImpressionColumns | None = None
    """The CTR task; null: none."""
    filter: FilterConfig = field(default_factory=FilterConfig)
    """What is left out of the interactions and of the impressions."""
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    """Whose rows never reach the dataset, and whose ids are written as keyed hashes."""
    pictures: PictureConfig = field(default_factory=PictureConfig)
    """How pictures are stored."""
    sounds: SoundConfig = field(default_factory=SoundConfig)
    """Which sound clips are kept."""
    fetch: FetchConfig = field(default_factory=FetchConfig)
    """How files and URLs are read."""
    tokens: TokenConfig | None = None
    """Token ids made beside the texts; null: training tokenises."""
    items_per_shard: int = 4096
    """Items in one tar; a dataset's bytes depend on it, and not on the number of parts."""
    engine: Literal["duckdb", "spark"] = "duckdb"
    """What runs the relational step; the dataset is the same. spark: pip install triptych[spark],
    Java, and a dataset_dir where every executor can write."""
    memory_limit: str = "auto"
    """What the relational step may use on DuckDB before it goes to disk, Python's share included,
    such as 8GB. auto: half of what the machine, the container or the Slurm job has left. Spark's
    is in spark_conf."""
    duckdb_threads: int = 2
    """Threads of the relational step on DuckDB."""
    spark_conf: dict[str, str] = field(default_factory=dict)
    """Spark's settings, such as spark.driver.memory; spark-submit's own come first."""
    extra: str | None = None
    """JSON file whose content goes into the manifest, such as the toy world's truth.json."""

    def __post_init__(self) -> None:
        if self.spark_conf and self.engine != "spark":
            raise ValueError(
                f"spark_conf: found settings of Spark with engine {self.engine!r}, expected none; "
                "leave them out, or set engine to spark"
            )
        if self.items_per_shard < 1:
            raise ValueError(f"items_per_shard: found {self.items_per_shard}, expected at least 1")
        if self.duckdb_threads < 1:
            raise ValueError(f"duckdb_threads: found {self.duckdb_threads}, expected at least 1")
        if not re.fullmatch(r"auto|\d+(\.\d+)? ?[KMGT]i?B", self.memory_limit):
            raise ValueError(
                f"memory_limit: found {self.memory_limit!r}, expected auto or a size such as 8GB"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Which part of the work this process does."""

    stage: Literal["all", "tables", "content", "manifest"] = "all"
    """tables: relational step. content: this part's tars. manifest: check and close."""
    part: int = 0
    """Which part of the content step, from 0; an array task's number."""
    num_parts: int = 1
    """Parts of the content step."""
    num_workers: int = 1
    """Processes of the content step."""
    keep_work: bool = False
    """Keep the work folder of a finished dataset; without it a re-run starts anew."""
    max_missing_share: float = 0.5
    """Share of a media column's cells that may have no file: no such path or URL, or one outside
    the folder. With more the run ends with an error; 1 accepts any."""
    max_not_fetched_share: float = 0.0
    """Share of a media column's cells that may not be readable at the time, as when a server is
    down. With more the run ends with an error, and the next one tries their tars anew."""
    max_bad_value_share: float = 0.01
    """Share of a log's rows that may be set aside for a bad or missing label, weight, position,
    propensity or treatment, each by itself. With more, and 10 rows or more, the run ends with an
    error; 1 accepts any."""

    def __post_init__(self) -> None:
        if self.num_parts < 1 or not 0 <= self.part < self.num_parts:
            raise ValueError(
                f"part: found part {self.part} of num_parts {self.num_parts}, "
                "expected 0 <= part < num_parts"
            )
        if self.num_workers < 1:
            raise ValueError(f"num_workers: found {self.num_workers}, expected at least 1")
        for name in ("max_missing_share", "max_not_fetched_share", "max_bad_value_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: found {getattr(self, name)}, expected 0 to 1")
        if self.num_parts > 1 and self.stage != "content":
            raise ValueError(
                f"num_parts: found {self.num_parts} with stage {self.stage!r}, expected stage "
                "'content'; the other stages are not divided"
            )


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Which dataset to check."""

    dataset_dir: Path
    """Dataset folder."""


def expand_path(path: str, *, setting: str) -> Path:
    """Expand ~ and ${VARIABLES}; a variable that is not set is an error."""
    expanded = os.path.expandvars(path)
    if missing := re.search(r"\$\{?\w+\}?", expanded):
        raise ValueError(
            f"{setting}: found {path!r}, but {missing[0]} is not set; export it, or write the path"
        )
    return Path(expanded).expanduser()


def parse_time(value: str, *, name: str) -> int:
    """ISO 8601 or unix seconds to unix milliseconds."""
    try:
        return int(float(value) * 1000)
    except ValueError:
        pass  # not a number: it should be ISO 8601
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise ValueError(
            f"{name}: found {value!r}, expected ISO 8601 such as 2025-02-15 or unix seconds"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1000)
