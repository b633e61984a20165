"""Mutated releases: loaded right, or refused with a clear error; nothing in them is ever run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from data_prep.dataset import open_dataset
from pretrain.export import describe_run, with_digests
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.release_config import CONFIG_FILE, ID_MAP_FILE, WEIGHTS_FILE
from pretrain.towers import TowerConfig, build_backbone
from pretrain.user_encoder import UserEncoderConfig

ROOT = Path(__file__).parents[2]
TOY = ROOT / "configs" / "toy"
PEAK_MB = 2500


def release(folder: Path, dataset_dir: Path) -> None:
    """Small towers with random weights."""
    dataset = open_dataset(dataset_dir)
    towers = {
        "image": TowerConfig(library="open_clip", name=f"{TOY}/open_clip_tiny.json", image_size=32),
        "text": TowerConfig(library="transformers", name=f"{TOY}/bert_tiny", max_tokens=16),
    }
    torch.manual_seed(0)
    backbones = {name: build_backbone(name, tower) for name, tower in towers.items()}
    widths = {name: one.width for name, one in backbones.items()}
    config = describe_run(
        ModelConfig(
            towers=towers, width=16, user=UserEncoderConfig(layers=1, heads=2, history_length=8)
        ),
        dataset=dataset,
        architectures={name: one.architecture() for name, one in backbones.items()},
        feature_widths=widths,
    )
    model = TwoSpaceModel(
        config.model, backbones=backbones, feature_widths=widths, num_items=dataset.num_items
    )
    items = ItemLoader(dataset, preprocessors=preprocessors_of(dataset, towers))
    model.item_encoder.calibrate(items.load(np.arange(16)))
    folder.mkdir()
    save_file(model.state_dict(), folder / WEIGHTS_FILE)
    pq.write_table(dataset.items.select(["item_row", "item_id"]), folder / ID_MAP_FILE)
    items.preprocessors["text"].save(folder / "tokenizer")
    (folder / CONFIG_FILE).write_text(with_digests(config, folder).to_json())


@pytest.mark.parametrize(
    "num_cases", [40, pytest.param(1000, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_mutated_releases_never_crash_run_code_or_load_wrong(
    toy_dataset: Path, tmp_path: Path, num_cases: int
) -> None:
    release(tmp_path / "intact", toy_dataset)
    command = [sys.executable, str(Path(__file__).with_name("fuzz_releases.py"))]
    done = subprocess.run(
        [*command, str(num_cases), str(tmp_path)], capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert sum(found["outcomes"].values()) == num_cases
    assert not [name for name in found["outcomes"] if "without a word" in name]
    assert found["peak_mb"] < PEAK_MB
