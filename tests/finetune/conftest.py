"""A release and embeddings made by hand: finetune's tests need no pre-training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import pretrain
from data_prep.columns import ImpressionColumns
from data_prep.dataset import Dataset, open_dataset
from data_prep.settings import ShardConfig
from data_prep.shard import shard_dataset
from finetune.settings import FitConfig, HeadConfig, TrainConfig, TrainerConfig
from pretrain.embed import embed
from pretrain.export import describe_run
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.release_config import CONFIG_FILE, ID_MAP_FILE, WEIGHTS_FILE
from pretrain.towers import TowerConfig, build_backbone
from pretrain.user_encoder import UserEncoderConfig

WIDTH = 8
TOY = Path(__file__).parents[2] / "configs" / "toy"


class FakeRelease:
    """A user is the mean of the history's vectors."""

    fingerprint = "fake"
    width = WIDTH

    def __init__(self, newest_event: int) -> None:
        self.newest_event = newest_event

    def encode_histories(
        self,
        event_ND: Tensor,
        history_BL: Tensor,
        times_BL: Tensor,
        at_times_B: Tensor,
        *,
        users: pa.Table,
    ) -> Tensor:
        assert len(users) == len(history_BL)
        assert "age_group" in users.column_names
        assert bool(((times_BL < at_times_B[:, None]) | (history_BL < 0)).all())
        padded = torch.cat([event_ND, torch.zeros(1, event_ND.shape[1])])
        return F.normalize(padded[history_BL].sum(1), dim=1)


@pytest.fixture(scope="session")
def dataset(toy_dataset: Path) -> Dataset:
    return open_dataset(toy_dataset)


def fixed_lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(
        pa.array(values.astype(np.float32).ravel()), values.shape[1]
    )


