"""The splits of a dataset as FuxiCTR reads them: our integers and numbers, its files.

Both sides then see the same fields, the same vocabularies, learnt from the same training
impressions with the same least count, and the same histories.

FuxiCTR keeps code 0 of a field for padding, so that a code is the row inside the field's part of
our table plus one: 1 missing, 2 unknown, 3 and above the known values. A missing number is 0, the
mean: FuxiCTR has no other place for it. A list and, for a head that does not look at it item by
item, the history are the means of their vectors, as in our heads; the history reads the item ids'
table.

Shapes: N impressions, M places of a list, L places of a history.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.records import SPLITS, Split, whole_file
from finetune.data import CtrData, Impressions
from finetune.vocabulary import CategoricalField

DATASET_ID = "tables"
HISTORY = "history"
MEAN = "layers.MaskedAveragePooling()"
PADDING = 0

Spec = dict[str, Any]
Column = NDArray[np.integer] | NDArray[np.floating]


def write_tables(data: CtrData, folder: Path, *, labels: dict[str, str]) -> None:
    """Write feature_map.json and a file a split; `labels` are name → column of the impressions."""
    folder.mkdir(parents=True, exist_ok=True)
    specs: dict[str, Spec] = {}
    for split in SPLITS:
        encoded = _impressions(data, split)
        columns: dict[str, Column] = {}
        for name, spec, column in _fields(data, encoded):
            specs[name], columns[name] = spec, column
        table = data.dataset.impressions(split, columns=[*labels.values()])
        for name, source in labels.items():
            columns[name] = table[source].to_numpy().astype(np.float32)
        with whole_file(folder / f"{split}.npz") as path, path.open("wb") as file:
            np.savez(file, **columns)
    content = {
        "dataset_id": DATASET_ID,
        "labels": list(labels),
        "features": [{name: spec} for name, spec in specs.items()],
    }
    with whole_file(folder / "feature_map.json") as path:
        path.write_text(json.dumps(content, indent=1) + "\n")


def _impressions(data: CtrData, split: Split) -> Impressions:
    if split == "test":
        return data.open_test()
    return data.train if split == "train" else data.valid


def _fields(data: CtrData, split: Impressions) -> Iterator[tuple[str, Spec, Column]]:
    """Name, FuxiCTR's description and the column of every field, in the order of our fields."""
    vocabulary = data.vocabulary
    single = [one for one in vocabulary.categorical if one.kind == "categorical"]
    for place, one in enumerate(single):
        spec = {"type": "categorical", "vocab_size": one.size + 1, "padding_idx": PADDING}
        yield (
            one.name,
            spec | {"source": one.owner},
            split.ids_NF[:, place].numpy() - one.offset + 1,
        )
    for place, number in enumerate(vocabulary.numeric):
        spec = {"type": "numeric", "source": number.owner}
        yield number.name, spec, np.nan_to_num(split.numeric_NK[:, place].numpy())
    users, items = split.user_N.numpy(), split.item_N.numpy()
    lists = [
        *zip(data.fields("user", kind="multi"), _taken(data.users.multi, users), strict=True),
        *zip(data.fields("item", kind="multi"), _taken(data.items.multi, items), strict=True),
        *zip(data.fields("context", kind="multi"), (m.numpy() for m in split.multi), strict=True),
    ]
    for one, rows_NM in lists:
        yield one.name, _sequence(one, rows_NM) | {"source": one.owner}, _codes(one, rows_NM)
    item_id = vocabulary.named("item_id")
    history_NL = split.history_NL.numpy()
    rows_NL = np.where(history_NL < 0, -1, data.item_id_rows.numpy()[history_NL])
    spec = _sequence(item_id, rows_NL) | {"source": "user", "share_embedding": item_id.name}
    yield HISTORY, spec, _codes(item_id, rows_NL)


def _taken(multi: list[Any], rows_N: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    return [table_RM.numpy()[rows_N] for table_RM in multi]


def _sequence(field: CategoricalField, rows_NM: NDArray[np.integer]) -> Spec:
    return {
        "type": "sequence",
        "vocab_size": field.size + 1,
        "padding_idx": PADDING,
        "max_len": rows_NM.shape[1],
        "feature_encoder": MEAN,
    }


def _codes(field: CategoricalField, rows_NM: NDArray[np.integer]) -> NDArray[np.integer]:
    return np.where(rows_NM < 0, PADDING, rows_NM - field.offset + 1)
