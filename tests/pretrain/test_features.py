"""Cached features: many processes, a stop in between, and never those of other weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data_prep.dataset import open_dataset
from pretrain import feature_parts, features
from pretrain.batch import ItemBatch
from pretrain.cli import parse_run
from pretrain.data_config import DataConfig
from pretrain.export import export
from pretrain.feature_cache import FeatureCache
from pretrain.feature_parts import FeatureParts, Share
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.model import ModelConfig
from pretrain.release import load_released
from pretrain.towers import TowerConfig, build_backbone

CLIP = "configs/toy/open_clip_tiny.json"
TOWERS = {
    "image": TowerConfig(library="open_clip", name=CLIP, image_size=32, train="frozen"),
    "text": TowerConfig(
        library="transformers", name="configs/toy/bert_tiny", max_tokens=16, train="frozen"
    ),
}
MODEL = ModelConfig(towers=TOWERS)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_parts, "PART_ROWS", 50)


def settings(dataset: Path, out: Path, *, seed: int = 0) -> DataConfig:
    return DataConfig(dataset_dir=dataset, features_dir=out, seed=seed)


def compute(config: DataConfig, *, share: tuple[int, int], patch: pytest.MonkeyPatch) -> None:
    patch.setenv("RANK", str(share[0]))
    patch.setenv("WORLD_SIZE", str(share[1]))
    features.compute_features(MODEL, config=config)


def arrays(out: Path) -> dict[str, np.ndarray]:
    return {path.name: np.load(path) for path in sorted(out.glob("*.npy"))}


@pytest.fixture(scope="module")
def plain(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("features") / "plain"
    features.compute_features(MODEL, config=settings(toy_dataset, out))
    return out


def test_features_are_those_of_the_towers(plain: Path, toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    cache = FeatureCache.open(plain, dataset=dataset, towers=TOWERS)
    items = ItemLoader(dataset, preprocessors=preprocessors_of(dataset, TOWERS))
    rows = np.array([3, 77, 200, 239])
    batch, cached = items.load(rows), cache.load(rows)
    for name, tower in TOWERS.items():
        torch.manual_seed(0)
        with torch.inference_mode():
            expected = build_backbone(name, tower).eval()(**batch.inputs[name])
        torch.testing.assert_close(cached.inputs[name]["features"], expected, atol=2e-3, rtol=2e-3)
        assert torch.equal(cached.presence[name], batch.presence[name])
    assert not (plain / "parts").exists()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_three_processes_in_any_order_give_what_one_gives(
    order: tuple[int, ...],
    plain: Path,
    toy_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = settings(toy_dataset, tmp_path)
    for number in order:
        assert not (tmp_path / "features.json").exists()
        compute(config, share=(number, 3), patch=monkeypatch)
    assert (tmp_path / "features.json").exists()
    expected = arrays(plain)
    found = arrays(tmp_path)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-3, err_msg=name)


def test_after_a_stop_only_what_is_missing_is_computed(
    toy_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(toy_dataset, tmp_path)
    done: list[tuple[str, int]] = []
    compute_part = features._compute_part

    def stop_after_three(name: str, part: int, **named: object) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((name, part))
        compute_part(name, part, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(features, "_compute_part", stop_after_three)
        with pytest.raises(KeyboardInterrupt):
            compute(config, share=(0, 1), patch=patch)
    assert not (tmp_path / "features.json").exists()

    again: list[tuple[str, int]] = []

    def count(name: str, part: int, **named: object) -> None:
        again.append((name, part))
        compute_part(name, part, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "_compute_part", count)
    compute(config, share=(0, 2), patch=monkeypatch)  # on another number of processes too
    compute(config, share=(1, 2), patch=monkeypatch)
    assert set(again).isdisjoint(done)
    assert len(again) + len(done) == 2 * 5
    compute(config, share=(0, 1), patch=monkeypatch)
    assert len(again) + len(done) == 2 * 5  # all was there

    before = arrays(tmp_path)["image.npy"]
    compute(settings(toy_dataset, tmp_path, seed=1), share=(0, 1), patch=monkeypatch)
    assert len(again) + len(done) == 4 * 5  # other weights, other features
    assert np.abs(arrays(tmp_path)["image.npy"] - before).max() > 0.01


def test_a_share_is_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert Share.of_launcher() == Share(0, 1)
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert Share.of_launcher() == Share(0, 1)  # a batch script, not a task of srun
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert Share.of_launcher() == Share(1, 4)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert Share.of_launcher() == Share(0, 2)


def test_features_of_tuned_towers_or_learnt_pools_are_refused(tmp_path: Path) -> None:
    for one in ({"train": "lora"}, {"train": "frozen", "frames_pool": "attention"}):
        tower = TowerConfig(library="open_clip", name=CLIP, **one)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"\['frames'\] are tuned"):
            features.compute_features(
                ModelConfig(towers={"frames": tower}), config=settings(tmp_path, tmp_path)
            )


class Given:
    """Vectors as a tower and as a loader, of 100 items in two parts."""

    def __init__(self, vectors: torch.Tensor) -> None:
        self.vectors = vectors

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        return vector

    def load(self, rows: np.ndarray) -> ItemBatch:
        rows_n = torch.from_numpy(rows)
        return ItemBatch(
            rows_n=rows_n,
            inputs={"given": {"vector": self.vectors[rows_n]}},
            presence={"given": torch.ones(len(rows_n), dtype=torch.bool)},
        )


def join(vectors: torch.Tensor, out: Path) -> np.ndarray:
    given = Given(vectors)
    parts = FeatureParts(out / "parts", len(vectors), vectors.shape[1])
    (out / "parts").mkdir(parents=True)
    for part in range(len(parts)):
        features._compute_part("given", part, backbone=given, items=given, out=parts)  # type: ignore[arg-type]
    assert parts.join(out, name="given") == len(vectors)
    return np.load(out / "given.npy")


def test_vectors_beyond_float16_are_kept_as_they_are(tmp_path: Path) -> None:
    vectors = torch.linspace(-1, 1, 300).view(100, 3)
    small = join(vectors, tmp_path / "small")
    assert small.dtype == np.float16
    vectors[60, 1] = 70_000.0  # in the second part only
    large = join(vectors, tmp_path / "large")
    assert large.dtype == np.float32
    assert large[60].tolist() == vectors[60].tolist()
    cache = FeatureCache({"given": large}, {"given": np.ones(100, bool)})
    assert torch.equal(cache.load(np.array([60])).inputs["given"]["features"], vectors[60:61])


def test_features_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    vectors = torch.ones(100, 3)
    vectors[70, 2] = float("inf")
    with pytest.raises(ValueError, match="not finite for item row 70"):
        join(vectors, tmp_path)


def test_a_release_holds_only_the_towers_of_its_run(
    plain: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    """Features of more towers serve a run with fewer."""
    text = {"library": "transformers", "name": "configs/toy/bert_tiny", "max_tokens": 16}
    words = f"""--config configs/toy/pretrain.yaml --run.dir {tmp_path} --run.wandb off
    --run.monitor null --run.progress_bar false --data.config.dataset_dir {toy_dataset}
    --data.config.features_dir {plain} --trainer.max_steps 1 --trainer.accelerator cpu
    --trainer.limit_val_batches 0 --data.config.global_batch_size 8"""
    towers = json.dumps({"text": text | {"train": "frozen"}})
    cli = parse_run([*words.split(), "--model.encoders.towers", towers], command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    export(tmp_path, tmp_path / "released", dataset_dir=toy_dataset, checkpoint="last")
    release = load_released(tmp_path / "released")
    assert list(release.model.item_encoder.backbones) == ["text"]
    assert list(release.config.architectures) == ["text"]
    cached = load_file(plain / "backbones.safetensors")
    kept = {name for name in release.model.state_dict() if ".backbones." in name}
    assert kept == {name for name in cached if ".backbones.text." in name}
    for name in kept:
        torch.testing.assert_close(release.model.state_dict()[name], cached[name])


@pytest.mark.ranks
def test_torchrun_starts_them_at_once(plain: Path, toy_dataset: Path, tmp_path: Path) -> None:
    towers = (
        '{"image": {"library": "open_clip", "name": "%s", "image_size": 32, "train": "frozen"}}'
    )
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words += ["-m", "pretrain", "features", "--config", "configs/toy/pretrain.yaml"]
    words += ["--run.dir", str(tmp_path / "run"), "--run.wandb", "off"]
    words += ["--data.config.dataset_dir", str(toy_dataset)]
    words += ["--data.config.features_dir", str(tmp_path / "out")]
    words += ["--model.encoders.towers", towers % CLIP]
    done = subprocess.run(
        [sys.executable, *words], text=True, capture_output=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "out" / "features.json").exists()
    found, expected = (np.load(out / "image.npy") for out in (tmp_path / "out", plain))
    np.testing.assert_allclose(found, expected, atol=2e-3)
