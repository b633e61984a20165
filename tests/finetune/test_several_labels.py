"""Several labels from the dataset to the report of a run."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from data_prep.dataset import open_dataset
from finetune import run_folder
from finetune.batches import CtrTable
from finetune.cli import main
from finetune.data import CtrData
from finetune.fit import Inputs, fit
from finetune.lifetime_value import ziln_loss
from finetune.metrics import auc
from finetune.model import CtrModel
from finetune.objective import Objective
from finetune.predict import predict
from finetune.settings import FitConfig, HeadConfig, PredictConfig
from finetune.task_metrics import monitored, task_figures
from finetune.task_settings import TaskConfig
from finetune.tasks import CLICK_TASK, Task, label_of, learn_tasks

TASKS = {
    "label": TaskConfig(),
    "like": TaskConfig(weight=2.0),
    "seconds": TaskConfig(),
    "bought": TaskConfig(loss="ziln", weight=0.1),
}


def changed(config: FitConfig, *, head: str | None = None, **train: object) -> FitConfig:
    new = dataclasses.replace(config, train=dataclasses.replace(config.train, **train))
    return new if head is None else with_head(new, head)


def with_head(config: FitConfig, head: str) -> FitConfig:
    return dataclasses.replace(config, head=dataclasses.replace(config.head, name=head))


@pytest.fixture
def data(rich_config: FitConfig) -> CtrData:
    return CtrData.learn(open_dataset(rich_config.dataset_dir), rich_config)


@pytest.mark.parametrize("head", ["shared_bottom", "mmoe", "ple"])
def test_a_run_of_every_kind_of_label_writes_figures_and_scores_of_each(
    head: str, rich_config: FitConfig
) -> None:
    config = dataclasses.replace(with_head(rich_config, head), tasks=TASKS)
    record = fit(config)
    assert list(record["tasks"]) == list(TASKS)
    assert record["test"]["auc"] == record["tasks"]["label"]["auc"]
    predictions = pq.read_table(config.out_dir / "predictions.parquet")
    assert predictions.column_names == [
        "user_id", "item_id", "time", "label", "score", "label_like", "label_seconds",
        "label_bought", "score_like", "score_seconds", "score_bought",
    ]  # fmt: skip
    column = {name: predictions[name].to_numpy() for name in predictions.column_names[3:]}
    assert record["tasks"]["like"]["auc"] == auc(column["label_like"], column["score_like"])
    error = column["score_seconds"] - column["label_seconds"]
    assert record["tasks"]["seconds"]["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-5)
    assert (column["score_bought"] > 0).all()
    assert (np.abs(column["score_seconds"] - column["label_seconds"].mean()) < 30).all()
    run = run_folder.Run.load(config.out_dir)
    assert run_folder.read_config(config.out_dir) == config
    row = run.history[record["best_epoch"] - 1]
    parts = ["val/label/auc", "val/like/auc", "val/seconds/gini", "val/bought/gini"]
    assert row["val/monitor"] == pytest.approx(np.mean([row[part] for part in parts]))
    assert row["val/monitor"] == max(one["val/monitor"] for one in run.history)


def test_predict_scores_every_task(rich_config: FitConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(rich_config, tasks=TASKS)
    fit(config)
    expected = pq.read_table(config.out_dir / "predictions.parquet")
    context = open_dataset(config.dataset_dir).impressions("test")["device"]
    given = expected.select(["user_id", "item_id", "time"]).append_column("device", context)
    pq.write_table(given, tmp_path / "new.parquet")
    out = tmp_path / "scores.parquet"
    predict(PredictConfig(run_dir=config.out_dir, impressions=tmp_path / "new.parquet", out=out))
    found = pq.read_table(out)
    for name in ("score", "score_like", "score_seconds", "score_bought"):
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-4)


def test_a_single_label_head_learns_any_one_label(rich_config: FitConfig) -> None:
    config = dataclasses.replace(
        rich_config, head=HeadConfig(name="deepfm", embedding_width=4, hidden=(8,)),
        tasks={"like": TaskConfig()},
    )  # fmt: skip
    record = fit(config)
    test = open_dataset(config.dataset_dir).impressions("test")
    predictions = pq.read_table(config.out_dir / "predictions.parquet")
    assert predictions["label"].to_pylist() == test["like"].to_pylist()
    assert record["counts"]["clicks"] == sum(test["like"].to_pylist())
    assert record["test"]["auc"] == record["tasks"]["like"]["auc"]


def test_the_click_alone_is_learnt_as_before_the_other_labels_were_there(
    rich_config: FitConfig,
) -> None:
    deepfm = HeadConfig(name="deepfm", embedding_width=4, hidden=(8,))
    alone = dataclasses.replace(rich_config, head=deepfm)
    named = dataclasses.replace(
        alone, tasks={"label": TaskConfig()}, out_dir=alone.out_dir.parent / "named"
    )
    first, second = fit(alone), fit(named)
    assert first["test"] == second["test"]
    assert "tasks" not in first


def test_the_loss_is_the_weighted_sum_of_the_tasks_own(
    rich_config: FitConfig, data: CtrData
) -> None:
    config = dataclasses.replace(rich_config, tasks=TASKS)
    tasks = learn_tasks(config.tasks, data)
    model = CtrModel(config.head, data=data, content=None, tasks=tasks).eval()
    batch = CtrTable(data.train, data.users, data.items, None).batch(torch.arange(64))
    step = Objective(config, data=data, tasks=tasks)(model, batch)
    click, like, seconds, bought = model(batch).output_BO.split([1, 1, 1, 3], dim=1)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    target = (batch.outcomes["seconds"] - tasks[2].mean) / tasks[2].std
    expected = (
        bce(click[:, 0], batch.label_B)
        + 2 * bce(like[:, 0], batch.outcomes["like"])
        + (seconds[:, 0] - target).square().mean()
        + 0.1 * ziln_loss(bought, batch.outcomes["bought"] / tasks[3].std)
    )
    torch.testing.assert_close(step.loss, expected)
    assert list(step.task_losses) == list(TASKS)


def test_uncertainty_learns_weights_and_reports_them(rich_config: FitConfig) -> None:
    tasks = {"label": TaskConfig(), "seconds": TaskConfig()}
    config = dataclasses.replace(changed(rich_config, task_weights="uncertainty"), tasks=tasks)
    weights = fit(config)["task_weights"]
    assert set(weights) == {"label", "seconds"}
    assert all(weight > 0 and weight != 1 for weight in weights.values())


def test_uncertainty_is_the_equation_of_its_paper(rich_config: FitConfig, data: CtrData) -> None:
    configs = {"label": TaskConfig(), "seconds": TaskConfig()}
    config = dataclasses.replace(changed(rich_config, task_weights="uncertainty"), tasks=configs)
    tasks = learn_tasks(config.tasks, data)
    objective = Objective(config, data=data, tasks=tasks)
    with torch.no_grad():
        objective.log_variance_T.copy_(torch.tensor([0.4, -0.3]))
    model = CtrModel(config.head, data=data, content=None, tasks=tasks).eval()
    batch = CtrTable(data.train, data.users, data.items, None).batch(torch.arange(64))
    output = model(batch).output_BO
    click = torch.nn.functional.binary_cross_entropy_with_logits(output[:, 0], batch.label_B)
    target = (batch.outcomes["seconds"] - tasks[1].mean) / tasks[1].std
    square = (output[:, 1] - target).square().mean()
    sigma = (objective.log_variance_T / 2).exp()
    expected = click / sigma[0] ** 2 + sigma[0].log()
    expected = expected + square / (2 * sigma[1] ** 2) + sigma[1].log()
    torch.testing.assert_close(objective(model, batch).loss, expected)


def test_a_scale_is_that_of_the_training_impressions(data: CtrData) -> None:
    configs = {
        "seconds": TaskConfig(loss="mse"),
        "bought": TaskConfig(loss="log1p_mse"),
    }
    seconds, bought = learn_tasks(configs, data)
    train = label_of(data.train, "seconds").double()
    assert (seconds.mean, seconds.std) == pytest.approx(
        (train.mean().item(), train.std(correction=0).item())
    )
    logs = torch.log1p(label_of(data.train, "bought").double())
    assert bought.mean == pytest.approx(logs.mean().item())


def test_the_start_of_linear_layers_leaves_a_models_tasks_at_their_rates(
    rich_config: FitConfig, data: CtrData
) -> None:
    tasks = learn_tasks({"label": TaskConfig(), "like": TaskConfig()}, data)
    model = CtrModel(rich_config.head, data=data, content=None, tasks=tasks)
    last = [tower[-1] for tower in model.head.towers.towers]
    assert [one.bias.tolist() for one in last] == [
        pytest.approx(task.first_output) for task in tasks
    ]
    assert all(abs(one.first_output[0]) > 0.1 for one in tasks)
    layer = model.head.bottom[0]
    assert layer.weight.std().item() == pytest.approx((2 / sum(layer.weight.shape)) ** 0.5, rel=0.2)
    assert (layer.bias == 0).all()


def test_a_task_begins_at_the_rate_of_training(data: CtrData) -> None:
    like, bought = learn_tasks({"like": TaskConfig(), "bought": TaskConfig(loss="ziln")}, data)
    rate = label_of(data.train, "like").mean().item()
    first = torch.tensor([like.first_output])
    assert like.predict(first).item() == pytest.approx(rate, rel=1e-5)
    assert torch.sigmoid(torch.tensor(bought.first_output[0])).item() == pytest.approx(
        (label_of(data.train, "bought") > 0).float().mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("loss", ["bce", "mse", "log1p_mse"])
def test_a_prediction_of_the_right_output_is_the_label(loss: str) -> None:
    task = Task(name="x", loss=loss, mean=1.5, std=2.0)
    label = torch.tensor([0.0, 1.0]) if loss == "bce" else torch.tensor([0.0, 7.0])
    if loss == "bce":
        output = torch.tensor([-40.0, 40.0])
    else:
        output = task.standardised(label)
    torch.testing.assert_close(task.predict(output[:, None]), label)
    assert task.errors(output[:, None], label).max() < 1e-6


def test_a_lifetime_value_is_in_units_of_its_mean() -> None:
    task = Task(name="bought", loss="ziln", std=50.0)
    output = torch.tensor([[30.0, 0.0, -30.0]])  # buys for certain, at a log value of 0
    assert task.predict(output).item() == pytest.approx(50.0, rel=1e-3)
    assert task.predict(torch.tensor([[30.0, 500.0, 0.0]])).isfinite().all()


def test_what_does_not_exist_is_left_out_of_the_mean_and_named_where_asked_for() -> None:
    none = {"auc": float("nan")}
    figures = {"label": {"auc": 0.7}, "like": none, "seconds": {"gini": float("nan"), "r2": 0.3}}
    tasks = [CLICK_TASK, Task(name="like"), Task(name="seconds", loss="mse")]
    assert monitored(tasks, figures, None) == pytest.approx(0.5)
    assert np.isnan(monitored(tasks, figures, "like"))


def test_figures_of_a_number_are_those_of_its_definition() -> None:
    label, found = np.array([0.0, 0.0, 4.0, 8.0]), np.array([1.0, 0.0, 3.0, 8.0])
    figures = task_figures(
        Task(name="x", loss="mse"), np.zeros(4, np.int64), label, predicted_N=found
    )
    assert figures["rmse"] == pytest.approx(np.sqrt(2 / 4))
    assert figures["r2"] == pytest.approx(1 - 2 / 44)
    assert figures["gini"] == pytest.approx(1.0)
    assert figures["calibration"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"liked": TaskConfig()}}, r"tasks: found 'liked', expected labels of"),
        ({"tasks": {"like": TaskConfig(loss="mse")}}, r"tasks.like.loss: found mse of a binary"),
        ({"tasks": {"seconds": TaskConfig(loss="bce")}}, r"tasks.seconds.loss: found bce of a nu"),
        ({"tasks": TASKS, "head": HeadConfig(name="deepfm")}, r"head.name: found deepfm, which"),
    ],
)
def test_tasks_that_cannot_be_are_refused(
    changes: dict, message: str, rich_config: FitConfig
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(dataclasses.replace(rich_config, **changes))


def test_an_unknown_task_to_watch_is_refused(rich_config: FitConfig) -> None:
    config = dataclasses.replace(changed(rich_config, monitor="likes"), tasks=TASKS)
    with pytest.raises(ValueError, match=r"train.monitor: found likes, expected null or one of"):
        fit(config)


def test_a_label_of_one_value_is_refused(rich_config: FitConfig) -> None:
    inputs = Inputs.open(rich_config)
    inputs.data.train.outcomes["like"].zero_()
    config = dataclasses.replace(rich_config, tasks={"like": TaskConfig()})
    with pytest.raises(ValueError, match=r"one value alone in the training labels of \['like'\]"):
        fit(config, inputs)


def test_the_record_is_json(rich_config: FitConfig) -> None:
    config = dataclasses.replace(rich_config, tasks=TASKS)
    record = fit(config)
    written = json.loads((config.out_dir / "metrics.json").read_text())
    assert written["tasks"]["bought"]["gini"] == pytest.approx(record["tasks"]["bought"]["gini"])


@pytest.mark.parametrize(
    ("label", "value", "message"),
    [
        ("like", 2, "label like: found other values than 0 and 1"),
        ("like", None, "label like: found other values than 0 and 1"),
        ("seconds", float("nan"), "label seconds: found other values than finite numbers"),
    ],
)
def test_labels_of_a_dataset_that_we_did_not_write_are_checked(
    label: str, value: float | None, message: str, data: CtrData
) -> None:
    table = data.dataset.impressions("valid")
    values = [value, *table[label].to_pylist()[1:]]
    column = pa.array(values, pa.float32())
    bad = table.set_column(table.column_names.index(label), label, column)
    with pytest.raises(ValueError, match=message):
        data.encode(bad)


def test_the_command_prints_every_task(
    rich_config: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(rich_config, tasks=TASKS)
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(run_folder.plain(config)))
    assert main(["fit", "--config", str(tmp_path / "fit.yaml"), "--train.max_epochs", "1"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name}: {{" in printed for name in TASKS)
