"""Mutated releases: loaded right, or refused with a clear error; nothing in them is ever run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from data_prep.dataset import open_dataset
from pretrain.export import describe_run, with_digests
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.model import ModelConfig, TwoSpaceModel
from pretrain.release import load_released
from pretrain.release_config import CONFIG_FILE, ID_MAP_FILE, WEIGHTS_FILE, signed
from pretrain.towers import TowerConfig, build_backbone
from pretrain.user_encoder import UserEncoderConfig

ROOT = Path(__file__).parents[2]
TOY = ROOT / "configs" / "toy"
PEAK_MB = 2500


@pytest.fixture(scope="module")
def intact(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of small towers with random weights."""
    folder = tmp_path_factory.mktemp("release") / "intact"
    write_release(folder, toy_dataset)
    return folder


@pytest.fixture
def copy(intact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(intact, tmp_path / "copy"))


def write_release(folder: Path, dataset_dir: Path) -> None:
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
    intact: Path, tmp_path: Path, num_cases: int
) -> None:
    shutil.copytree(intact, tmp_path / "intact")
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


@pytest.mark.parametrize("name", [WEIGHTS_FILE, ID_MAP_FILE, "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_found_wherever_it_is(copy: Path, name: str) -> None:
    payload = bytearray((copy / name).read_bytes())
    payload[-9] ^= 1
    (copy / name).write_bytes(payload)
    with pytest.raises(ValueError, match=rf"{name}: found another content than was released"):
        load_released(copy)


def test_a_value_altered_by_hand_is_found(copy: Path) -> None:
    document = json.loads((copy / CONFIG_FILE).read_text())
    document["newest_event"] -= 1  # the guard against looking ahead would be blind
    (copy / CONFIG_FILE).write_text(json.dumps(document))
    with pytest.raises(ValueError, match="found values other than were written"):
        load_released(copy)


def change(document: dict[str, Any], keys: str, value: object) -> None:
    *way, last = keys.split("/")
    for key in way:
        document = document[key]
    document[last] = value


TEXT = "architectures/text/transformers_config"


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (f"{TEXT}/auto_map", {"AutoModel": "evil.Evil"}, "which names code to be fetched"),
        (f"{TEXT}/attn_implementation", "somebody/kernel", "which names code to be fetched"),
        (f"{TEXT}/num_hidden_layers", 10**9, r"found 1000000000, but the weights have \d+ tensors"),
        (f"{TEXT}/hidden_size", 10**6, "weights do not fit"),
        ("model/width", 10**6, "weights do not fit"),
        ("model/width", 10**9, "describes no model that can be built"),
        ("model/width", "wide", "model.width: found 'wide', expected int"),
        ("model/user/history_length", -1, "history_length >= 1"),
        ("num_items", 10**12, "(weights do not fit|expected 1000000000000 as in config.json)"),
        ("model/towers/image/image_size", 10**6, "image_size must be 8 to 4096"),
        ("files/..~config.json", "0" * 32, "expected names inside the folder"),
    ],
)
def test_what_somebody_might_sign_is_refused_by_what_it_says(
    copy: Path, keys: str, value: object, message: str
) -> None:
    document = json.loads((copy / CONFIG_FILE).read_text())
    change(document, keys, value)
    if "files" in keys:
        document["files"] = {"../config.json": value}
    (copy / CONFIG_FILE).write_text(signed(document))
    with pytest.raises(ValueError, match=message):
        load_released(copy)
