"""Content that is pulled to vectors of a model of ids: by hand, on cold items, in a training."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_prep.dataset import open_dataset
from pretrain.batch import Batch, ItemBatch
from pretrain.cli import main, parse_run
from pretrain.collaborative import collaborative
from pretrain.export import export
from pretrain.item_encoder import ItemEncoder
from pretrain.known_vectors import KnownVectors
from pretrain.negatives import NegativesConfig
from pretrain.objective import LossConfig

ROWS = torch.tensor([2, 3, 5, 8, 3])
"""Item 3 is named twice."""
PLACES = torch.tensor([-1, -1, 1, 0, -1, 2, -1, -1, -1])
"""Items 2, 3 and 5 of nine have a target, item 8 has none."""
SCALE = torch.tensor([5.0])


def unit(*shape: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def batch_of(rows: Tensor, *, groups: Tensor | None = None) -> Batch:
    """Only one of the items is a target, the others are of histories."""
    return Batch(
        items=ItemBatch(rows_n=rows, inputs={}, presence={}),
        history_BL=torch.arange(len(rows))[None],
        times_BL=torch.zeros(1, len(rows), dtype=torch.int64),
        targets_BT=torch.zeros(1, 1, dtype=torch.int64),
        states_BT=torch.zeros(1, 1, dtype=torch.int64),
        groups_n=groups,
    )


def test_it_is_the_cross_entropy_both_ways_over_the_items_that_have_a_target() -> None:
    fused, known, projection = unit(5, 4, seed=0), unit(3, 6, seed=1), nn.Linear(6, 4, bias=False)
    found = collaborative(
        fused, batch_of(ROWS), targets=KnownVectors(known, PLACES), projection=projection,
        scale=SCALE, config=NegativesConfig(),
    )  # fmt: skip
    logits = SCALE * fused[:3] @ F.normalize(projection(known[[1, 0, 2]]), dim=-1).T
    own = torch.arange(3)
    expected = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    torch.testing.assert_close(found.loss, expected)
    assert float(found.negatives) == 2


def test_equal_content_is_no_negative() -> None:
    groups = torch.tensor([2, 2, 5, 8, 2])
    given = (unit(5, 4, seed=0), batch_of(ROWS, groups=groups))
    for same, negatives in (("masked", (1 + 1 + 2) / 3), ("negative", 2)):
        found = collaborative(
            *given, targets=KnownVectors(unit(3, 4, seed=1), PLACES), projection=nn.Identity(),
            scale=SCALE, config=NegativesConfig(same_content=same),
        )  # fmt: skip
        assert float(found.negatives) == pytest.approx(negatives)


def test_a_batch_of_items_without_a_target_costs_nothing_and_leaves_no_gradient_out() -> None:
    fused, projection = unit(2, 4, seed=0).requires_grad_(), nn.Linear(6, 4, bias=False)
    scale = SCALE.clone().requires_grad_()
    found = collaborative(
        fused, batch_of(torch.tensor([0, 8])), targets=KnownVectors(unit(3, 6, seed=1), PLACES),
        projection=projection, scale=scale, config=NegativesConfig(),
    )  # fmt: skip
    found.loss.backward()
    assert float(found.loss) == 0
    for one in (fused, projection.weight, scale):
        assert one.grad is not None
        assert not one.grad.any()


def test_content_of_cold_items_comes_to_lie_where_their_id_vectors_would() -> None:
    """Id vectors follow from content; the last 20 of 120 items have none in training."""
    torch.manual_seed(0)
    features = torch.randn(120, 6)
    id_vectors = F.normalize(features @ torch.randn(6, 5), dim=-1)
    places = torch.where(torch.arange(120) < 100, torch.arange(120), -1)
    encoder = ItemEncoder({}, feature_widths={"text": 6}, width=8, dropout=0.0)
    projection = nn.Linear(5, 8, bias=False)
    optimizer = torch.optim.Adam([*encoder.parameters(), *projection.parameters()], 0.01)

    def encode(rows: Tensor) -> Tensor:
        inputs = {"text": {"features": features[rows]}}
        presence = {"text": torch.ones(len(rows), dtype=torch.bool)}
        return encoder(ItemBatch(rows_n=rows, inputs=inputs, presence=presence)).fused_nD

    @torch.no_grad()
    def found_share() -> float:
        cold = torch.arange(100, 120)
        target = F.normalize(projection(id_vectors), dim=-1)
        return float(((encode(cold) @ target.T).argmax(1) == cold).double().mean())

    before = found_share()
    for _ in range(150):
        rows = torch.randperm(120)[:60]
        loss = collaborative(
            encode(rows), batch_of(rows), targets=KnownVectors(id_vectors, places),
            projection=projection, scale=torch.tensor([10.0]), config=NegativesConfig(),
        ).loss  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.2
    assert found_share() > 0.6


SMALL = """
--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false --run.monitor null
--data.config.global_batch_size 32 --trainer.log_every_n_steps 1 --trainer.accelerator cpu
--model.encoders.width 16 --trainer.limit_val_batches 0 --trainer.max_steps 3
""".split()


@pytest.fixture(scope="module")
def id_vectors(toy_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every other item, 6 wide, in a column of another name."""
    ids = open_dataset(toy_dataset).items["item_id"].combine_chunks()[::2]
    path = tmp_path_factory.mktemp("collaborative") / "id_vectors.parquet"
    vectors = np.random.default_rng(0).normal(size=(len(ids), 6)).tolist()
    ragged = [[1.0] * (1 + number % 2) for number in range(len(ids))]
    table = {"item_id": ids, "emb": vectors, "ragged": ragged, "count": list(range(len(ids)))}
    pq.write_table(pa.table(table), path)
    return path


