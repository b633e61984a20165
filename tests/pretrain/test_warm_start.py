"""Going on from an older release: what is taken over, what is new, and what is refused."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from data_prep.dataset import Dataset, open_dataset
from data_prep.settings import ShardConfig, SplitConfig
from data_prep.shard import shard_dataset
from pretrain.checkpoint_choice import find_checkpoint
from pretrain.cli import main, parse_run
from pretrain.embed import embed
from pretrain.export import export, read_weights
from pretrain.id_map import rows_of_ids
from pretrain.item_loader import ItemLoader
from pretrain.known_vectors import KnownVectors
from pretrain.lightning_cli import PretrainCLI
from pretrain.named_weights import load_exactly
from pretrain.release import Release, load_released
from pretrain.towers import TowerConfig
from pretrain.user_features import UserColumn, encode_users, keep_earlier
from pretrain.warm_start import EarlierRelease

CLIP = {"library": "open_clip", "name": "configs/toy/open_clip_tiny.json", "image_size": 32}
BERT = {"library": "transformers", "name": "configs/toy/bert_tiny", "max_tokens": 16}
TOWERS = {"image": CLIP | {"train": "top_k"}, "text": BERT | {"train": "lora", "lora_rank": 2}}
SMALL = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false --run.monitor null
--data.config.global_batch_size 32 --data.config.targets_per_sample 4
--data.config.valid_queries 50 --trainer.log_every_n_steps 1 --trainer.accelerator cpu
--model.encoders.width 16 --model.encoders.ids both --model.encoders.user.features [age_group]
--trainer.limit_val_batches 0
""".split()


def shard_part(config: ShardConfig, folder: Path, *, without: int, valid_start: str) -> Path:
    """The toy world without the items whose number leaves this rest by 5, cut at another time."""
    items = pq.read_table(config.items.path)
    kept = pa.array([number % 5 != without for number in range(len(items))])
    folder.mkdir()
    pq.write_table(items.filter(kept), folder / "items.parquet")
    shard_dataset(
        dataclasses.replace(
            config,
            dataset_dir=str(folder / "dataset"),
            items=dataclasses.replace(config.items, path=str(folder / "items.parquet")),
            split=SplitConfig(valid_start=valid_start, test_start="2025-02-21"),
        )
    )
    return folder / "dataset"


