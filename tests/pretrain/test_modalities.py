"""All modalities at once, any subset of them an item: from raw tables to a release."""

import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from data_prep.dataset import open_dataset
from data_prep.settings import ShardConfig
from data_prep.shard import shard_dataset
from pretrain.checkpoint_choice import find_checkpoint
from pretrain.checkpoint_files import STATE_FILE
from pretrain.cli import parse_run
from pretrain.embed import embed
from pretrain.export import export
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.preprocess import build_preprocessors, prepare_records
from pretrain.release import load_released
from pretrain.release_config import ReleaseConfig
from pretrain.towers import TowerConfig

CLIP = {"library": "open_clip", "name": "configs/toy/open_clip_tiny.json", "image_size": 32}
TOWERS = {
    "image": CLIP | {"train": "top_k", "checkpointing": "blocks"},
    "frames": CLIP | {"train": "lora", "frames_pool": "attention", "max_frames": 2},
    "text": {
        "library": "transformers", "name": "configs/toy/bert_tiny", "max_tokens": 16,
        "train": "lora", "lora_rank": 2, "lora_alpha": 6.0,
    },
    "sound": {"library": "conv", "max_seconds": 0.3},
    "colour": {"library": "given"},
}  # fmt: skip


def wave(row: int) -> bytes:
    file = io.BytesIO()
    tone = 0.3 * np.sin(np.arange(1600 + 100 * (row % 7)) * (0.05 + 0.001 * row))
    soundfile.write(file, tone, 8000, format="WAV")
    return file.getvalue()


