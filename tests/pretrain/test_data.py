"""Batches of the toy world: what they carry, and that reading an item once changes nothing."""

import dataclasses
import gc
import mmap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.settings import ShardConfig
from data_prep.shard import shard_dataset
from pretrain.batch import Batch
from pretrain.data import PretrainData
from pretrain.data_config import DataConfig
from pretrain.item_loader import vector_widths_of
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.objective import LossConfig, objective
from pretrain.towers import TowerConfig, build_backbone
from pretrain.user_encoder import UserEncoderConfig

TOWERS = {
    "text": TowerConfig(
        library="transformers", name="configs/toy/bert_tiny", max_tokens=24, train="frozen"
    )
}
USER = UserEncoderConfig(layers=1, heads=2, dropout=0.0, history_length=10)


@pytest.fixture(autouse=True)
def where_the_towers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


def prepared(dataset_dir: Path, encode: str) -> PretrainData:
    data = PretrainData(
        DataConfig(dataset_dir=dataset_dir, global_batch_size=12, item_pairs=8, encode=encode)
    )
    data.prepare(towers=TOWERS, user=USER)
    return data


def first_batch(data: PretrainData) -> Batch:
    return next(iter(data.train_dataloader()))


def test_a_batch_names_its_items_content_groups_and_pairs(toy_dataset: Path) -> None:
    data = prepared(toy_dataset, "distinct")
    batch = first_batch(data)
    assert batch.groups_n is not None
    assert batch.pairs_K2 is not None
    rows = batch.items.rows_n
    assert batch.groups_n.tolist() == data.groups[rows.numpy()].tolist()
    assert batch.modality_groups_n.keys() == TOWERS.keys()
    assert batch.modality_groups_n["text"].tolist() == data.modality_groups["text"][rows].tolist()
    assert data.pairs is not None
    pairs = set(zip(data.pairs.triggers.tolist(), data.pairs.targets.tolist(), strict=True))
    assert {tuple(pair) for pair in rows[batch.pairs_K2].tolist()} <= pairs
    assert data.target_probability.sum() == pytest.approx(1, abs=1e-5)


def other_later_events(config: ShardConfig, folder: Path, *, since: int) -> Path:
    """The same dataset but for the items of events from `since` on."""
    events = pq.read_table(config.interactions.path)
    place = events.schema.get_field_index(config.interactions.item)
    items = events[config.interactions.item].to_numpy().copy()
    later = events[config.interactions.time].cast(pa.int64()).to_numpy() >= since
    assert 0.1 < later.mean() < 0.9
    items[later] = np.random.default_rng(0).permutation(items[later])
    path = folder / "interactions.parquet"
    pq.write_table(events.set_column(place, config.interactions.item, pa.array(items)), path)
    config = dataclasses.replace(
        config,
        dataset_dir=str(folder / "dataset"),
        interactions=dataclasses.replace(config.interactions, path=str(path)),
    )
    shard_dataset(config)
    return folder / "dataset"


def test_events_of_the_validation_time_change_nothing_that_is_trained_on(
    toy_config: ShardConfig, toy_dataset: Path, tmp_path: Path
) -> None:
    cutoffs = prepared(toy_dataset, "distinct").dataset.manifest.cutoffs
    dataset_dir = other_later_events(toy_config, tmp_path, since=cutoffs.valid_start)
    ours, theirs = (prepared(one, "distinct") for one in (toy_dataset, dataset_dir))
    assert not np.array_equal(ours.valid_events.item_rows, theirs.valid_events.item_rows)
    assert ours.pairs is not None
    assert theirs.pairs is not None
    for name in ("triggers", "targets", "weights"):
        np.testing.assert_array_equal(getattr(ours.pairs, name), getattr(theirs.pairs, name))
    for name in ("item_probability", "target_probability", "pair_probability"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    one, other = first_batch(ours), first_batch(theirs)
    assert torch.equal(one.items.rows_n, other.items.rows_n)
    for name in ("history_BL", "times_BL", "targets_BT", "states_BT", "pairs_K2"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert int(ours.train_events.times.max()) < cutoffs.valid_start


def test_encoding_every_reference_gives_the_loss_of_encoding_each_item_once(
    toy_dataset: Path,
) -> None:
    losses, sizes = [], []
    for encode in ("distinct", "every_reference"):
        data = prepared(toy_dataset, encode)
        torch.manual_seed(0)
        given = vector_widths_of(data.dataset)
        backbones = {n: build_backbone(n, t, given_width=given.get(n)) for n, t in TOWERS.items()}
        model = TwoSpaceModel(
            ModelConfig(towers=TOWERS, width=16, dropout=0.0, user=USER, ids="both"),
            backbones=backbones,
            feature_widths={name: one.width for name, one in backbones.items()},
            num_items=data.dataset.num_items,
        )
        config, batch = LossConfig(behaviour_weight=0.5), first_batch(data)
        found = objective(
            model, batch, config=config, item_probability_N=data.target_probability, step=0,
            state=config.state(width=16, temperature=0.07),
            pair_probability_N=data.pair_probability,
        )  # fmt: skip
        found.loss.backward()
        losses.append((found.loss.detach(), model.user_encoder.out.weight.grad))
        sizes.append(len(batch.items.rows_n))
    assert sizes[1] > 1.2 * sizes[0]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)


def test_memory_is_flat_over_epochs(toy_dataset: Path) -> None:
    data = PretrainData(DataConfig(dataset_dir=toy_dataset, global_batch_size=12, item_pairs=8))
    towers = TOWERS | {"image": TowerConfig(library="open_clip", name="x", image_size=128)}
    data.prepare(towers=towers, user=USER)
    loader = data.train_dataloader()
    held, decoded = [], 0
    for epoch in range(6):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            decoded += batch.items.inputs["image"]["pixels"].nbytes
        del batch
        gc.collect()
        held.append(int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE)
    # The allocator settles in the first epochs. After them, what an epoch decodes is gone again.
    assert held[5] - held[1] < decoded / 6 / 10, held
