"""A released checkpoint: a folder that needs neither Lightning nor DeepSpeed, and no pickle.

released/
  config.json          architecture, preprocessing, provenance
  model.safetensors    weights, backbones included
  id_map.parquet       item_row, item_id of the catalogue that was trained on
  tokenizer/           where a transformers tower reads text
  README.md            the card
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from data_prep.records import ItemRecord
from pretrain.batch import ItemBatch
from pretrain.id_map import rows_of_ids
from pretrain.item_encoder import ItemVectors
from pretrain.model import TwoSpaceModel
from pretrain.preprocess import Preprocessor, build_preprocessors, prepare_records
from pretrain.release_checks import check_digests, check_settings, check_shapes, weight_shapes
from pretrain.release_config import CONFIG_FILE, ID_MAP_FILE, WEIGHTS_FILE, ReleaseConfig
from pretrain.towers import build_backbone
from pretrain.user_features import encode_users, unknown_users

log = logging.getLogger(__name__)


class Release:
    """Both encoders, ready to use."""

    def __init__(
        self, config: ReleaseConfig, *, folder: Path, model: TwoSpaceModel, item_ids: pa.Array
    ) -> None:
        self.config = config
        self.folder = folder
        self.model = model.eval().requires_grad_(False)
        self.item_ids = item_ids
        self._said_unknown = False
        self.preprocessors: dict[str, Preprocessor] = build_preprocessors(
            config.model.towers,
            text_fields=config.text_fields,
            vector_widths=config.vector_widths,
            tokenizer_dir=folder / "tokenizer",
        )

    @property
    def newest_event(self) -> int:
        """Newest event that training has seen, unix milliseconds."""
        return self.config.newest_event

    @property
    def width(self) -> int:
        """Width D of the shared space."""
        return self.config.model.width

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights file."""
        return file_sha256(self.folder / WEIGHTS_FILE)

    def encode_items(self, records: Sequence[ItemRecord]) -> Tensor:
        """Content → unit vectors [n, D], by content alone; missing modalities are normal.

        Raises:
            ValueError: a release on ids alone.
        """
        if not self.config.model.towers:
            raise ValueError(
                f"{self.folder}: the release knows items by their ids alone; give zeros "
                f"[n, {self.width}] and the ids to add_ids, or read the vectors of "
                "python -m pretrain embed"
            )
        return self.encode_batch(prepare_records(records, self.preprocessors))

    @torch.inference_mode()
    def encode_batch(self, items: ItemBatch) -> Tensor:
        """Prepared content or cached features → unit vectors [n, D]; of ids alone zeros."""
        vectors: Tensor = self.model.item_encoder(items).fused_nD
        return vectors

    @torch.inference_mode()
    def add_ids(self, item_nD: Tensor, item_ids: pa.Array) -> tuple[Tensor, Tensor]:
        """Add what training learnt of these very items to their content vectors.

        Args:
            item_nD: from `encode_items`, in the order of `item_ids`.
            item_ids: ids as in the catalogue that was trained on; unknown ones stay content only.

        Returns:
            Vectors to retrieve with [n, D], and vectors as events of a history [n, D].
        """
        rows_n = torch.from_numpy(rows_of_ids(item_ids, known=self.item_ids))
        vectors = ItemVectors(item_nD, {}, item_nD.new_zeros(len(item_nD), 0))
        return self.model.encode_items(vectors, rows_n.clamp(min=0), hidden_n=rows_n < 0)

    @torch.inference_mode()
    def encode_histories(
        self,
        event_ND: Tensor,
        history_BL: Tensor,
        times_BL: Tensor,
        at_times_B: Tensor,
        *,
        users: pa.Table | None = None,
    ) -> Tensor:
        """Users' unit vectors [B, D] at a moment.

        Args:
            event_ND: vectors of all items as events of a history, from `add_ids` (or the column
                `event` that `python -m pretrain embed` writes).
            history_BL: rows of `event_ND`, oldest first, -1 after the last; longer ones keep
                their latest `history_length` events. Empty histories are fine.
            times_BL: unix milliseconds of the events.
            at_times_B: the moment; no event may be at or after it.
            users: B rows of users.parquet with the features that training read; without them
                nothing is taken to be known of the users.

        Raises:
            ValueError: an event at or after its moment.
        """
        length = self.config.model.user.history_length
        mask_BL = history_BL >= 0
        late_B = (mask_BL & (times_BL >= at_times_B[:, None])).any(1)
        if bool(late_B.any()):
            row = int(late_B.nonzero()[0])
            raise ValueError(
                f"history {row} holds an event at or after its moment {int(at_times_B[row])} ms; "
                "a history holds what happened strictly before"
            )
        if history_BL.shape[1] > length:
            count_B1 = mask_BL.sum(1, keepdim=True)
            place_BL = (count_B1 - length).clamp(min=0) + torch.arange(length)
            inside_BL = place_BL < count_B1
            place_BL = place_BL.clamp(max=history_BL.shape[1] - 1)
            history_BL = torch.where(inside_BL, history_BL.gather(1, place_BL), -1)
            times_BL = torch.where(inside_BL, times_BL.gather(1, place_BL), 0)
        columns = self.config.user_columns
        if columns and users is None and not self._said_unknown:
            self._said_unknown = True
            log.warning(
                "%s reads the user features %s, and no users were given: all count as unknown",
                *(self.folder, [column.name for column in columns]),
            )
        users_BC = (
            unknown_users(len(history_BL), columns)
            if users is None
            else encode_users(users, columns)
        )
        states_BSD = self.model.encode_histories(
            event_ND, history_BL=history_BL, times_BL=times_BL, users_BC=users_BC
        )
        count_B = (history_BL >= 0).sum(1)
        return states_BSD[torch.arange(len(count_B)), count_B]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_release_files(folder: Path) -> None:
    """Refuse a folder that is no release.

    Raises:
        ValueError: it lacks a file of one.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE, ID_MAP_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder}: no {name}, so it is no released checkpoint; "
                "write one with python -m pretrain export"
            )


@dataclass(frozen=True)
class ReleaseFiles:
    """What a released folder holds, checked before anything is built by it."""

    config: ReleaseConfig
    item_ids: pa.Array
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, folder: Path) -> ReleaseFiles:
        """Read a released folder, which may come from anybody; see `release_checks.py`.

        Raises:
            ValueError: not a release, another version, damaged, or files that do not fit together.
        """
        check_release_files(folder)
        source = folder / CONFIG_FILE
        config = ReleaseConfig.from_json(source.read_bytes(), source=source)
        check_digests(folder, config.files)
        shapes = weight_shapes(folder / WEIGHTS_FILE)
        check_settings(
            {"model": dataclasses.asdict(config.model), "architectures": config.architectures},
            num_tensors=len(shapes),
            source=source,
        )
        check_shapes(lambda: build_released_model(config), expected=shapes, source=source)
        weights = load_file(folder / WEIGHTS_FILE)
        return cls(config, _read_item_ids(folder / ID_MAP_FILE, config.num_items), weights)


def _read_item_ids(path: Path, num_items: int) -> pa.Array:
    try:
        item_ids = pq.read_table(path, columns=["item_id"])["item_id"].combine_chunks()
        item_ids.validate(full=True)
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(f"{path}: cannot be read as an id map ({error}); copy it anew") from error
    if len(item_ids) != num_items or item_ids.null_count:
        raise ValueError(
            f"{path}: found {len(item_ids)} ids of which {item_ids.null_count} are missing, "
            f"expected {num_items} as in {CONFIG_FILE}; copy it anew"
        )
    return item_ids


def load_released(path: Path | str) -> Release:
    """Load a released checkpoint. Needs neither Lightning nor DeepSpeed; never unpickles.

    Raises:
        ValueError: not a release, another version, damaged, or weights that do not fit the config.
    """
    folder = Path(path)
    files = ReleaseFiles.read(folder)
    model = build_released_model(files.config)
    model.load_state_dict(files.weights)
    release = Release(files.config, folder=folder, model=model, item_ids=files.item_ids)
    if files.config.model.towers:
        _try_out(release)
    return release


def _try_out(release: Release) -> None:
    """Encode an item without content, so that a model that cannot be run is known by now.

    Raises:
        ValueError: it fails.
    """
    try:
        release.encode_items([ItemRecord(image=None, texts={}, vectors={})])
    except Exception as error:  # libraries meet any settings, and raise anything
        raise ValueError(
            f"{release.folder / CONFIG_FILE}: describes a model that cannot be run "
            f"({type(error).__name__}: {str(error)[:300]}); use the config.json that was released"
        ) from error


def build_released_model(config: ReleaseConfig) -> TwoSpaceModel:
    """The architecture of a release, weights still random."""
    backbones = {
        name: build_backbone(name, tower, saved=config.architectures[name])
        for name, tower in config.model.towers.items()
    }
    return TwoSpaceModel(
        config.model,
        backbones=backbones,
        feature_widths=config.feature_widths,
        num_items=config.num_items,
        user_columns=config.user_columns,
    )


def raw_features(
    features: Mapping[str, Tensor], presence: Mapping[str, Tensor]
) -> NDArray[np.float32]:
    """Off-the-shelf content [n, F]: unit features of all modalities, zeros where absent."""
    parts = []
    for name, features_pF in features.items():
        present_n = presence[name]
        part_nF = torch.zeros(len(present_n), features_pF.shape[1])
        if bool(present_n.any()):
            part_nF[present_n] = torch.nn.functional.normalize(features_pF.float().cpu(), dim=-1)
        parts.append(part_nF)
    return torch.cat(parts, dim=1).numpy()