def words_of(dataset_dir: Path, run_dir: Path, path: Path, *, newest_event: int) -> list[str]:
    settings = json.dumps({"path": str(path), "newest_event": newest_event, "column": "emb"})
    folders = ["--data.config.dataset_dir", str(dataset_dir), "--run.dir", str(run_dir)]
    return [*SMALL, *folders, "--model.reuse.collaborative", settings]


def test_a_training_logs_it_and_the_release_records_it_without_its_weights(
    toy_dataset: Path, id_vectors: Path, tmp_path: Path
) -> None:
    words = words_of(toy_dataset, tmp_path / "run", id_vectors, newest_event=5)
    words += ["--model.loss.collaborative_weight", "0.4"]
    words += ["--model.loss.collaborative_ramp_steps", "4"]
    cli = parse_run(words, command="fit")
    cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("train/collaborative_loss")]
    assert [float(row["train/collaborative_weight"]) for row in rows] == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    for row in rows:
        assert float(row["train/collaborative_loss"]) > 0
        assert float(row["train/collaborative_negatives"]) > 16
    assert float(rows[-1]["train/collaborative_scale"]) != float(rows[-1]["train/scale"])
    export(tmp_path / "run", tmp_path / "released", dataset_dir=toy_dataset, checkpoint="last")
    config = json.loads((tmp_path / "released" / "config.json").read_text())
    assert config["reused"]["collaborative"]["newest_event"] == 5
    sha256 = config["reused"]["collaborative"]["file_sha256"]
    assert f"a file with SHA-256 `{sha256}`" in (tmp_path / "released" / "README.md").read_text()


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *words])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_vectors_that_have_seen_the_validation_time_are_refused_and_so_is_half_a_setting(
    toy_dataset: Path, id_vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    valid_start = open_dataset(toy_dataset).manifest.cutoffs.valid_start
    weight = ("--model.loss.collaborative_weight", "0.4")
    words = words_of(toy_dataset, tmp_path, id_vectors, newest_event=valid_start)
    found = refusal(capsys, *words, *weight)
    assert "model.reuse.collaborative" in found
    assert "it has seen what it is tested on" in found
    words = words_of(toy_dataset, tmp_path, id_vectors, newest_event=valid_start - 1)
    assert "collaborative_weight is 0.0 and model.reuse.collaborative" in refusal(capsys, *words)
    folders = ["--data.config.dataset_dir", str(toy_dataset), "--run.dir", str(tmp_path)]
    found = refusal(capsys, *SMALL, *folders, *weight, "--model.reuse.collaborative.path", "x")
    assert "newest_event" in found


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("vector", "expected item_id and vector"),
        ("ragged", r"widths \[1, 2\] in ragged"),
        ("count", r"found int64 of widths \[None\]"),
    ],
)
def test_a_table_without_vectors_of_one_width_is_refused(
    column: str, message: str, toy_dataset: Path, id_vectors: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        KnownVectors.read(
            id_vectors, column=column, dataset=open_dataset(toy_dataset), newest_event=0,
            fingerprint="",
        )  # fmt: skip


def test_settings_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="collaborative_weight and collaborative_ramp_steps"):
        LossConfig(collaborative_weight=-1.0)
