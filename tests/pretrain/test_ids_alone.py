"""A model without towers, the control of what content adds: every command works or says why not."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.dataset import Dataset, open_dataset
from finetune.embeddings import Embeddings
from pretrain.batch import Batch, ItemBatch
from pretrain.cli import main, parse_run
from pretrain.evaluate import evaluate
from pretrain.item_encoder import ItemEncoder
from pretrain.lightning_cli import PretrainCLI
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.objective import LossConfig, Objective, objective
from pretrain.release import load_released
from pretrain.semantic_ids import semantic_ids
from pretrain.towers import TowerConfig
from pretrain.user_encoder import UserEncoderConfig

ALONE = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false --run.monitor null
--data.config.global_batch_size 32 --data.config.targets_per_sample 4
--data.config.valid_queries 50 --trainer.log_every_n_steps 1 --trainer.accelerator cpu
--model.encoders.width 16 --model.encoders.ids both --model.encoders.id_dropout 0
--model.encoders.towers {}
""".split()
CONFIG = ModelConfig(
    width=8, ids="both", id_dropout=0.0, user=UserEncoderConfig(layers=1, heads=2, dropout=0.0)
)


def words_of(dataset_dir: Path, run_dir: Path, *more: str) -> list[str]:
    folders = ["--run.dir", str(run_dir), "--data.config.dataset_dir", str(dataset_dir)]
    return [*ALONE, *folders, *more]


