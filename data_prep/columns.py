"""Settings that say where the raw tables lie and what their columns mean."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from data_prep.records import (
    EXPOSURE_COLUMNS,
    RESERVED_CONTEXT_COLUMNS,
    RESERVED_ITEM_COLUMNS,
    RESERVED_USER_COLUMNS,
    FeatureType,
    LabelType,
)

TimeUnit = Literal["auto", "s", "ms", "us", "date", "timestamp"]
"""How times are written. auto: the column is a timestamp or a date, or text in ISO 8601."""
ReadAs = Literal["number", "category", "text"]
"""What a column of CSV or JSON is taken for, if more is known than its first rows tell."""
VECTOR_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}")
MEDIA_NAMES = ("image", "frames", "sound", "text")
"""Modalities that are no vectors; their tar members and columns have these names."""


@dataclass(frozen=True, kw_only=True)
class InteractionColumns:
    """The log that users' histories are made of."""

    path: str
    """Parquet, CSV, TSV or JSONL (.gz too): a file, a folder with all below it, whose `key=value`
    names become columns, or a pattern such as `log/*.parquet`; ${VARIABLES} expand."""
    user: str = "user_id"
    """Column of user ids, integers or text."""
    item: str = "item_id"
    """Column of item ids, integers or text."""
    time: str = "timestamp"
    """Column of times."""
    time_unit: TimeUnit = "auto"
    """How times are written; numbers need s, ms or us."""
    label: str | None = None
    """Column that tells positive from negative events; null: every event is positive."""
    positive_from: float | None = None
    """Labels of at least this are positive; null: the label column holds 0 and 1 only."""
    weight: str | None = None
    """Column of event weights, 0 or more."""

    def __post_init__(self) -> None:
        if self.positive_from is not None and self.label is None:
            raise ValueError(
                "interactions.positive_from: found a threshold but no interactions.label; "
                "name the label's column, or leave both out"
            )

    def read_as(self) -> dict[str, ReadAs]:
        """What columns of a format without types hold."""
        return _read_as(numbers=(self.label, self.weight), ids=(self.user, self.item, self.time))


@dataclass(frozen=True, kw_only=True)
class ItemColumns:
    """The catalogue and its content."""

    path: str
    """Parquet, CSV, TSV or JSONL: a file, a folder or a pattern; ${VARIABLES} expand."""
    item: str = "item_id"
    """Column of item ids, integers or text, each once."""
    image: str | None = None
    """Column of pictures: their bytes, paths of files under `image_dir`, or URLs (http, s3, …)."""
    image_dir: str | None = None
    """Folder or URL that the paths are relative to; null: the column holds bytes or URLs."""
    frames: str | None = None
    """Column of lists of pictures, such as the frames of a video, as in `image`."""
    frames_dir: str | None = None
    """As `image_dir`."""
    sound: str | None = None
    """Column of sound clips (WAV, FLAC, Ogg, MP3): bytes, paths or URLs, as in `image`."""
    sound_dir: str | None = None
    """As `image_dir`."""
    texts: list[str] = field(default_factory=list)
    """Text columns, each kept as a field of its own."""
    vectors: dict[str, str] = field(default_factory=dict)
    """Given vectors: name of the vector to its column, a list of numbers."""
    arrival: str | None = None
    """Column of the time since when the item exists; null: the time of its first event."""
    arrival_unit: TimeUnit = "auto"
    """How arrival times are written."""
    features: dict[str, FeatureType] = field(default_factory=dict)
    """Feature columns and their types: numeric, categorical, or multi for a list of values. In CSV
    and TSV a list is written as JSON, such as ["red", "new"]."""

    def __post_init__(self) -> None:
        for name in self.vectors:
            if not VECTOR_NAME.fullmatch(name):
                raise ValueError(
                    f"items.vectors: found the name {name!r}, expected lower-case letters, "
                    "digits and _; rename it"
                )
            if name in MEDIA_NAMES:
                raise ValueError(
                    f"items.vectors: found the name {name!r}, which is a modality of its own, "
                    f"expected none of {', '.join(MEDIA_NAMES)}; rename it, such as {name}_vector"
                )
        own = [f"{prefix}_{name}" for prefix in ("has", "hash") for name in self.vectors]
        reserved = (*RESERVED_ITEM_COLUMNS, *own)
        _check_features("items.features", self.features, reserved=reserved)

    def read_as(self) -> dict[str, ReadAs]:
        """What columns of a format without types hold."""
        ids = (self.item, self.arrival)
        return _read_as(features=self.features, texts=self.texts, ids=ids)


