"""Item vectors that an earlier release gave items of this catalogue. Letters: see `batch.py`.

They are read from the folder of `python -m pretrain embed`, so that no second model is run. E is
the width of that release's space, K the number of items that it knew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


@dataclass(frozen=True)
class KnownVectors:
    """Vectors of those items of this catalogue that an embeddings folder has, on the CPU."""

    vectors_KE: Tensor
    """Of unit length."""

    place_N: Tensor
    """Row of this catalogue → row of `vectors_KE`, -1 where the folder lacks the item."""

    newest_event: int = 0
    """Newest event that their release has seen, unix milliseconds."""

    release_fingerprint: str = ""

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
        """Read `aligned` vectors of those items of the dataset that the folder has, by item id.

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
        table = pq.read_table(embeddings_dir / "items.parquet", columns=["item_id", "aligned"])
        place_N = rows_of_ids(
            dataset.items["item_id"].combine_chunks(), known=table["item_id"].combine_chunks()
        )
        if not (place_N >= 0).any():
            raise ValueError(
                f"{embeddings_dir}: has none of the {dataset.num_items} items of {dataset.dir}; "
                "run python -m pretrain embed on that dataset"
            )
        flat = table["aligned"].combine_chunks().flatten().to_numpy().astype(np.float32)
        vectors_KE = torch.from_numpy(flat).view(len(table), -1)
        return cls(
            F.normalize(vectors_KE, dim=-1),
            torch.from_numpy(place_N),
            newest_event=int(about["newest_event"]),
            release_fingerprint=str(about["release_fingerprint"]),
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
