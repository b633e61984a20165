"""Item vectors of `python -m pretrain embed`, checked against the dataset they are used with."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset import Dataset
from pretrain.knock_out import refuse_knock_out


@dataclass(frozen=True)
class Embeddings:
    """What `python -m pretrain embed` wrote, checked against a dataset."""

    dir: Path
    newest_event: int
    release_fingerprint: str
    width: int
    without: tuple[str, ...] = ()
    """Modalities that a knock-out lacks."""

    @staticmethod
    def open(embeddings_dir: Path, dataset: Dataset, *, knock_out: bool = False) -> "Embeddings":
        """Refuse a folder that is incomplete, of another dataset, or a knock-out (or not one)."""
        path = embeddings_dir / "embeddings.json"
        if not path.is_file():
            raise FileNotFoundError(
                f"{embeddings_dir}: found no embeddings.json, expected item vectors; "
                "run python -m pretrain embed"
            )
        about = json.loads(path.read_text())
        without = tuple(about.get("without", []))
        if not knock_out:
            refuse_knock_out(embeddings_dir, without)
        elif not without:
            raise ValueError(
                f"knock_outs: found {embeddings_dir}, vectors of all modalities, expected a folder "
                "of python -m pretrain embed --without"
            )
        ids = pq.read_table(embeddings_dir / "items.parquet", columns=["item_id"])["item_id"]
        if not ids.equals(dataset.items["item_id"]):
            raise ValueError(
                f"{embeddings_dir}: found vectors of {len(ids)} items that are not the "
                f"{dataset.num_items} items of {dataset.dir}; "
                "re-run python -m pretrain embed on this dataset"
            )
        return Embeddings(
            embeddings_dir,
            int(about["newest_event"]),
            str(about["release_fingerprint"]),
            int(about["width"]),
            without,
        )

    @property
    def columns(self) -> list[str]:
        """What is there of an item; a release on ids alone has no `raw`."""
        return list(pq.read_schema(self.dir / "items.parquet").names)

    def item_vectors(self, column: str) -> Tensor:
        """One vector an item in unit length, zero where missing; a zero row for no item, last."""
        vectors = F.normalize(self._read(column), dim=1)
        return torch.cat([vectors, torch.zeros(1, vectors.shape[1])])

    def raw_features(self) -> Tensor:
        """The column `raw` as it is: features of all modalities, zeros where absent."""
        return self._read("raw")

    def _read(self, column: str) -> Tensor:
        if column not in self.columns:
            raise ValueError(
                f"{self.dir}/items.parquet: found columns {self.columns}, expected {column}; "
                "re-run python -m pretrain embed (a release on ids alone has no raw: leave that "
                "rung out)"
            )
        table = pq.read_table(self.dir / "items.parquet", columns=[column])
        array = table[column].combine_chunks()
        flat = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        width = array.type.list_size
        if len(flat) != len(array) * width or not np.isfinite(flat).all():
            raise ValueError(
                f"{self.dir}/items.parquet: column {column} holds nulls or values that are not "
                "finite, expected numbers; re-run python -m pretrain embed"
            )
        return torch.from_numpy(flat.reshape(-1, width))
