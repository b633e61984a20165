"""Item vectors that an earlier release, or a model of ids, gave items of this catalogue.

They are read from the folder of `python -m pretrain embed`, or from any Parquet file, so that no
second model is run. Letters: see `batch.py`; E is the width of the space that they are of, K the
number of items that it knew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset import Dataset
from pretrain.batch import Batch
from pretrain.collectives import world_size
from pretrain.id_map import rows_of_ids
from pretrain.knock_out import refuse_knock_out
from pretrain.negatives import DistinctItems

LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)


@dataclass(frozen=True)
class KnownVectors:
    """Vectors of some items of this catalogue, on the CPU."""

    vectors_KE: Tensor
    """Of unit length."""

    place_N: Tensor
    """Row of this catalogue → row of `vectors_KE`, -1 where the item has none."""

    newest_event: int = 0
    """Newest event that whatever made them has seen, unix milliseconds."""

    fingerprint: str = ""
    """SHA-256 of their release's weights, or of the file that they are from."""

    @property
    def width(self) -> int:
        """E."""
        return self.vectors_KE.shape[1]

    def of(self, rows_n: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors [n, E] of these items, and whether they are known; where `rows_n` is."""
        place_n = self.place_N[rows_n.cpu()]
        vectors_nE = self.vectors_KE[place_n.clamp(min=0)]
        return vectors_nE.to(rows_n.device), (place_n >= 0).to(rows_n.device)

    @classmethod
    def open(cls, embeddings_dir: Path, *, dataset: Dataset) -> KnownVectors:
        """Read the `aligned` vectors of a folder of `python -m pretrain embed`.

        Raises:
            ValueError: no such folder, a knock-out, or none of its items is in the dataset.
        """
        about_file = embeddings_dir / "embeddings.json"
        if not about_file.is_file():
            raise ValueError(
                f"{embeddings_dir}: no embeddings.json there; write the release's vectors with "
                "python -m pretrain embed"
            )
        about = json.loads(about_file.read_text())
        refuse_knock_out(embeddings_dir, about.get("without", []))
        return cls.read(
            embeddings_dir / "items.parquet",
            column="aligned",
            dataset=dataset,
            newest_event=int(about["newest_event"]),
            fingerprint=str(about["release_fingerprint"]),
        )

    @classmethod
    def read(
        cls, path: Path, *, column: str, dataset: Dataset, newest_event: int, fingerprint: str
    ) -> KnownVectors:
        """Vectors of those items of the dataset that a Parquet file has, by `item_id`.

        Raises:
            ValueError: no such columns, no vectors of one width, or none of the dataset's items.
        """
        names = pq.read_schema(path).names
        if not {"item_id", column} <= set(names):
            raise ValueError(
                f"{path}: found columns {names}, expected item_id and {column}; name the column of "
                "vectors in the settings, or rename it"
            )
        table = pq.read_table(path, columns=["item_id", column])
        place_N = rows_of_ids(
            dataset.items["item_id"].combine_chunks(), known=table["item_id"].combine_chunks()
        )
        if not (place_N >= 0).any():
            raise ValueError(
                f"{path}: has none of the {dataset.num_items} items of {dataset.dir}; write it for "
                "the items of that dataset"
            )
        lists = table[column].combine_chunks()
        widths = [None]
        if any(is_list(lists.type) for is_list in LISTS):
            widths = pc.unique(pc.list_value_length(lists)).to_pylist()
        if len(widths) != 1 or not widths[0]:
            raise ValueError(
                f"{path}: found {lists.type} of widths {widths} in {column}, expected vectors of "
                "one width; leave out the rows that have none"
            )
        flat = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        if not np.isfinite(flat).all():
            raise ValueError(
                f"{path}: found numbers that are not finite in {column}, expected finite ones; "
                "leave out their rows"
            )
        vectors_KE = torch.from_numpy(flat).view(len(table), -1)
        return cls(
            F.normalize(vectors_KE, dim=-1),
            torch.from_numpy(place_N),
            newest_event=newest_event,
            fingerprint=fingerprint,
        )


@dataclass(frozen=True)
class SharedItems:
    """Targets of every rank that an earlier release knew, each once; P of them are this rank's."""

    new_GD: Tensor
    known_GE: Tensor
    new_PD: Tensor
    own_P: Tensor
    """Where this rank's ones stand among all."""
    group_G: Tensor | None
    """Content groups, None where equal content is unknown."""

    @classmethod
    def of(cls, item_nD: Tensor, batch: Batch, *, known: KnownVectors) -> SharedItems:
        """The targets of a global batch, by their new and by their known vectors."""
        known_nE, is_known_n = known.of(batch.items.rows_n)
        named = torch.unique(batch.targets_BT[batch.targets_BT >= 0])
        distinct = DistinctItems.of(named, rows_n=batch.items.rows_n)
        kept_G = distinct.gather(is_known_n.long()) > 0
        mine_G = distinct.mine_G() & kept_G
        return cls(
            new_GD=distinct.gather(item_nD.float())[kept_G],
            known_GE=distinct.gather(known_nE)[kept_G],
            new_PD=item_nD.float()[distinct.local_of(mine_G)],
            own_P=(kept_G.cumsum(0) - 1)[mine_G],
            group_G=None if batch.groups_n is None else distinct.gather(batch.groups_n)[kept_G],
        )

    def mean(self, losses_P: Tensor) -> Tensor:
        """This rank's share: the mean over ranks is the mean over all these items.

        All vectors stay in the graph of every rank, whatever it holds.
        """
        nothing = 0.0 * (self.new_GD.sum() + self.new_PD.sum())
        total: Tensor = losses_P.sum() * world_size() / max(1, len(self.new_GD)) + nothing
        return total