@dataclass(frozen=True, kw_only=True)
class UserColumns:
    """What is known of users beside their events."""

    path: str
    """Parquet, CSV, TSV or JSONL: a file, a folder or a pattern; ${VARIABLES} expand."""
    user: str = "user_id"
    """Column of user ids, each once."""
    features: dict[str, FeatureType] = field(default_factory=dict)
    """Feature columns and their types: numeric, categorical, or multi for a list of values. In CSV
    and TSV a list is written as JSON, such as ["red", "new"]."""

    def __post_init__(self) -> None:
        _check_features("users.features", self.features, reserved=RESERVED_USER_COLUMNS)

    def read_as(self) -> dict[str, ReadAs]:
        """What columns of a format without types hold."""
        return _read_as(features=self.features, ids=(self.user,))


@dataclass(frozen=True, kw_only=True)
class ImpressionColumns:
    """What was shown and whether it was clicked: the CTR task."""

    path: str
    """Parquet, CSV, TSV or JSONL; may be the interactions' file. ${VARIABLES} expand."""
    user: str = "user_id"
    """Column of user ids."""
    item: str = "item_id"
    """Column of item ids."""
    time: str = "timestamp"
    """Column of times."""
    time_unit: TimeUnit = "auto"
    """How times are written; numbers need s, ms or us."""
    label: str = "label"
    """Column of the click."""
    positive_from: float | None = None
    """Labels of at least this are clicks; null: the column holds 0 and 1 only."""
    features: dict[str, FeatureType] = field(default_factory=dict)
    """Context features known before the impression, and their types, as of items."""
    labels: dict[str, LabelType] = field(default_factory=dict)
    """Columns of further outcomes: binary (0 and 1, such as a like) or numeric (such as a play
    time). A row with a bad or missing one is set aside."""
    position: str | None = None
    """Column of the place it was shown in, a whole number, the first place 0: for position as a
    bias. One that begins elsewhere is warned of and stays as it is."""
    propensity: str | None = None
    """Column of the probability with which it was shown, above 0: for debiased losses."""
    treatment: str | None = None
    """Column of 1 for treated and 0 for control, drawn at random: for uplift."""

    @property
    def exposure(self) -> dict[str, str]:
        """Column of each of position, propensity and treatment that is named."""
        columns = {name: getattr(self, name) for name in EXPOSURE_COLUMNS}
        return {name: column for name, column in columns.items() if column is not None}

    def __post_init__(self) -> None:
        _check_features("impressions.features", self.features, reserved=RESERVED_CONTEXT_COLUMNS)
        reserved = (*RESERVED_CONTEXT_COLUMNS, *EXPOSURE_COLUMNS)
        _check_features("impressions.labels", self.labels, reserved=reserved)
        # `raw_<name>` is the value as given, among the samples that are set aside.
        outcomes = {one for name in (*self.labels, *self.exposure) for one in (name, f"raw_{name}")}
        if clash := sorted(outcomes & set(self.features)):
            raise ValueError(
                f"impressions.features: found {clash}, which impressions.labels or "
                f"{', '.join(EXPOSURE_COLUMNS)} take as outcomes, expected what is known before "
                "the impression; leave them out of one of the two"
            )

    def read_as(self) -> dict[str, ReadAs]:
        """What columns of a format without types hold."""
        numbers = (self.label, *self.labels, *self.exposure.values())
        return _read_as(
            features=self.features, numbers=numbers, ids=(self.user, self.item, self.time)
        )


Columns = InteractionColumns | ItemColumns | UserColumns | ImpressionColumns


def _read_as(
    *,
    features: Mapping[str, FeatureType] = MappingProxyType({}),
    numbers: Iterable[str | None] = (),
    texts: Iterable[str] = (),
    ids: tuple[str | None, ...],
) -> dict[str, ReadAs]:
    """Ids and times are what they look like, also where they are features."""
    by_kind: list[tuple[ReadAs, list[str | None]]] = [
        ("category", [name for name, kind in features.items() if kind == "categorical"]),
        ("text", [*texts]),
        ("number", [*numbers, *(name for name, kind in features.items() if kind == "numeric")]),
    ]
    return {name: kind for kind, names in by_kind for name in names if name and name not in ids}


def _check_features(
    setting: str, features: Mapping[str, str], *, reserved: tuple[str, ...]
) -> None:
    if clash := sorted(set(features) & set(reserved)):
        raise ValueError(
            f"{setting}: found {clash}, but these names are the dataset's own; "
            "rename the columns in the raw table"
        )
