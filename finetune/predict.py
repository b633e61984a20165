"""Score new impressions with a finished run."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.dataset import Dataset, open_dataset
from data_prep.new_impressions import read_new_impressions
from data_prep.records import FeatureType
from data_prep.sources import EARLIEST_MS, LATEST_MS
from finetune import run_folder
from finetune.data import CtrData, Impressions
from finetune.evaluation import score_columns
from finetune.finished_run import open_run
from finetune.input_checks import warn_of_unknown_values
from finetune.settings import PredictConfig
from finetune.vocabulary import ID_FIELDS, MISSING, Owner, Vocabulary

logger = logging.getLogger(__name__)

_MOST = 0.5
"""With more than this share of unknown users or values, a column may be misread: a warning."""
_PER_MILLISECOND = {"seconds": 1e-3, "microseconds": 1e3, "nanoseconds": 1e6}


def predict(config: PredictConfig) -> int:
    """Write user_id, item_id, time and scores in the given order; returns their number."""
    dataset = None if config.dataset_dir is None else open_dataset(config.dataset_dir)
    run = open_run(config.run_dir, dataset=dataset, embeddings_dir=config.embeddings_dir)
    given, encoded = read_impressions(config.impressions, run.data.dataset, run.data.vocabulary)
    impressions = run.data.encode(encoded)
    for name, share in unknown_shares(run.data, impressions).items():
        if share > _MOST:
            warn_of_unknown_values(share, name=name, where=config.impressions)
    predicted = run.predictions(impressions)
    table = given
    for name, score_N in score_columns(predicted).items():
        table = table.append_column(name, pa.array(score_N))
    run_folder.write_predictions(table, config.out)
    return int(given.num_rows)


def read_impressions(
    path: Path, dataset: Dataset, vocabulary: Vocabulary
) -> tuple[pa.Table, pa.Table]:
    """Ids and time as given, and what a run reads; refuses missing columns and unknown items."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected impressions in Parquet")
    context: dict[str, FeatureType] = {
        one.name: one.kind for one in vocabulary.categorical if one.owner == "context"
    }
    context |= {one.name: "numeric" for one in vocabulary.numeric if one.owner == "context"}
    ids_and_time = ["user_id", "item_id", "time"]
    needed = [*ids_and_time, *context]
    try:
        found = pq.read_schema(path).names
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{path}: found a file that is no Parquet ({error}), expected Parquet with {needed}; "
            "convert it"
        ) from error
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{path}: found columns {found}, expected also {missing}; the run "
            f"scores impressions by {needed}"
        )
    given = pq.read_table(path, columns=ids_and_time)
    if given.num_rows == 0:
        raise ValueError(f"{path}: found no rows, expected impressions to score")
    typed = read_new_impressions(path, context)
    milliseconds = _milliseconds(given["time"], path)
    user_N = _rows_of(path, typed["user_id"], dataset.users["user_id"], name="user_id")
    item_N = _rows_of(path, typed["item_id"], dataset.items["item_id"], name="item_id")
    if (item_N < 0).any():
        unknown = given["item_id"].filter(pa.array(item_N < 0))
        raise ValueError(
            f"{path}: found {int((item_N < 0).sum())} impressions of items that {dataset.dir} "
            f"does not know, such as {unknown[0].as_py()!r}; add them to the items table and "
            "re-run python -m data_prep shard and python -m pretrain embed"
        )
    if unknown_users := int((user_N < 0).sum()):
        level = logging.WARNING if unknown_users > _MOST * len(user_N) else logging.INFO
        shown = f"{unknown_users:,} of {len(user_N):,}"
        logger.log(level, "%s: %s impressions of users that the dataset lacks", path, shown)
    encoded = typed.select(list(context))
    for name, column in (
        ("user_row", pa.array(user_N)),
        ("item_row", pa.array(item_N)),
        ("time", milliseconds),
        ("label", pa.array(np.zeros(given.num_rows, np.float32))),  # unknown, and never read
    ):
        encoded = encoded.append_column(name, column)
    return given, encoded


def unknown_shares(data: CtrData, impressions: Impressions) -> dict[str, float]:
    """Of each feature's values, ids left out, the share that the run's vocabulary does not have."""
    owners: tuple[Owner, ...] = ("user", "item", "context")
    lists = [
        *(lists_RM[impressions.user_N] for lists_RM in data.users.multi),
        *(lists_RM[impressions.item_N] for lists_RM in data.items.multi),
        *impressions.multi,
    ]
    shares: dict[str, float] = {}
    for kind, columns in (("categorical", impressions.ids_NF.unbind(1)), ("multi", lists)):
        fields = [one for owner in owners for one in data.fields(owner, kind=kind)]
        for one, rows_N in zip(fields, columns, strict=True):
            num_values = int(((rows_N >= 0) & (rows_N != one.offset + MISSING)).sum())
            if one.values and num_values and one.name not in ID_FIELDS.values():
                shares[one.name] = int((rows_N == one.unknown).sum()) / num_values
    return shares


def _rows_of(
    path: Path, ids: pa.ChunkedArray, known: pa.ChunkedArray, *, name: str
) -> NDArray[np.int64]:
    """Row of each id in the catalogue, -1 where it is not there."""
    value_set = known.combine_chunks()
    try:
        typed = ids.combine_chunks().cast(value_set.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(
            f"{path}: found column {name} of type {ids.type}, expected {value_set.type} as in the "
            f"dataset ({error}); convert it"
        ) from error
    found = pc.index_in(typed, value_set=value_set)
    return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), dtype=np.int64)


def _milliseconds(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray:
    """Times in unix milliseconds."""
    if pa.types.is_timestamp(column.type):
        unit = pa.timestamp("ms", tz=column.type.tz)
        column = column.cast(unit, safe=False)
    elif not pa.types.is_integer(column.type):
        raise ValueError(
            f"{path}: found column time of type {column.type}, expected unix milliseconds "
            "(integers) or timestamps"
        )
    if column.null_count:
        raise ValueError(f"{path}: found {column.null_count} empty values in column time")
    milliseconds = column.cast(pa.int64())
    bounds = pc.min_max(milliseconds).as_py()
    if bounds["min"] < EARLIEST_MS or bounds["max"] > LATEST_MS:
        units = (
            unit
            for unit, factor in _PER_MILLISECOND.items()
            if EARLIEST_MS <= bounds["min"] / factor and bounds["max"] / factor <= LATEST_MS
        )
        unit = next(units, None)
        raise ValueError(
            f"{path}: found times from {bounds['min']} to {bounds['max']}"
            f"{f', which are {unit}' if unit else ''}, expected unix milliseconds of 1980 to 2100; "
            "convert them"
        )
    return milliseconds
