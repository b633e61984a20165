"""The vocabulary of a dataset's training impressions: which features are counted, and how often.

Shapes: R rows of a catalogue.
"""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from data_prep.dataset import Dataset
from finetune.settings import InputConfig
from finetune.vocabulary import (
    ID_FIELDS,
    Owner,
    Vocabulary,
    count_rows,
    start_counts,
    vocabulary_of,
)

_KINDS = {
    "hash_buckets": ("categorical", "multi"),
    "log_features": ("numeric",),
    "item_sequences": ("multi",),
}
"""Features that a setting may name."""


def learn_vocabulary(
    dataset: Dataset,
    inputs: InputConfig,
    pieces: Iterable[pa.Table],
    *,
    older: Vocabulary | None = None,
) -> Vocabulary:
    """Count training impressions piece by piece, users and items by how often they occur.

    With `older` what is hashed there is hashed, and nothing else that the settings do not name.
    """
    features = dataset.manifest.features
    types: dict[Owner, dict[str, str]] = {
        "user": dict(features.user),
        "item": dict(features.item),
        "context": dict(features.context),
    }
    kinds = {name: kind for of_owner in types.values() for name, kind in of_owner.items()}
    kinds |= dict.fromkeys(ID_FIELDS.values(), "categorical")
    for key, expected in _KINDS.items():
        fitting = sorted(name for name, kind in kinds.items() if kind in expected)
        if strange := sorted(set(getattr(inputs, key)) - set(fitting)):
            raise ValueError(
                f"{key}: found {strange}, expected features of type {' or '.join(expected)}, which "
                f"are {fitting}"
            )
    counts = start_counts(types, log_features=inputs.log_features)
    not_counted = {key for key in counts if key[1] in inputs.hash_buckets}
    not_counted |= {key for key in counts if key[1] in inputs.item_sequences}
    if older is not None:
        not_counted |= {(one.owner, one.name) for one in older.categorical if one.hash_buckets}
    occurs = {
        "user": np.zeros(dataset.num_users, np.int64),
        "item": np.zeros(dataset.num_items, np.int64),
    }
    for table in pieces:
        for owner, count_R in occurs.items():
            count_R += np.bincount(table[f"{owner}_row"].to_numpy(), minlength=len(count_R))
        once = np.ones(table.num_rows, np.int64)
        for (owner, name), counted in counts.items():
            if owner == "context" and (owner, name) not in not_counted:
                counted.add(table[name], once)
    for (owner, name), counted in counts.items():
        if owner != "context" and (owner, name) not in not_counted:
            table = dataset.users if owner == "user" else dataset.items
            count_rows(counted, table[name], occurs[owner])
    return vocabulary_of(
        counts,
        min_count=inputs.min_count,
        hash_buckets=inputs.hash_buckets,
        hash_above=inputs.hash_above,
        item_sequences=inputs.item_sequences,
        older=older,
    )
