"""Real trainings on two processes, from the shipped settings to a release without Lightning."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pretrain.checkpoint_choice import find_checkpoint
from pretrain.embed import embed
from pretrain.export import export, read_weights
from pretrain.run_log import read_events

pytestmark = pytest.mark.ranks
SCRIPT = Path(__file__).with_name("two_rank_fits.py")
ROOT = Path(__file__).parents[2]

WITHOUT_LIGHTNING = """
import sys
for name in ("pytorch_lightning", "lightning_fabric", "deepspeed", "pickle5"):
    sys.modules[name] = None
import numpy as np
from pathlib import Path
from data_prep.dataset import open_dataset
from pretrain import load_released
release, dataset = load_released(sys.argv[1]), open_dataset(Path(sys.argv[2]))
content = dataset.content()
vectors = release.encode_items([content.read(row) for row in range(dataset.num_items)])
np.save(sys.argv[3], vectors.numpy())
"""


def run_python(*words: str) -> None:
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, text=True, capture_output=True, timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def runs(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fits")
    ids = pq.read_table(toy_dataset / "items.parquet")["item_id"].combine_chunks()[::2]
    vectors = np.random.default_rng(0).normal(size=(len(ids), 6)).tolist()
    pq.write_table(pa.table({"item_id": ids, "vector": vectors}), out / "id_vectors.parquet")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    run_python(*torchrun, str(SCRIPT), str(toy_dataset), str(out))
    return out


@pytest.fixture(scope="module")
def released(runs: Path, toy_dataset: Path) -> Path:
    out = runs / "released"
    export(runs / "zero2", out, dataset_dir=toy_dataset, checkpoint="last")
    return out


def column(run_dir: Path, name: str) -> list[float]:
    with (run_dir / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3_bf16", "ddp"])
def test_every_strategy_trains_and_says_done(runs: Path, name: str) -> None:
    run_dir = runs / name
    assert (run_dir / "DONE").exists()
    assert (run_dir / "config.yaml").exists()
    losses = column(run_dir, "train/loss")
    assert np.isfinite(losses).all()
    assert len(column(run_dir, "val/recall@20_cold")) >= 1
    done = (run_dir / "DONE").read_text().split()
    assert find_checkpoint(run_dir, which="last").name == f"step-{done[1]}"


def test_ddp_and_zero_learn_the_same(runs: Path) -> None:
    np.testing.assert_allclose(
        column(runs / "ddp", "train/loss"), column(runs / "zero2", "train/loss"), rtol=2e-3
    )


@pytest.mark.parametrize("name", ["zero2", "everything"])
def test_a_signal_in_one_rank_stops_both_and_is_told_from_a_finished_run(
    runs: Path, name: str
) -> None:
    assert (runs / f"{name}_resumed_0").read_text() == "True"
    assert (runs / f"{name}_resumed_1").read_text() == "True"


def test_the_run_log_tells_both_lives(runs: Path) -> None:
    events = read_events(runs / "zero2_resumed")
    told = [(one["event"], one["rank"]) for one in events]
    rare = [one for one in told if one[0] not in ("save", "validation")]
    first, second = [("start", 0), ("signal", 1), ("end", 0)], [("start", 0), ("resume", 0)]
    assert rare == [*first, *second, ("end", 0)]
    assert told.index(("save", 0)) < told.index(("end", 0))
    (resume,) = [one for one in events if one["event"] == "resume"]
    saves = {one["step"]: one["file"] for one in events if one["event"] == "save"}
    assert saves[resume["step"]] == f"step-{resume['step']}"
    assert [one["life"] for one in events if one["event"] == "start"] == [1, 2]
    assert [one["status"] for one in events if one["event"] == "end"] == ["stopped", "done"]
    last = [one for one in events if one["event"] == "validation"][-1]
    assert "val/recall@20" in last["metrics"]


@pytest.mark.parametrize("name", ["zero2", "everything"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(runs: Path, name: str) -> None:
    """Bit for bit, with dropout; with everything on, the queue of past vectors too."""
    whole = read_weights(find_checkpoint(runs / name, which="last"))
    resumed = read_weights(find_checkpoint(runs / f"{name}_resumed", which="last"))
    assert whole.keys() == resumed.keys()
    for key, tensor in whole.items():
        assert torch.equal(resumed[key], tensor), key


def test_zero3_learns_the_same_with_everything_on(runs: Path) -> None:
    np.testing.assert_allclose(
        column(runs / "everything_3", "train/loss"),
        column(runs / "everything", "train/loss"),
        rtol=2e-3,
    )
    assert len(column(runs / "everything_3", "train/collaborative_loss")) > 0


def test_a_release_loads_without_lightning_and_gives_the_vectors_of_training(
    runs: Path, released: Path, toy_dataset: Path
) -> None:
    out = runs / "vectors.npy"
    run_python("-c", WITHOUT_LIGHTNING, str(released), str(toy_dataset), str(out))
    np.testing.assert_allclose(
        np.load(out), np.load(runs / "zero2" / "item_vectors.npy"), atol=1e-5
    )


def test_a_zero3_bf16_run_exports_too(runs: Path, toy_dataset: Path) -> None:
    export(runs / "zero3_bf16", runs / "released_3", dataset_dir=toy_dataset, checkpoint="last")
    assert (runs / "released_3" / "config.json").exists()


def test_embed_writes_unit_vectors_with_ids(runs: Path, released: Path, toy_dataset: Path) -> None:
    out = runs / "embeddings"
    embed(released, toy_dataset, out)
    items, users = (pq.read_table(out / f"{name}.parquet") for name in ("items", "users"))
    catalogue = pq.read_table(toy_dataset / "items.parquet")
    assert items["item_id"].to_pylist() == catalogue["item_id"].to_pylist()
    for table, name in ((items, "aligned"), (users, "vector")):
        vectors = np.stack(table[name].to_numpy())
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    about = json.loads((out / "embeddings.json").read_text())
    manifest = json.loads((toy_dataset / "manifest.json").read_text())
    assert about["newest_event"] == manifest["newest_train_event"]
    assert about["newest_event"] < manifest["cutoffs"]["valid_start"]
