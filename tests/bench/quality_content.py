"""Off-the-shelf content of a release's items, modality by modality, for content kNN and blends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def raw_modalities(released: Path, embeddings: Path) -> tuple[pa.ChunkedArray, dict[str, Floats]]:
    """Item ids, and the part of `raw` [N, F] that is of each modality."""
    release = json.loads((released / "config.json").read_text())
    items = pq.read_table(embeddings / "items.parquet", columns=["item_id", "raw"])
    raw_NF = items["raw"].combine_chunks().flatten().to_numpy().reshape(len(items), -1)
    found: dict[str, Floats] = {}
    start = 0
    for modality in release["model"]["towers"]:
        stop = start + release["feature_widths"][modality]
        found[modality] = raw_NF[:, start:stop]
        start = stop
    return items["item_id"], found


def write_vectors(path: Path, item_id: pa.ChunkedArray, columns: dict[str, Floats]) -> Path:
    """One column of vectors a name."""
    table = {name: vector_column(vectors) for name, vectors in columns.items()}
    pq.write_table(pa.table({"item_id": item_id, **table}), path)
    return path


def vector_column(vectors_NF: Floats) -> pa.FixedSizeListArray:
    """[N, F] as one list of F numbers a row."""
    flat = pa.array(np.ascontiguousarray(vectors_NF, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, vectors_NF.shape[1])