def write_embeddings(folder: Path, item_ids: pa.ChunkedArray, *, newest_event: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    num_items = len(item_ids)
    aligned = fixed_lists(rng.normal(size=(num_items, WIDTH)))
    raw = rng.normal(size=(num_items, 5))
    raw[::7] = 0
    items = {"item_id": item_ids, "aligned": aligned, "event": aligned, "raw": fixed_lists(raw)}
    pq.write_table(pa.table(items), folder / "items.parquet")
    about = {"release_fingerprint": "fake", "newest_event": newest_event, "width": WIDTH}
    (folder / "embeddings.json").write_text(json.dumps(about))
    return folder


@pytest.fixture(scope="session")
def embeddings_dir(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    newest = dataset.manifest.newest_train_event
    folder = tmp_path_factory.mktemp("embeddings")
    return write_embeddings(folder, dataset.items["item_id"], newest_event=newest)


@pytest.fixture
def fake_release(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> FakeRelease:
    release = FakeRelease(dataset.manifest.newest_train_event)
    monkeypatch.setattr(pretrain, "load_released", lambda path: release, raising=False)
    return release


@pytest.fixture
def fit_config(toy_dataset: Path, embeddings_dir: Path, tmp_path: Path) -> FitConfig:
    return FitConfig(
        dataset_dir=toy_dataset,
        embeddings_dir=embeddings_dir,
        released=Path("released"),
        out_dir=tmp_path / "run",
        history_length=8,
        head=HeadConfig(name="deepfm", embedding_width=4, hidden=(8,)),
        train=TrainConfig(batch_size=256, max_epochs=2),
        trainer=TrainerConfig(accelerator="cpu", progress="none"),
    )


@pytest.fixture(scope="session")
def rich_dir(
    toy_config: ShardConfig, toy_raw: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The toy world with further labels and facts of the exposure, made up from its clicks."""
    folder = tmp_path_factory.mktemp("rich")
    shown = pq.read_table(toy_raw / "impressions.parquet")
    rng = np.random.default_rng(0)
    click = shown["click"].to_numpy()
    like = click * (rng.random(len(click)) < 0.5)
    arm = rng.integers(2, size=len(click))
    bought = click * rng.lognormal(3, 0.5, size=len(click))
    columns = {
        "like": like.astype(np.int8),
        "seconds": 20.0 * click + rng.normal(30, 5, size=len(click)),
        "bought": bought,
        "chance": 0.5 / (1 + shown["position"].to_numpy()),
        "arm": arm,
        "came_back": (rng.random(len(click)) < 0.2 + 0.4 * arm * click).astype(np.int8),
    }
    for name, values in columns.items():
        shown = shown.append_column(name, pa.array(values))
    pq.write_table(shown, folder / "impressions.parquet")
    impressions = ImpressionColumns(
        path=str(folder / "impressions.parquet"),
        label="click",
        features={"device": "categorical"},
        labels={"like": "binary", "came_back": "binary", "seconds": "numeric", "bought": "numeric"},
        position="position",
        propensity="chance",
        treatment="arm",
    )
    items = dataclasses.replace(toy_config.items, image=None)
    shard_dataset(
        dataclasses.replace(
            toy_config,
            impressions=impressions,
            items=items,
            dataset_dir=str(folder / "dataset"),
            extra=None,
        )
    )
    return folder / "dataset"


@pytest.fixture
def rich_config(rich_dir: Path, tmp_path: Path) -> FitConfig:
    return FitConfig(
        dataset_dir=rich_dir,
        out_dir=tmp_path / "run",
        history_length=8,
        head=HeadConfig(name="shared_bottom", embedding_width=4, hidden=(8,), tower_hidden=(4,)),
        train=TrainConfig(batch_size=256, max_epochs=2, id_lr=0.01, lr=0.01),
        trainer=TrainerConfig(accelerator="cpu", progress="none"),
    )


@pytest.fixture(scope="session")
def released(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of small towers with random weights, for what reads an item's content."""
    folder = tmp_path_factory.mktemp("released")
    towers = {
        "image": TowerConfig(library="open_clip", name=f"{TOY}/open_clip_tiny.json", image_size=32),
        "text": TowerConfig(library="transformers", name=f"{TOY}/bert_tiny", max_tokens=16),
    }
    torch.manual_seed(0)
    backbones = {name: build_backbone(name, tower) for name, tower in towers.items()}
    widths = {name: one.width for name, one in backbones.items()}
    user = UserEncoderConfig(layers=1, heads=2, history_length=8)
    config = describe_run(
        ModelConfig(towers=towers, width=WIDTH, user=user),
        dataset=dataset,
        architectures={name: one.architecture() for name, one in backbones.items()},
        feature_widths=widths,
    )
    model = TwoSpaceModel(
        config.model, backbones=backbones, feature_widths=widths, num_items=dataset.num_items
    )
    items = ItemLoader(dataset, preprocessors=preprocessors_of(dataset, towers))
    model.item_encoder.calibrate(items.load(np.arange(64)))
    save_file(model.state_dict(), folder / WEIGHTS_FILE)
    pq.write_table(dataset.items.select(["item_row", "item_id"]), folder / ID_MAP_FILE)
    text = items.preprocessors["text"]
    text.save(folder / "tokenizer")
    (folder / CONFIG_FILE).write_text(config.to_json())
    return folder


@pytest.fixture(scope="session")
def real_embeddings(released: Path, dataset: Dataset) -> Path:
    embed(released, dataset.dir, released.parent / "real_embeddings")
    return released.parent / "real_embeddings"


@pytest.fixture(scope="session")
def blind_embeddings(released: Path, dataset: Dataset) -> Path:
    embed(released, dataset.dir, released.parent / "blind", without=["image"])
    return released.parent / "blind"


@pytest.fixture
def real_config(fit_config: FitConfig, released: Path, real_embeddings: Path) -> FitConfig:
    return dataclasses.replace(fit_config, released=released, embeddings_dir=real_embeddings)