@pytest.fixture(scope="module")
def world(toy_config: ShardConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`old` and `new` datasets: each has items that the other lacks."""
    folder = tmp_path_factory.mktemp("reuse")
    shard_part(toy_config, folder / "old", without=2, valid_start="2025-02-01")
    shard_part(toy_config, folder / "new", without=3, valid_start="2025-02-15")
    return folder


def words_of(dataset_dir: Path, run_dir: Path, *more: str, towers: dict = TOWERS) -> list[str]:
    folders = ["--run.dir", str(run_dir), "--data.config.dataset_dir", str(dataset_dir)]
    return [*SMALL, *folders, "--model.encoders.towers", json.dumps(towers), *more]


def fit(dataset_dir: Path, run_dir: Path, *more: str, towers: dict = TOWERS) -> PretrainCLI:
    cli = parse_run(words_of(dataset_dir, run_dir, *more, towers=towers), command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    return cli


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def released(world: Path) -> Path:
    """Trained for some steps at a rate at which everything has moved, ids included."""
    fit(
        world / "old" / "dataset", world / "run", "--trainer.max_steps", "8",
        "--model.optim.lr", "0.01", "--model.optim.warmup_steps", "0",
    )  # fmt: skip
    out = world / "released"
    export(world / "run", out, dataset_dir=world / "old" / "dataset", checkpoint="last")
    return out


@pytest.fixture(scope="module")
def dataset(world: Path) -> Dataset:
    return open_dataset(world / "new" / "dataset")


@pytest.fixture(scope="module")
def release(released: Path) -> Release:
    return load_released(released)


@pytest.fixture(scope="module")
def started(world: Path, released: Path) -> PretrainCLI:
    """A run that has gone on from the release, before any step."""
    words = ("--trainer.max_epochs", "0", "--model.reuse.warm_start", str(released))
    return fit(world / "new" / "dataset", world / "started", *words)


@pytest.fixture(scope="module")
def embedded(world: Path, released: Path, dataset: Dataset) -> Path:
    embed(released, dataset.dir, world / "embeddings")
    return world / "embeddings"


def new_items(release: Release, dataset: Dataset) -> torch.Tensor:
    known = set(release.item_ids.to_pylist())
    return torch.tensor([one not in known for one in dataset.items["item_id"].to_pylist()])


@torch.no_grad()
def test_a_warm_started_model_gives_the_releases_vectors(
    started: PretrainCLI, release: Release, dataset: Dataset
) -> None:
    model = started.model.model
    assert model is not None
    model.eval()
    batch = ItemLoader(dataset, preprocessors=release.preprocessors).load(range(dataset.num_items))
    found = model.encode_items(model.item_encoder(batch), batch.rows_n)
    ids = dataset.items["item_id"].combine_chunks()
    expected = release.add_ids(release.encode_batch(batch), ids)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    content_only = release.encode_batch(batch)
    moved = (found[0] - content_only).norm(dim=1) > 1e-4
    new = new_items(release, dataset)
    assert 20 < int(new.sum()) < 80
    assert not bool(moved[new].any()), "a new item is its content alone"
    assert bool(moved[~new].any()), "ids have been learnt"


@torch.no_grad()
def test_a_warm_started_model_gives_the_releases_users(
    started: PretrainCLI, release: Release, dataset: Dataset
) -> None:
    model = started.model.model
    assert model is not None
    model.eval()
    events = torch.nn.functional.normalize(torch.randn(6, 16), dim=-1)
    history = torch.tensor([[0, 1, 2], [3, -1, -1], [4, 5, -1]])
    times = torch.tensor([[1, 2, 9], [4, 0, 0], [5, 7, 0]]) * 3_600_000
    users = dataset.users.slice(0, 3)
    expected = release.encode_histories(
        events, history, times, torch.full((3,), 10 * 3_600_000), users=users
    )
    states = model.encode_histories(
        events, history_BL=history, times_BL=times,
        users_BC=encode_users(users, started.datamodule.user_columns),
    )  # fmt: skip
    counts = (history >= 0).sum(1)
    torch.testing.assert_close(states[torch.arange(3), counts], expected, rtol=1e-4, atol=1e-5)
    for name in ("temperature", "pair_temperature"):
        assert getattr(model, name)() == getattr(release.model, name)()
        assert getattr(model, name)() != 1 / 0.07


def test_adapters_of_a_warm_start_adapt_the_releases_weights(
    started: PretrainCLI, release: Release
) -> None:
    """What the first run's adapters learnt is in the base, and new ones start at nothing."""
    weights = started.model.model.item_encoder.backbones["text"].state_dict()
    theirs = release.model.item_encoder.backbones["text"].state_dict()
    based = [name for name in weights if name.endswith(".base_layer.weight")]
    assert based
    for name in based:
        torch.testing.assert_close(weights[name], theirs[name.replace(".base_layer", "")])
    assert all(not bool(w.any()) for name, w in weights.items() if ".lora_B." in name)


def test_training_on_all_three_is_logged_and_recorded(
    world: Path, released: Path, embedded: Path, release: Release, dataset: Dataset
) -> None:
    run_dir = world / "everything"
    fit(
        dataset.dir, run_dir, "--trainer.max_steps", "3",
        "--model.reuse.warm_start", str(released),
        "--model.reuse.teacher", str(embedded), "--model.loss.distil_weight", "0.5",
        "--model.reuse.old_space", str(embedded), "--model.loss.compatibility_weight", "0.5",
        "--model.loss.compatibility", "influence",
    )  # fmt: skip
    with (run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/loss")]
    assert len(rows) == 3
    # Before the first step the student differs from its teacher by dropout alone.
    assert 0 < float(rows[0]["train/distil_loss"]) < 0.5
    assert all(float(row["train/compatibility_loss"]) > 0 for row in rows)
    config = json.loads((run_dir / "run.json").read_text())
    assert set(config["reused"]) == {"warm_start", "teacher", "old_space"}
    assert config["reused"]["warm_start"].pop("tuned_towers") == ["image", "text"]
    for one in config["reused"].values():
        assert one == {
            "release_fingerprint": release.fingerprint, "newest_event": release.newest_event
        }  # fmt: skip
    export(run_dir, world / "released_2", dataset_dir=dataset.dir, checkpoint="last")
    assert release.fingerprint in (world / "released_2" / "README.md").read_text()
    again = load_released(world / "released_2").config
    assert again.newest_event == dataset.manifest.newest_train_event > release.newest_event


@pytest.mark.ranks
def test_two_processes_under_zero3_go_on_as_one_does(
    world: Path, released: Path, embedded: Path, dataset: Dataset
) -> None:
    towers = {name: one | {"train": "frozen"} for name, one in TOWERS.items()}
    more = f"""
    --trainer.max_steps 3 --model.encoders.dropout 0 --model.encoders.user.dropout 0
    --model.reuse.warm_start {released} --model.reuse.teacher {embedded}
    --model.loss.distil_weight 1 --model.reuse.old_space {embedded}
    --model.loss.compatibility_weight 1
    """.split()
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = words_of(dataset.dir, world / "zero3", "--config", "configs/zero3.yaml", *more)
    words += ["--model.encoders.towers", json.dumps(towers)]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "pretrain", "fit", *words], text=True, capture_output=True,
        timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    fit(dataset.dir, world / "one", *more, towers=towers)
    start = load_file(released / "model.safetensors")
    two, one = (
        read_weights(find_checkpoint(world / run, which="last")) for run in ("zero3", "one")
    )
    assert two.keys() == one.keys() == start.keys()
    moved = [name for name in start if name != "ids.weight" and ".backbones." not in name]
    went_two, went_one = (
        torch.cat([(end[name] - start[name]).flatten() for name in moved]) for end in (two, one)
    )
    assert float(went_one.norm()) > 0
    assert float((went_two - went_one).norm() / went_one.norm()) < 0.05


def test_known_vectors_are_matched_by_item_id(
    embedded: Path, world: Path, dataset: Dataset
) -> None:
    old = open_dataset(world / "old" / "dataset")
    known = KnownVectors.open(embedded, dataset=old)
    table = pq.read_table(embedded / "items.parquet")
    by_id = dict(zip(table["item_id"].to_pylist(), table["aligned"].to_pylist(), strict=True))
    vectors, there = known.of(torch.arange(old.num_items))
    for row, item in enumerate(old.items["item_id"].to_pylist()):
        assert bool(there[row]) == (item in by_id)
        if item in by_id:
            torch.testing.assert_close(vectors[row], torch.tensor(by_id[item]))
    assert 0 < int(there.sum()) < old.num_items


@pytest.fixture(scope="module")
def blind(world: Path, released: Path, dataset: Dataset) -> Path:
    """Vectors as if no item with a text had a picture."""
    embed(released, dataset.dir, world / "blind", without=["image"])
    return world / "blind"


def test_a_knock_out_moves_what_has_the_modality_and_another_one(
    embedded: Path, blind: Path, dataset: Dataset
) -> None:
    assert json.loads((embedded / "embeddings.json").read_text())["without"] == []
    assert json.loads((blind / "embeddings.json").read_text())["without"] == ["image"]
    whole, part = (pq.read_table(folder / "items.parquet") for folder in (embedded, blind))
    both = dataset.items["has_image"].to_numpy() & dataset.items["has_text"].to_numpy()
    before, after = (torch.tensor(table["aligned"].to_pylist()) for table in (whole, part))
    assert ((after - before).norm(dim=1) > 1e-4).tolist() == both.tolist()
    assert 0 < both.sum() < len(both)
    assert part["raw"].equals(whole["raw"])


@pytest.mark.parametrize("name", ["teacher", "old_space"])
def test_a_knock_out_is_no_teacher_and_no_old_space(
    name: str, blind: Path, world: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(dataset.dir, world / "no", f"--model.reuse.{name}", str(blind))
    assert "blind: found a knock-out, vectors without ['image']" in refusal(capsys, *words)


def test_a_release_that_has_seen_the_validation_time_is_refused_unless_allowed(
    world: Path, released: Path, capsys: pytest.CaptureFixture[str], toy_config: ShardConfig
) -> None:
    earlier = shard_part(toy_config, world / "earlier", without=3, valid_start="2025-01-20")
    words = words_of(earlier, world / "ahead", "--model.reuse.warm_start", str(released))
    found = refusal(capsys, *words)
    assert "it has seen what it is tested on" in found
    assert "--model.reuse.allow_look_ahead true" in found
    words = ("--trainer.max_epochs", "0", "--model.reuse.warm_start", str(released))
    fit(earlier, world / "ahead", *words, "--model.reuse.allow_look_ahead", "true")
    config = json.loads((world / "ahead" / "run.json").read_text())
    # What comes of it has seen what its start has seen: it is refused on this dataset again.
    assert config["newest_event"] == config["reused"]["warm_start"]["newest_event"]
    assert config["newest_event"] >= config["valid_start"]


def test_another_width_is_one_error_with_the_key_and_both_shapes(
    world: Path, released: Path, dataset: Dataset
) -> None:
    words = ("--trainer.max_epochs", "0", "--model.reuse.warm_start", str(released))
    with pytest.raises(ValueError, match="warm_start out") as error:
        fit(dataset.dir, world / "wide", *words, "--model.encoders.width", "32")
    assert "item_encoder.adapters.image.linear.weight: found [16, " in str(error.value)
    assert "expected [32, " in str(error.value)


def test_what_shapes_do_not_show_is_compared_too(
    world: Path, released: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    words = words_of(dataset.dir, world / "no", "--model.reuse.warm_start", str(released))
    found = refusal(capsys, *words, "--model.encoders.user.heads", "4")
    assert "model.encoders.user.heads: found 2 there, expected 4 as in this run" in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.loss.distil_weight", "1"], "distil_weight is 1.0 and model.reuse.teacher None"),
        (["--model.reuse.warm_start", "configs"], "configs: no config.json"),
        (["--model.reuse.old_space", "configs"], "configs: no embeddings.json there"),
    ],
)
def test_settings_that_do_not_fit_are_one_error(
    words: list[str], message: str, dataset: Dataset, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert message in refusal(capsys, *words_of(dataset.dir, tmp_path / "run", *words))


def test_features_of_the_releases_towers_serve_a_warm_start_and_others_do_not(
    world: Path, released: Path, release: Release, dataset: Dataset
) -> None:
    towers = {name: one | {"train": "frozen"} for name, one in TOWERS.items()}
    start = ("--model.reuse.warm_start", str(released))
    for name, words in (("theirs", start), ("others", ())):
        more = ("--data.config.features_dir", str(world / name), *words)
        main(["features", *words_of(dataset.dir, world / "unused", *more, towers=towers)])
    words = (*start, "--trainer.max_epochs", "0", "--data.config.features_dir")
    cli = fit(dataset.dir, world / "cached_0", *words, str(world / "theirs"), towers=towers)
    rows = list(range(20))
    loader = ItemLoader(dataset, preprocessors=release.preprocessors)
    cli.model.model.eval()
    with torch.no_grad():
        found = cli.model.model.item_encoder(cli.datamodule.items.load(rows)).fused_nD
    torch.testing.assert_close(
        found, release.encode_batch(loader.load(rows)), rtol=0, atol=2e-3
    )  # cached features are float16
    # Such a release knows that its frozen towers are not off-the-shelf, for the column `raw`.
    more = (*start, "--data.config.features_dir", str(world / "theirs"))
    fit(dataset.dir, world / "cached", "--trainer.max_steps", "1", *more, towers=towers)
    export(world / "cached", world / "released_3", dataset_dir=dataset.dir, checkpoint="last")
    with pytest.raises(ValueError, match=r"the towers \['image', 'text'\] .* were tuned before"):
        embed(world / "released_3", dataset.dir, world / "e", features_dir=world / "theirs")
    with pytest.raises(ValueError, match="features are of other weights than the release"):
        fit(dataset.dir, world / "wrong", *words, str(world / "others"), towers=towers)


def test_a_release_mixes_with_itself_without_loss(
    released: Path, embedded: Path, dataset: Dataset, tmp_path: Path
) -> None:
    ids = dataset.items["item_id"].to_pylist()
    cases = {
        "user_id": list(range(30)),
        "history": [ids[number : number + 3] for number in range(30)],
        "targets": [[ids[number + 50]] for number in range(30)],
    }
    pq.write_table(pa.table(cases), tmp_path / "cases.parquet")
    words = ["--cases", str(tmp_path / "cases.parquet"), "--out", str(tmp_path / "mixed.json")]
    for side in ("new", "old"):
        words += [f"--{side}_released", str(released), f"--{side}_embeddings", str(embedded)]
    main(["mixed_retrieval", *words, "--k", "50"])
    found = json.loads((tmp_path / "mixed.json").read_text())["mixed"]
    assert list(found) == ["new_new", "old_old", "new_old", "old_new", "new_half"]
    assert 0 < found["new_new"]["recall@50"] < 1
    assert all(one == found["new_new"] for one in found.values())


def test_ids_of_two_types_meet_as_text() -> None:
    found = rows_of_ids(pa.array(["7", "x", "5"]), known=pa.array([5, 6, 7]))
    assert found.tolist() == [2, -1, 0]


def test_rows_of_a_table_are_matched_and_others_keep_what_they_have() -> None:
    table = torch.nn.Embedding(3, 2)
    before = table.weight.detach().clone()
    given = {"weight": torch.arange(4.0).view(2, 2)}
    rows = {"weight": torch.tensor([1, -1, 0])}
    load_exactly(table, given, source="here", rows=rows)
    torch.testing.assert_close(table.weight[[0, 2]], given["weight"][[1, 0]])
    torch.testing.assert_close(table.weight[1], before[1])


def test_columns_of_users_keep_codes_and_scales() -> None:
    earlier = (
        UserColumn(name="age", kind="categorical", values=("b", "d")),
        UserColumn(name="size", kind="numeric", mean=1.0, std=2.0),
    )
    fresh = (
        UserColumn(name="age", kind="categorical", values=("a", "b", "c")),
        UserColumn(name="size", kind="numeric", mean=5.0, std=3.0),
        UserColumn(name="new", kind="numeric"),
    )
    kept = keep_earlier(fresh, earlier)
    assert kept[0].values == ("b", "d", "a", "c")
    assert kept[1:] == (earlier[1], fresh[2])


def test_towers_of_a_release_are_read_by_their_own_names(released: Path) -> None:
    names = EarlierRelease.open(released).tower_weights("text")
    assert names
    assert not any("lora" in name or name.startswith("item_encoder") for name in names)
    assert TowerConfig(**TOWERS["text"]).train == "lora"