def fit(dataset_dir: Path, run_dir: Path, *more: str) -> PretrainCLI:
    cli = parse_run(words_of(dataset_dir, run_dir, *more), command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def small_model() -> TwoSpaceModel:
    torch.manual_seed(0)
    return TwoSpaceModel(CONFIG, backbones={}, feature_widths={}, num_items=9)


def small_loss(model: TwoSpaceModel, **settings: object) -> Objective:
    items = ItemBatch(rows_n=torch.tensor([5, 0, 7, 3]), inputs={}, presence={})
    batch = Batch(
        items=items,
        history_BL=torch.tensor([[0, 1], [2, -1]]),
        times_BL=torch.tensor([[10, 20], [10, 0]]),
        targets_BT=torch.tensor([[1], [3]]),
        states_BT=torch.tensor([[1], [1]]),
    )
    config = LossConfig(**settings)  # type: ignore[arg-type]
    return objective(
        model, batch, config=config, item_probability_N=torch.full((9,), 1 / 9), step=0
    )


@pytest.fixture(scope="module")
def dataset(toy_dataset: Path) -> Dataset:
    return open_dataset(toy_dataset)


@pytest.fixture(scope="module")
def world(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run`, `released` and `embeddings` of a training of some steps."""
    folder = tmp_path_factory.mktemp("ids_alone")
    words = ("--trainer.max_steps", "6", "--run.health.every_steps", "1")
    fit(toy_dataset, folder / "run", *words)
    data = ("--dataset_dir", str(toy_dataset))
    released = str(folder / "released")
    run = ("--run_dir", str(folder / "run"), "--checkpoint", "last")
    main(["export", *run, *data, "--out_dir", released])
    main(["embed", "--released", released, *data, "--out_dir", str(folder / "embeddings")])
    return folder


@pytest.mark.parametrize("ids", ["none", "history"])
def test_a_model_without_towers_needs_ids_in_both_places(ids: str) -> None:
    with pytest.raises(ValueError, match=f"towers is empty and ids is '{ids}'.* set ids to 'both'"):
        ModelConfig(ids=ids, id_dropout=0.0)  # type: ignore[arg-type]


def test_a_hidden_id_would_leave_nothing() -> None:
    with pytest.raises(ValueError, match=r"id_dropout is 0.5 and towers is empty.* to 0"):
        ModelConfig(ids="both")


def test_an_item_is_the_direction_of_its_id_and_a_forgotten_one_has_none() -> None:
    model = small_model()
    model.forget_ids(torch.tensor([2, 6]))
    rows_n = torch.tensor([2, 0])
    items = ItemBatch(rows_n=rows_n, inputs={}, presence={})
    item_nD, event_nD = model.encode_items(model.item_encoder(items), rows_n)
    assert model.ids is not None
    torch.testing.assert_close(event_nD, model.ids.weight[rows_n])
    torch.testing.assert_close(item_nD.norm(dim=1), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(item_nD[1] * event_nD[1].norm(), event_nD[1])


def test_ids_start_about_as_long_as_content() -> None:
    ids = TwoSpaceModel(CONFIG, backbones={}, feature_widths={}, num_items=2000).ids
    assert ids is not None
    assert float(ids.weight.norm(dim=1).mean()) == pytest.approx(1, abs=0.05)


def test_no_parameter_of_the_item_encoder_is_left_without_a_gradient() -> None:
    model = small_model()
    small_loss(model).loss.backward()
    unused = {name for name, one in model.named_parameters() if one.grad is None}
    assert not list(model.item_encoder.parameters())
    assert unused == {"pair_temperature.log_scale"}  # as with one tower


def test_chunks_and_dropped_modalities_change_nothing_where_there_are_none() -> None:
    model = small_model()
    plain = small_loss(model).loss
    torch.testing.assert_close(small_loss(model, encode_chunk=2).loss, plain)
    torch.testing.assert_close(small_loss(model, gate_balance_weight=1.0).loss, plain)


def test_training_moves_the_ids_it_sees_and_no_others(world: Path, dataset: Dataset) -> None:
    seen = dataset.items["train_count"].to_numpy() > 0
    assert 0 < seen.sum() < len(seen)
    items = pq.read_table(world / "embeddings" / "items.parquet")
    length = np.linalg.norm(np.stack(items["aligned"].to_numpy()), axis=1)
    np.testing.assert_allclose(length, seen.astype(float), atol=1e-5)
    assert items.column_names == ["item_row", "item_id", "aligned", "event"]
    about = json.loads((world / "embeddings" / "embeddings.json").read_text())
    assert about["raw_width"] == 0


def test_a_release_knows_ids_and_refuses_content(world: Path, dataset: Dataset) -> None:
    release = load_released(world / "released")
    items = pq.read_table(world / "embeddings" / "items.parquet")
    known = dataset.items["item_id"].combine_chunks().slice(0, 5)
    ids = pa.concat_arrays([known, pa.array([-2, -1]).cast(known.type)])
    item_nD, _ = release.add_ids(torch.zeros(7, release.width), ids)
    expected = np.stack(items["aligned"].to_numpy()[:5])
    np.testing.assert_allclose(item_nD[:5], expected, atol=1e-6)
    assert not item_nD[5:].any()
    with pytest.raises(ValueError, match="knows items by their ids alone"):
        release.encode_items([dataset.content().read(0)])
    assert "add_ids" in (world / "released" / "README.md").read_text()


def test_it_is_evaluated_quantised_and_reported(
    world: Path, dataset: Dataset, tmp_path: Path
) -> None:
    ids = dataset.items["item_id"].to_pylist()
    cases = {
        "user_id": list(range(30)),
        "history": [ids[number : number + 3] for number in range(30)],
        "targets": [[ids[number + 50]] for number in range(30)],
    }
    pq.write_table(pa.table(cases), tmp_path / "cases.parquet")
    vectors, released = [world / "embeddings" / "items.parquet"], world / "released"
    found = evaluate(
        tmp_path / "cases.parquet", tmp_path / "m.json", vectors=vectors, released=released, k=50
    )
    assert list(found["catalogue"]) == ["ours"]
    semantic_ids(world / "embeddings", dataset.dir, tmp_path / "codes", levels=2, num_codes=4)
    with pytest.raises(ValueError, match=r"expected raw .*choose column: aligned"):
        semantic_ids(world / "embeddings", dataset.dir, tmp_path / "codes", column="raw")
    assert (tmp_path / "codes" / "ids.parquet").is_file()
    words = ["--run_dir", str(world / "run"), "--embeddings_dir", str(world / "embeddings")]
    page = tmp_path / "report.html"
    main(["report", *words, "--dataset_dir", str(dataset.dir), "--out", str(page)])
    assert "none: ids alone" in page.read_text()


def test_the_ladder_says_that_there_is_no_raw_content(world: Path, dataset: Dataset) -> None:
    embeddings = Embeddings.open(world / "embeddings", dataset)
    assert embeddings.item_vectors("aligned").shape == (dataset.num_items + 1, 16)
    with pytest.raises(ValueError, match="has no raw: leave that rung out"):
        embeddings.item_vectors("raw")


def test_it_is_a_start_of_its_own_kind_only(world: Path, toy_dataset: Path) -> None:
    start = ("--model.reuse.warm_start", str(world / "released"))
    begun = fit(toy_dataset, world / "on", "--trainer.max_epochs", "0", *start)
    assert begun.model.model is not None
    ids = begun.model.model.ids
    released = load_released(world / "released").model.ids
    assert ids is not None
    assert released is not None
    torch.testing.assert_close(ids.weight, released.weight)
    tower = {"text": {"library": "transformers", "name": "configs/toy/bert_tiny"}}
    words = (*start, "--model.encoders.towers", json.dumps(tower), "--trainer.max_epochs", "0")
    with pytest.raises(ValueError, match=r"model\.encoders\.towers\.text\.library: found None"):
        fit(toy_dataset, world / "other", *words)


def test_cached_features_are_refused(
    toy_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(toy_dataset, tmp_path / "run", "--data.config.features_dir", str(tmp_path))
    for command, said in (("features", "there are no features"), ("fit", "without towers")):
        with pytest.raises(SystemExit):
            main([command, *words])
        assert said in capsys.readouterr().err


def test_a_tower_still_fuses() -> None:
    encoder = ItemEncoder({}, feature_widths={"text": 4}, width=8, dropout=0.0)
    assert encoder.fusion is not None
    assert ModelConfig(towers={"text": TowerConfig(library="given")}).ids == "history"
