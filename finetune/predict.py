"""Score new impressions with a finished run."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_prep.dataset import Dataset, open_dataset
from finetune import run_folder
from finetune.evaluation import score_columns
from finetune.finished_run import open_run
from finetune.settings import PredictConfig
from finetune.vocabulary import Vocabulary

logger = logging.getLogger(__name__)


def predict(config: PredictConfig) -> int:
    """Write user_id, item_id, time and scores in the given order; returns their number."""
    dataset = None if config.dataset_dir is None else open_dataset(config.dataset_dir)
    run = open_run(config.run_dir, dataset=dataset, embeddings_dir=config.embeddings_dir)
    given, encoded = read_impressions(config.impressions, run.data.dataset, run.data.vocabulary)
    predicted = run.predictions(run.data.encode(encoded))
    table = given.select(["user_id", "item_id", "time"])
    for name, score_N in score_columns(predicted).items():
        table = table.append_column(name, pa.array(score_N))
    run_folder.write_predictions(table, config.out)
    return int(given.num_rows)


def read_impressions(
    path: Path, dataset: Dataset, vocabulary: Vocabulary
) -> tuple[pa.Table, pa.Table]:
    """The table as given, and with rows for ids; refuses missing columns and unknown items."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: found no such file, expected impressions in Parquet")
    given = pq.read_table(path)
    context = [f.name for f in vocabulary.categorical if f.owner == "context"]
    context += [f.name for f in vocabulary.numeric if f.owner == "context"]
    needed = ["user_id", "item_id", "time", *context]
    missing = [name for name in needed if name not in given.column_names]
    if missing:
        raise ValueError(
            f"{path}: found columns {given.column_names}, expected also {missing}; the run "
            f"scores impressions by {needed}"
        )
    if given.num_rows == 0:
        raise ValueError(f"{path}: found no rows, expected impressions to score")
    _check_types(path, given, vocabulary)
    user_N = _rows_of(path, given["user_id"], dataset.users["user_id"], name="user_id")
    item_N = _rows_of(path, given["item_id"], dataset.items["item_id"], name="item_id")
    if (item_N < 0).any():
        unknown = given["item_id"].filter(pa.array(item_N < 0))
        raise ValueError(
            f"{path}: found {int((item_N < 0).sum())} impressions of items that {dataset.dir} "
            f"does not know, such as {unknown[0].as_py()!r}; add them to the items table and "
            "re-run python -m data_prep shard and python -m pretrain embed"
        )
    if (user_N < 0).any():
        logger.info("%s: %d impressions of unknown users", path, int((user_N < 0).sum()))
    encoded = given.select(context)
    for name, column in (
        ("user_row", pa.array(user_N)),
        ("item_row", pa.array(item_N)),
        ("time", _milliseconds(given["time"], path)),
        ("label", pa.array(np.zeros(given.num_rows, np.float32))),  # unknown, and never read
    ):
        encoded = encoded.append_column(name, column)
    return given, encoded


def _check_types(path: Path, given: pa.Table, vocabulary: Vocabulary) -> None:
    """Refuse context columns that are not of the kind that the run was trained on."""
    kinds = {one.name: "numbers" for one in vocabulary.numeric if one.owner == "context"}
    for one in vocabulary.categorical:
        if one.owner == "context":
            kinds[one.name] = "lists" if one.kind == "multi" else "single values"
    for name, kind in kinds.items():
        found = given.schema.field(name).type
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found)
        is_number = pa.types.is_integer(found) or pa.types.is_floating(found)
        is_number |= pa.types.is_boolean(found) or pa.types.is_null(found)
        fits = {"numbers": is_number, "lists": is_list, "single values": not is_list}[kind]
        if not fits:
            raise ValueError(
                f"{path}: found column {name} of type {found}, expected {kind}, as the run was "
                "trained on; convert it"
            )


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
    newest = pc.max(milliseconds).as_py()
    if newest < 100_000_000_000:  # 1973 in milliseconds, the year 5138 in seconds
        raise ValueError(
            f"{path}: found times up to {newest}, which are seconds, expected milliseconds; "
            "multiply them by 1000"
        )
    return milliseconds
