"""Batches of the toy world: what they carry, and that reading an item once changes nothing."""

from pathlib import Path

import pytest
import torch

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
