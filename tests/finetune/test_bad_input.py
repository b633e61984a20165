"""Every kind of bad input of a CTR run: one clear error, or a value that is documented."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.dataset import Dataset, open_dataset
from finetune.batches import CtrTable
from finetune.data import CtrData
from finetune.fit import fit
from finetune.metrics import Diverged, auc, gauc, log_loss
from finetune.model import CtrModel
from finetune.predict import predict
from finetune.settings import FitConfig, PredictConfig
from finetune.splits import read_split, split_pieces
from finetune.task_metrics import task_figures
from finetune.task_settings import TaskConfig
from finetune.tasks import Task
from finetune.vocabulary import MISSING, UNKNOWN

Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def damaged(dataset: Dataset, tmp_path: Path) -> Path:
    return Path(shutil.copytree(dataset.dir, tmp_path / "damaged"))


def rewrite(dataset_dir: Path, pattern: str, change: Change) -> Dataset:
    for path in sorted(dataset_dir.glob(pattern)):
        pq.write_table(change(pq.read_table(path)), path)
    return open_dataset(dataset_dir)


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def set_first(name: str, value: float | int | None) -> Change:
    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[name].to_pylist()[1:]]
        return with_column(table, name, pa.array(values, table.schema.field(name).type))

    return change


def fill(name: str, values: Callable[[int], pa.Array]) -> Change:
    return lambda table: with_column(table, name, values(table.num_rows))


def one_epoch(config: FitConfig, dataset_dir: Path, **changes: object) -> FitConfig:
    train = dataclasses.replace(config.train, max_epochs=1)
    return dataclasses.replace(config, dataset_dir=dataset_dir, train=train, **changes)


@pytest.mark.parametrize("label", [3.5, -1.0, float("nan"), None])
@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_labels_outside_0_and_1_are_refused(label: float | None, split: str, damaged: Path) -> None:
    dataset = rewrite(damaged, f"ctr/{split}/*.parquet", set_first("label", label))
    with pytest.raises(ValueError, match=rf"ctr/{split}: found labels .*{label}.*expected 0 and 1"):
        read_split(dataset, split)


def test_every_piece_of_a_split_is_checked_and_an_empty_one_is_none(damaged: Path) -> None:
    path = next(damaged.glob("ctr/train/*.parquet"))
    table = pq.read_table(path)
    last = with_column(table, "label", pa.array([0.0] * (table.num_rows - 1) + [2.0], pa.float32()))
    for one in (table, last):
        with pq.ParquetWriter(path, one.schema) as writer:
            for piece in (one.slice(0, 0), one.slice(0, 100), one.slice(100)):
                writer.write_table(piece)
        assert pq.ParquetFile(path).num_row_groups == 3
        dataset = open_dataset(damaged)
        if one is table:
            assert read_split(dataset, "train").equals(table)
        else:
            pieces = split_pieces(dataset, "train")
            assert [next(pieces).num_rows, next(pieces).num_rows] == [0, 100]
            with pytest.raises(ValueError, match=r"ctr/train: found labels .*2\.0"):
                next(pieces)


@pytest.mark.parametrize("column", ["label", "item_row", "device"])
def test_a_split_without_a_column_names_it(
    column: str, damaged: Path, fit_config: FitConfig
) -> None:
    rewrite(damaged, "ctr/train/*.parquet", lambda table: table.drop_columns(column))
    with pytest.raises(ValueError, match=rf"ctr/train: found .* expected also \['{column}'\]"):
        fit(one_epoch(fit_config, damaged))


@pytest.mark.parametrize("column", ["like", "propensity"])
def test_a_split_without_a_label_or_a_fact_of_exposure_names_it(
    column: str, rich_dir: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(rich_dir, tmp_path / "damaged")
    dataset = rewrite(damaged, "ctr/train/*.parquet", lambda table: table.drop_columns(column))
    with pytest.raises(ValueError, match=rf"ctr/train: found .* expected also \['{column}'\]"):
        read_split(dataset, "train")


def test_a_catalogue_without_a_feature_names_it(damaged: Path, fit_config: FitConfig) -> None:
    rewrite(damaged, "items.parquet", lambda table: table.drop_columns("price"))
    with pytest.raises(ValueError, match=r"items: found .* expected also \['price'\]"):
        fit(one_epoch(fit_config, damaged))


@pytest.mark.parametrize(("column", "row"), [("item_row", -1), ("item_row", 240), ("user_row", -1)])
def test_an_impression_of_no_known_user_or_item_is_refused(
    column: str, row: int, damaged: Path
) -> None:
    dataset = rewrite(damaged, "ctr/valid/*.parquet", set_first(column, row))
    with pytest.raises(ValueError, match=rf"{column}: found 0 empty values and rows from .*{row}"):
        read_split(dataset, "valid")


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train", "one value alone in the training labels"),
        ("valid", r"ctr/valid: found .* positives in .* impressions, expected both classes"),
    ],
)
def test_one_class_in_training_or_validation_is_refused_before_training(
    split: str, message: str, label: float, damaged: Path, fit_config: FitConfig
) -> None:
    all_alike = fill("label", lambda rows: pa.array([label] * rows, pa.float32()))
    rewrite(damaged, f"ctr/{split}/*.parquet", all_alike)
    with pytest.raises(ValueError, match=message):
        fit(one_epoch(fit_config, damaged))
    assert not list(fit_config.out_dir.glob("*.json"))


def test_one_class_in_test_gives_null_figures_and_a_warning(
    damaged: Path, fit_config: FitConfig, caplog: pytest.LogCaptureFixture
) -> None:
    no_click = fill("label", lambda rows: pa.array([0.0] * rows, pa.float32()))
    rewrite(damaged, "ctr/test/*.parquet", no_click)
    with caplog.at_level(logging.WARNING):
        fit(one_epoch(fit_config, damaged))
    assert "ctr/test: found 0 positives" in caplog.text
    written = json.loads((fit_config.out_dir / "metrics.json").read_text())
    assert written["test"]["auc"] is written["test"]["gauc"] is None
    assert written["test"]["calibration"] is None
    assert written["test"]["logloss"] > 0
    assert written["counts"]["gauc_users_left_out"] == written["counts"]["users"]


@pytest.mark.parametrize(
    ("name", "values", "warning"),
    [
        ("device", lambda rows: pa.nulls(rows, pa.string()), "all read the missing row"),
        ("position", lambda rows: pa.nulls(rows, pa.float64()), "no training impression has a"),
        (
            "device",
            lambda rows: pa.array([f"request {row}" for row in range(rows)]),
            "in one training impression only",
        ),
        ("position", lambda rows: pa.array(np.full(rows, np.nan)), "no training impression has a"),
        ("position", lambda rows: pa.array(np.full(rows, -np.inf)), "no training impression has a"),
    ],
    ids=["all_missing", "no_numbers", "all_unique", "all_nan", "all_infinite"],
)
def test_a_column_that_teaches_nothing_is_warned_of_and_changes_no_figure_to_nan(
    name: str,
    values: Callable[[int], pa.Array],
    warning: str,
    damaged: Path,
    fit_config: FitConfig,
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewrite(damaged, "ctr/*/*.parquet", fill(name, values))
    with caplog.at_level(logging.WARNING):
        record = fit(one_epoch(fit_config, damaged))
    assert f"context feature {name}: " in caplog.text
    assert warning in caplog.text
    assert np.isfinite([record["test"]["auc"], record["test"]["logloss"]]).all()


def test_unique_values_share_the_unknown_row(damaged: Path, fit_config: FitConfig) -> None:
    numbered = fill("device", lambda rows: pa.array([f"request {row}" for row in range(rows)]))
    dataset = rewrite(damaged, "ctr/*/*.parquet", numbered)
    data = CtrData.learn(dataset, fit_config)
    field = data.vocabulary.named("device")
    assert field.values == []
    place = data.vocabulary.categorical.index(field)
    assert set(data.valid.ids_NF[:, place].tolist()) == {field.offset + UNKNOWN}


def test_numbers_that_are_none_read_the_missing_vector(
    damaged: Path, fit_config: FitConfig
) -> None:
    """NaN, ±inf and null are one and the same, and the others keep their mean and spread."""
    odd = [float("nan"), float("inf"), float("-inf"), None]

    def change(table: pa.Table) -> pa.Table:
        values = [*odd, *table["position"].to_pylist()[4:]]
        return with_column(table, "position", pa.array(values, pa.float64()))

    dataset = rewrite(damaged, "ctr/train/*.parquet", change)
    data = CtrData.learn(dataset, fit_config)
    column = [one.name for one in data.vocabulary.numeric].index("position")
    assert data.train.numeric_NK[:4, column].isnan().all()
    known = data.train.numeric_NK[4:, column]
    assert known.mean().item() == pytest.approx(0, abs=1e-4)
    assert known.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    table = CtrTable(data.train, data.users, data.items, None)
    model = CtrModel(fit_config.head, data=data, content=None)
    torch.nn.init.normal_(model.fields.numeric.missing_KO)
    inputs, *_ = model.fields(table.batch(torch.arange(5)))
    missing = model.fields.numeric.missing_KO[column, : inputs.fields_BFE.shape[2]]
    read = (inputs.fields_BFE - missing).abs().sum(-1) < 1e-6
    assert read[:4].any(1).all()
    assert not read[4].any()


def test_a_categorical_number_that_is_none_is_missing(dataset: Dataset) -> None:
    from finetune.vocabulary import build_vocabulary

    column = pa.chunked_array([[1.5, float("nan"), None, 1.5]])
    vocabulary = build_vocabulary(
        {"context": {"x": "categorical"}},
        lambda owner, name: column,
        train_rows={"context": np.arange(4)},
        min_count=1,
    )
    assert vocabulary.named("x").values == ["1.5"]
    assert vocabulary.named("x").encode(column).tolist() == [2, MISSING, MISSING, 2]


def test_scores_that_are_not_numbers_have_no_auc() -> None:
    label, score = np.array([0.0, 1.0]), np.array([0.1, np.nan])
    with pytest.raises(ValueError, match=r"found 1 of 2 that are not a number.*lower train.lr"):
        auc(label, score)
    with pytest.raises(ValueError, match="found 1 of 2 that are not a number"):
        gauc(np.array([0, 0]), label, score_N=score)


def test_a_run_that_diverges_ends_with_an_error(fit_config: FitConfig, damaged: Path) -> None:
    config = one_epoch(fit_config, damaged)
    train = dataclasses.replace(config.train, lr=1e30, id_lr=1e30, grad_clip_norm=0.0)
    with pytest.raises(ValueError, match=r"that are not a number.*training diverged"):
        fit(dataclasses.replace(config, train=train))
    assert not (fit_config.out_dir / "metrics.json").exists()


def test_figures_of_users_with_one_class_are_those_of_the_others() -> None:
    user = np.array([0, 0, 1, 1, 1])
    label, score = np.array([1, 1, 0, 1, 0.0]), np.array([0.9, 0.1, 0.2, 0.3, 0.4])
    found = gauc(user, label, score_N=score)
    assert (found.value, found.users, found.users_left_out) == (0.5, 2, 1)
    assert np.isnan(gauc(user[:2], label[:2], score_N=score[:2]).value)
    assert np.isnan(auc(label[:2], score[:2]))
    assert np.isnan(log_loss(label[:0], score[:0]))


def test_an_item_of_the_history_that_training_did_not_show_reads_the_unknown_row(
    dataset: Dataset, fit_config: FitConfig
) -> None:
    data = CtrData.learn(dataset, dataclasses.replace(fit_config, min_count=30))
    field = data.vocabulary.named("item_id")
    rows = data.valid.history_NL[data.valid.history_NL >= 0].long()
    read = data.item_id_rows[rows]
    known = set(field.values)
    ids = dataset.items["item_id"].to_pylist()
    expected = [ids[row] in known for row in rows.tolist()]
    assert not all(expected)
    assert [row != field.unknown for row in read.tolist()] == expected


def test_a_history_with_an_item_outside_the_catalogue_is_refused(
    damaged: Path, fit_config: FitConfig
) -> None:
    dataset = rewrite(damaged, "items.parquet", lambda table: table.slice(0, 100))
    config = one_epoch(fit_config, damaged)
    with pytest.raises(ValueError, match=r"item_row: found 0 empty values"):
        fit(config)
    with pytest.raises(ValueError, match=r"found item rows up to \d+, expected them below 100"):
        dataset.events()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"position": ["first"]}, "found column position of type string, expected numbers"),
        ({"device": [["phone"]]}, "found column device of type array.*expected single values"),
        ({"item_id": ["seven"]}, "found column item_id of type string, expected int64"),
        ({"item_id": pa.nulls(1, pa.int64())}, "such as None"),
        ({"label": [1], "device": None}, "expected also .'device'."),
    ],
)
def test_predict_names_a_column_of_another_kind(
    columns: dict[str, object],
    message: str,
    dataset: Dataset,
    fit_config: FitConfig,
    tmp_path: Path,
) -> None:
    fit(one_epoch(fit_config, dataset.dir))
    given = {
        "user_id": dataset.users["user_id"][:1].to_pylist(),
        "item_id": dataset.items["item_id"][:1].to_pylist(),
        "time": [dataset.manifest.newest_event + 1],
        "position": [1],
        "device": ["phone"],
    } | columns
    table = pa.table({name: column for name, column in given.items() if column is not None})
    pq.write_table(table, tmp_path / "new.parquet")
    config = PredictConfig(
        run_dir=fit_config.out_dir,
        impressions=tmp_path / "new.parquet",
        out=tmp_path / "scores.parquet",
    )
    with pytest.raises(ValueError, match=message):
        predict(config)
    assert not config.out.exists()


def test_predict_takes_missing_and_infinite_context_for_missing(
    dataset: Dataset, fit_config: FitConfig, tmp_path: Path
) -> None:
    fit(one_epoch(fit_config, dataset.dir))
    position = [None, float("nan"), float("inf")]
    table = pa.table(
        {
            "user_id": dataset.users["user_id"].slice(0, 1).to_pylist() * 3,
            "item_id": dataset.items["item_id"].slice(0, 1).to_pylist() * 3,
            "time": [dataset.manifest.newest_event + 1] * 3,
            "position": pa.array(position, pa.float64()),
            "device": pa.nulls(3, pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    predict(
        PredictConfig(run_dir=fit_config.out_dir, impressions=tmp_path / "new.parquet", out=out)
    )
    scores = pq.read_table(out)["score"].to_pylist()
    assert np.isfinite(scores).all()
    assert len(set(scores)) == 1
    text = tmp_path / "new.csv"
    text.write_text("user_id,item_id,time\n1,2,3\n")
    with pytest.raises(ValueError, match=r"new\.csv: found a file that is no Parquet"):
        predict(PredictConfig(run_dir=fit_config.out_dir, impressions=text, out=out))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hash_buckets": {"price": 9}},
            r"hash_buckets: found \['price'\], .*categorical or multi",
        ),
        ({"log_features": ("category",)}, r"log_features: found \['category'\], .*type numeric"),
        ({"item_sequences": ("device",)}, r"item_sequences: found \['device'\], .*type multi"),
        ({"hash_buckets": {"sise": 9}}, r"hash_buckets: found \['sise'\]"),
    ],
)
def test_a_setting_of_a_feature_of_another_type_is_refused(
    changes: dict, message: str, fit_config: FitConfig, dataset: Dataset
) -> None:
    with pytest.raises(ValueError, match=message):
        CtrData.learn(dataset, dataclasses.replace(fit_config, **changes))


def test_esmm_with_its_tasks_the_wrong_way_round_is_refused(rich_config: FitConfig) -> None:
    head = dataclasses.replace(rich_config.head, name="esmm")
    tasks = {"like": TaskConfig(), "label": TaskConfig()}
    with pytest.raises(ValueError, match=r"training impressions with label but without like"):
        fit(dataclasses.replace(rich_config, head=head, tasks=tasks))


def test_numbers_that_diverge_end_as_clicks_do() -> None:
    predicted = np.array([1.0, np.inf, 2.0])
    with pytest.raises(Diverged, match="found 1 of 3"):
        task_figures(
            Task(name="seconds", loss="mse"), np.zeros(3, int), np.ones(3), predicted_N=predicted
        )