@pytest.fixture(scope="module")
def many(toy_config: ShardConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world with frames, sound and vectors, of which each item has some."""
    folder = tmp_path_factory.mktemp("many")
    items = pq.read_table(toy_config.items.path)
    pictures = items["image"].to_pylist()
    rows = range(len(items))
    frames = [[pictures[(row + k) % len(rows)] for k in range(row % 4)] for row in rows]
    frames = [[picture for picture in one if picture is not None] or None for one in frames]
    sounds = [wave(row) if row % 3 else None for row in rows]
    vectors = [[float(row % 5), 1.0, float(row % 2)] if row % 5 else None for row in rows]
    items = items.append_column("frames", pa.array(frames, pa.list_(pa.binary())))
    items = items.append_column("sound", pa.array(sounds, pa.binary()))
    items = items.append_column("colour", pa.array(vectors, pa.list_(pa.float32())))
    pq.write_table(items, folder / "items.parquet")
    columns = dataclasses.replace(
        toy_config.items, path=str(folder / "items.parquet"), frames="frames", sound="sound",
        vectors={"colour": "colour"},
    )  # fmt: skip
    dataset_dir = folder / "dataset"
    shard_dataset(dataclasses.replace(toy_config, items=columns, dataset_dir=str(dataset_dir)))
    return dataset_dir


def test_a_batch_of_every_modality_is_what_its_records_give(many: Path) -> None:
    dataset = open_dataset(many)
    towers = {name: TowerConfig(**one) for name, one in TOWERS.items()}  # type: ignore[arg-type]
    rows = [7, 200, 15, 0, 30, 11, 3]
    found = ItemLoader(dataset, preprocessors=preprocessors_of(dataset, towers)).load(rows)
    made = build_preprocessors(
        towers, text_fields=("title", "description"), vector_widths={"colour": 3}
    )
    expected = prepare_records([dataset.content().read(row) for row in rows], made)
    for name, inputs in expected.inputs.items():
        presence = found.presence[name]
        assert torch.equal(presence, expected.presence[name])
        assert 0 < int(presence.sum())
        for key, tensor in inputs.items():
            assert torch.equal(found.inputs[name][key], tensor)
    assert not all(bool(presence.all()) for presence in found.presence.values())


@pytest.fixture(scope="module")
def run_dir(many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("run")
    words = f"""--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
    --run.dir {folder} --data.config.dataset_dir {many} --trainer.max_steps 3
    --run.health.every_steps 1 --model.encoders.modality_dropout 0.3 --trainer.accelerator cpu
    --model.encoders.user.attention hstu --model.encoders.user.fusion nova
    --model.encoders.user.features ["age_group"] --model.loss.gate_balance_weight 0.1
    --trainer.limit_val_batches 1 --model.optim.warmup_steps 0 --model.optim.backbone_lr 0.05"""
    cli = parse_run([*words.split(), "--model.encoders.towers", json.dumps(TOWERS)], command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return folder


def test_a_release_of_tuned_towers_needs_no_peft_and_gives_the_vectors_of_training(
    run_dir: Path,
    many: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dataset = open_dataset(many)
    out = run_dir / "released"
    config = run_dir / "config.yaml"
    cli = parse_run(["--config", str(config)], command="fit")
    checkpoint = find_checkpoint(run_dir, which="last") / STATE_FILE
    cli.datamodule.prepare(towers=cli.model.encoders.towers, user=cli.model.encoders.user)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    cli.model._trainer = cli.trainer  # the datamodule is the trainer's
    cli.trainer.datamodule = cli.datamodule
    cli.model.configure_model()
    cli.model.load_state_dict(state)
    trained = cli.model.model.eval()
    adapters = [name for name in state if ".lora_B." in name]
    assert adapters
    assert all(state[name].abs().sum() > 0 for name in adapters)

    monkeypatch.setitem(sys.modules, "peft", None)
    export(run_dir, out, dataset_dir=many, checkpoint="last")
    release = load_released(out)
    assert not any("lora" in name for name in release.model.state_dict())
    rows = range(0, dataset.num_items, 7)
    records = [dataset.content().read(row) for row in rows]
    with torch.inference_mode():
        expected = trained.item_encoder(cli.datamodule.items.load(list(rows))).fused_nD
    torch.testing.assert_close(release.encode_items(records), expected, atol=1e-5, rtol=1e-4)

    assert release.config.model == cli.model.encoders
    assert release.config.user_columns == cli.datamodule.user_columns
    assert release.config.user_columns[0].values
    event_nD = torch.randn(5, release.width)
    history_BL, times_BL = torch.tensor([[0, 1], [2, -1]]), torch.tensor([[1, 2], [3, 0]])
    users = dataset.users.slice(0, 2)
    found = release.encode_histories(
        event_nD, history_BL, times_BL, torch.tensor([9, 9]), users=users
    )
    with torch.inference_mode():
        states = trained.encode_histories(
            event_nD, history_BL=history_BL, times_BL=times_BL,
            users_BC=cli.datamodule.users_UC[:2],
        )  # fmt: skip
    torch.testing.assert_close(found, states[torch.arange(2), torch.tensor([2, 1])])
    unknown = release.encode_histories(event_nD, history_BL, times_BL, torch.tensor([9, 9]))
    assert unknown.shape == found.shape
    assert "all count as unknown" in caplog.text

    embed(out, many, run_dir / "embeddings")
    vectors = pq.read_table(run_dir / "embeddings" / "items.parquet")["aligned"].to_pylist()
    np.testing.assert_allclose(np.array(vectors)[::7], expected, atol=1e-5)


def test_the_content_alone_of_any_subset_is_encoded(run_dir: Path, many: Path) -> None:
    out = run_dir / "released"
    if not out.exists():
        export(run_dir, out, dataset_dir=many, checkpoint="last")
    release = load_released(out)
    whole = open_dataset(many).content().read(11)
    parts = [
        dataclasses.replace(whole, frames=(), sound=None, texts={}, vectors={}),
        dataclasses.replace(whole, image=None, sound=None, texts={}, vectors={}),
        dataclasses.replace(whole, image=None, frames=(), texts={}, vectors={}),
        dataclasses.replace(whole, image=None, frames=(), sound=None, texts={}, vectors={}),
    ]
    vectors = release.encode_items([whole, *parts])
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(5))
    # All differ: the gate may lean on the picture, but never on it alone.
    apart = (vectors[:, None] - vectors).abs().amax(2)
    assert apart[~torch.eye(5, dtype=torch.bool)].min() > 1e-6


def test_the_shipped_settings_with_tuned_towers_train(toy_dataset: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    words = f"""--config configs/toy/tuned.yaml --run.wandb off --run.progress_bar false
    --run.dir {tmp_path} --data.config.dataset_dir {toy_dataset} --trainer.max_steps 2
    --trainer.limit_val_batches 1 --trainer.accelerator cpu"""
    cli = parse_run(words.split(), command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    export(tmp_path, tmp_path / "released", dataset_dir=toy_dataset, checkpoint="last")
    again = load_released(tmp_path / "released").config.model
    assert again == cli.model.encoders


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_two_ranks_train_every_modality(strategy: str, many: Path, tmp_path: Path) -> None:
    """Items that lack a modality on one rank only keep no other rank waiting."""
    pytest.importorskip("peft")
    words = f"""-m torch.distributed.run --standalone --nproc_per_node 2 -m pretrain fit
    --config configs/toy/pretrain.yaml --config configs/{strategy}.yaml --run.wandb off
    --run.progress_bar false --run.dir {tmp_path} --data.config.dataset_dir {many}
    --data.config.global_batch_size 4 --trainer.max_steps 4 --run.health.every_steps 2
    --model.encoders.modality_dropout 0.3 --model.loss.gate_balance_weight 0.1
    --model.encoders.user.attention hstu --model.encoders.user.features ["age_group"]
    --data.config.targets_per_sample 1 --trainer.limit_val_batches 1 --trainer.log_every_n_steps 1
    --trainer.accelerator cpu"""
    done = subprocess.run(
        [sys.executable, *words.split(), "--model.encoders.towers", json.dumps(TOWERS)],
        text=True, capture_output=True, timeout=600, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert (tmp_path / "DONE").exists()
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name in TOWERS:
        assert any(float(row[f"health/gradient_{name}"] or 0) > 0 for row in rows), name
    export(tmp_path, tmp_path / "released", dataset_dir=many, checkpoint="last")
    assert load_released(tmp_path / "released").config.model.towers["text"].train == "lora"


def test_a_release_written_before_these_settings_still_loads(run_dir: Path, many: Path) -> None:
    """Settings that it does not name have the values they had then."""
    entry = json.loads((run_dir / "run.json").read_text())
    for name in ("user_columns", "files", "checksum"):
        del entry[name]
    del entry["model"]["modality_dropout"]
    for name in ("attention", "fusion", "features"):
        del entry["model"]["user"][name]
    then = ("library", "name", "weights", "train", "image_size", "max_tokens", "fit")
    towers = {"text": entry["model"]["towers"]["text"]}
    entry["model"]["towers"] = {n: {k: one[k] for k in then} for n, one in towers.items()}
    config = ReleaseConfig.from_json(json.dumps(entry), source=run_dir)
    assert config.model.user.attention == "sasrec"
    assert config.model.modality_dropout == 0
    assert config.user_columns == ()
    assert ReleaseConfig.from_json(config.to_json(), source=run_dir) == config
