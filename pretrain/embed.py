"""`python -m pretrain embed`: vectors of a dataset's items and users, as Parquet with ids."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor

from data_prep.dataset import Dataset, open_dataset
from data_prep.records import replace_file
from pretrain.batch import ItemBatch, inputs_of
from pretrain.feature_cache import FeatureCache
from pretrain.item_loader import ItemLoader
from pretrain.release import Release, load_released, raw_features
from pretrain.towers import Backbone, build_backbone

log = logging.getLogger(__name__)


def embed(
    released: Path,
    dataset_dir: Path,
    out_dir: Path,
    *,
    features_dir: Path | None = None,
    batch_size: int = 128,
    seed: int = 0,
    without: list[str] | None = None,
) -> None:
    """Write `items.parquet` and `users.parquet` for a dataset.

    `items.parquet`: item_row, item_id, `aligned` (in the shared space), `event` (as an event of a
    history, ids included), `raw` (off-the-shelf features of the same towers as they were before
    any pre-training, each modality at unit length, zeros where absent; a release on ids alone has
    no such column). `users.parquet`: user_row,
    user_id, `vector` as of the dataset's valid_start. Written under temporary names, then renamed;
    embeddings.json last.

    Args:
        released: released checkpoint.
        dataset_dir: dataset folder of python -m data_prep shard.
        out_dir: where the vectors go.
        features_dir: cached features of the same frozen towers, to spare running them.
        batch_size: items or users in one pass.
        seed: decides the untrained state of towers that started from random weights.
        without: modalities that are knocked out, as if every item lacked them: what do the others
            carry? Items of nothing else keep theirs. embeddings.json records it, and only
            `evaluate` takes such vectors.
    """
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    release, dataset = load_released(released), open_dataset(dataset_dir)
    _check_same_content(release, dataset)
    aligned_ND, raw_NF = _items(
        release,
        dataset,
        features_dir=features_dir,
        batch_size=batch_size,
        seed=seed,
        without=without or [],
    )
    item_ids = dataset.items["item_id"].combine_chunks()
    item_ND, event_ND = release.add_ids(aligned_ND, item_ids)
    items = pa.table(
        {
            "item_row": dataset.items["item_row"],
            "item_id": item_ids,
            "aligned": _vectors(item_ND.numpy()),
            "event": _vectors(event_ND.numpy()),
        }
    )
    if raw_NF.shape[1]:
        items = items.append_column("raw", _vectors(raw_NF))
    users = pa.table(
        {
            "user_row": dataset.users["user_row"],
            "user_id": dataset.users["user_id"],
            "vector": _vectors(_users(release, dataset, event_ND, batch_size=batch_size)),
        }
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "embeddings.json").unlink(missing_ok=True)
    for name, table in (("items", items), ("users", users)):
        temporary = out_dir / f"{name}.parquet.tmp"
        pq.write_table(table, temporary)
        temporary.replace(out_dir / f"{name}.parquet")
    about = {
        "release_fingerprint": release.fingerprint,
        "newest_event": release.newest_event,
        "width": release.width,
        "raw_width": raw_NF.shape[1],
        "without": sorted(set(without or [])),
    }
    replace_file(out_dir / "embeddings.json", json.dumps(about, indent=2).encode())
    log.info("%s: %d items, %d users", out_dir, len(items), len(users))


def _check_same_content(release: Release, dataset: Dataset) -> None:
    """Refuse a dataset whose content the towers cannot read."""
    modalities = dataset.manifest.modalities
    for name in release.config.model.towers:
        width = release.config.vector_widths.get(name)
        if name not in modalities or modalities[name].get("width") != width:
            raise ValueError(
                f"{dataset.dir}: the release {release.folder} reads {name!r}"
                f"{f' of width {width}' if width else ''}, the dataset has {modalities}; map that "
                "column in the settings of python -m data_prep shard"
            )


def _untrained(release: Release, *, seed: int) -> dict[str, Backbone]:
    """Each tower as it was before pre-training; frozen ones are that still."""
    backbones: dict[str, Backbone] = {}
    for name, tower in release.config.model.towers.items():
        kept = release.model.item_encoder.backbones[name]
        assert isinstance(kept, Backbone)
        if name in release.config.tuned_towers:
            torch.manual_seed(seed)
            tower = dataclasses.replace(tower, train="frozen")  # adapters start at nothing
            kept = build_backbone(
                name, tower, given_width=release.config.vector_widths.get(name)
            ).eval()
        backbones[name] = kept
    return backbones


@torch.inference_mode()
def _items(
    release: Release,
    dataset: Dataset,
    *,
    features_dir: Path | None,
    batch_size: int,
    seed: int,
    without: list[str],
) -> tuple[Tensor, NDArray[np.float32]]:
    """Aligned vectors [N, D] by content alone, and raw features [N, F]."""
    if unknown := [name for name in without if name not in release.config.model.towers]:
        raise ValueError(
            f"without: found {unknown}, expected modalities of {release.folder}: "
            f"{list(release.config.model.towers)}"
        )
    cached = None
    if features_dir is not None:
        if tuned := sorted(release.config.tuned_towers):
            raise ValueError(
                f"{features_dir}: the towers {tuned} of {release.folder} were tuned before the "
                "features were cached, so these are not what `raw` should hold; take features_dir "
                "out"
            )
        cached = FeatureCache.open(
            features_dir, dataset=dataset, towers=release.config.model.towers
        )
    items = ItemLoader(dataset, preprocessors=release.preprocessors, features=cached)
    untrained = {} if cached else _untrained(release, seed=seed)
    aligned, raw = [], []
    for start in track(range(0, dataset.num_items, batch_size), description="items"):
        batch = items.load(np.arange(start, min(start + batch_size, dataset.num_items)))
        found = {
            name: inputs["features"] if cached else untrained[name](**inputs)
            for name, inputs in batch.inputs.items()
        }
        aligned.append(release.encode_batch(knocked_out(batch, without)))
        if found:
            raw.append(raw_features(found, batch.presence))
    raw_NF = np.concatenate(raw) if raw else np.zeros((dataset.num_items, 0), np.float32)
    return torch.cat(aligned), raw_NF


def knocked_out(batch: ItemBatch, without: list[str]) -> ItemBatch:
    """The same items as if they lacked these modalities, but for those that have nothing else."""
    kept = [name for name in batch.presence if name not in without]
    if not without or not kept:
        return batch
    bare_n = ~torch.stack([batch.presence[name] for name in kept]).any(0)
    presence, inputs = dict(batch.presence), dict(batch.inputs)
    for name in without:
        had_n = batch.presence[name]
        presence[name] = had_n & bare_n
        if bool(had_n.any()) and bool(presence[name].any()):
            inputs[name] = inputs_of(inputs[name], bare_n[had_n])
    return ItemBatch(rows_n=batch.rows_n, inputs=inputs, presence=presence)


def _users(
    release: Release, dataset: Dataset, event_ND: Tensor, *, batch_size: int
) -> NDArray[np.float32]:
    """User vectors [U, D] as of valid_start."""
    events = dataset.events().positives()
    at = dataset.manifest.cutoffs.valid_start
    length = release.config.model.user.history_length
    vectors = []
    for start in track(range(0, dataset.num_users, batch_size), description="users"):
        rows = np.arange(start, min(start + batch_size, dataset.num_users))
        moments = np.full(len(rows), at, np.int64)
        history, times = events.histories(rows, moments, length=length)
        user_BD = release.encode_histories(
            event_ND,
            torch.from_numpy(history),
            torch.from_numpy(times),
            torch.from_numpy(moments),
            users=dataset.users.slice(start, len(rows)),
        )
        vectors.append(user_BD.numpy())
    return np.concatenate(vectors)


def _vectors(array: NDArray[np.float32]) -> pa.FixedSizeListArray:
    """[n, D] → one list of D numbers a row."""
    return pa.FixedSizeListArray.from_arrays(
        pa.array(np.ascontiguousarray(array, np.float32).ravel()), array.shape[1]
    )
