"""Debiased losses, position as a bias and uplift, from the dataset to the run folder."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_prep.dataset import open_dataset
from finetune.batches import Batch, CtrTable
from finetune.data import CtrData
from finetune.debiased_training import Debiasing, DoublyRobust, item_propensities, weights_of
from finetune.drawn_pairs import DrawnPairs
from finetune.fit import Inputs, fit
from finetune.model import CtrModel
from finetune.report import report
from finetune.run_folder import Run
from finetune.settings import FitConfig, HeadConfig, ReportConfig
from finetune.task_settings import DebiasConfig, PositionConfig, TaskConfig
from finetune.tasks import CLICK_TASK
from finetune.uplift_curves import qini_coefficient

DEEPFM = HeadConfig(name="deepfm", embedding_width=4, hidden=(8,))


def training(config: FitConfig, **train: object) -> FitConfig:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


@pytest.fixture
def one_label(rich_config: FitConfig) -> FitConfig:
    return dataclasses.replace(rich_config, head=DEEPFM)


@pytest.fixture
def data(rich_config: FitConfig) -> CtrData:
    return CtrData.learn(open_dataset(rich_config.dataset_dir), rich_config)


@pytest.fixture
def batch(data: CtrData) -> Batch:
    return CtrTable(data.train, data.users, data.items, None).batch(torch.arange(96))


LOGGED = DebiasConfig(loss="ips")
DEBIASED = [
    LOGGED,
    DebiasConfig(loss="snips"),
    DebiasConfig(loss="clipped_ips", max_weight=3),
    DebiasConfig(loss="dr"),
    DebiasConfig(loss="ips", propensity="items"),
    DebiasConfig(loss="dr", propensity="items"),
    DebiasConfig(loss="snips", propensity="naive_bayes", marginal=0.1),
]


@pytest.mark.parametrize("debias", DEBIASED, ids=lambda one: f"{one.loss}-{one.propensity}")
def test_a_run_learns_by_every_debiased_loss(debias: DebiasConfig, one_label: FitConfig) -> None:
    config = training(one_label, debias=debias, max_epochs=4, lr=2e-2, id_lr=2e-2)
    fit(config)
    # Of the last epoch: the best one by validation may be the first, which has learnt little.
    assert Run.load(config.out_dir).history[-1]["train/auc"] > 0.58
    weights = pq.read_table(config.out_dir / "predictions.parquet")["score"].to_numpy()
    plain = training(one_label, max_epochs=4)
    fit(dataclasses.replace(plain, out_dir=one_label.out_dir.parent / "plain"))
    other = pq.read_table(one_label.out_dir.parent / "plain/predictions.parquet")["score"]
    assert not np.allclose(weights, other.to_numpy(), atol=1e-4)


def test_logged_propensities_weigh_the_errors_of_a_batch(data: CtrData, batch: Batch) -> None:
    error = torch.rand(len(batch.label_B))
    chance = batch.outcomes["propensity"]
    assert set(chance.tolist()) > {0.5, 0.25}
    pairs = data.dataset.num_items * len(error)
    ips = Debiasing(LOGGED, data=data, task=CLICK_TASK)
    torch.testing.assert_close(ips(error, batch, batch.label_B), (error / chance).sum() / pairs)
    rows = dataclasses.replace(LOGGED, pairs_per_impression=1.0)
    torch.testing.assert_close(
        Debiasing(rows, data=data, task=CLICK_TASK)(error, batch, batch.label_B),
        (error / chance).mean(),
    )
    snips = Debiasing(DebiasConfig(loss="snips"), data=data, task=CLICK_TASK)
    expected = (error / chance).sum() / (1 / chance).sum()
    torch.testing.assert_close(snips(error, batch, batch.label_B), expected)


def test_propensities_of_items_are_their_shares_of_what_was_shown(data: CtrData) -> None:
    """Smoothed by features; the items' own counts are one of them."""
    propensity_I = item_propensities(data, l2=1e-6)
    shown_I = torch.bincount(data.train.item_N, minlength=data.dataset.num_items)
    share_I = shown_I / shown_I.sum()
    often = shown_I >= 20
    assert often.sum() > 10
    assert (propensity_I[often] / share_I[often] - 1).abs().median() < 0.2
    assert propensity_I.sum().item() == pytest.approx(1, abs=0.1)
    assert (propensity_I > 0).all()


def test_propensities_of_labels_are_bayes(data: CtrData, batch: Batch) -> None:
    config = DebiasConfig(loss="ips", propensity="naive_bayes", marginal=0.1)
    found = Debiasing(config, data=data, task=CLICK_TASK).propensities(batch, batch.label_B)
    rate = data.train.label_N.mean()
    per_label = torch.stack([(1 - rate) / 0.9, rate / 0.1]) / data.dataset.num_items
    torch.testing.assert_close(found, per_label[batch.label_B.long()], rtol=1e-3, atol=0)


def same_inputs(one: Batch, other: Batch) -> None:
    for name in ("ids_BF", "numeric_BK", "item_B", "history_BL"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), equal_nan=True)
    torch.testing.assert_close(one.multi, other.multi)


def test_a_drawn_pair_is_the_batch_with_another_item(data: CtrData, batch: Batch) -> None:
    drawn = DrawnPairs(data)
    same_inputs(drawn.with_items(batch, batch.item_B), batch)
    item_B = torch.full_like(batch.item_B, 3)
    other = drawn.with_items(batch, item_B)
    table = data.dataset.impressions("train").slice(0, len(item_B))
    table = table.set_column(1, "item_row", [item_B.numpy().astype(np.int32)])
    impressions = data.encode(table)
    expected = CtrTable(impressions, data.users, data.items, None).batch(torch.arange(len(item_B)))
    same_inputs(other, expected)
    assert other.outcomes == {}
    torch.manual_seed(0)
    assert drawn(batch).item_B.unique().numel() > 30


def test_both_models_of_dr_get_the_gradient_of_their_own_loss(
    data: CtrData, batch: Batch, one_label: FitConfig
) -> None:
    torch.manual_seed(0)
    config = DebiasConfig(loss="dr", max_weight=1e9)
    head = dataclasses.replace(one_label.head, dropout=0.0)
    model, imputation = (CtrModel(head, data=data, content=None) for _ in range(2))
    robust = DoublyRobust(config, data=data, task=CLICK_TASK, imputation=imputation)
    item_B = torch.randint(data.dataset.num_items, batch.item_B.shape)
    drawn = robust.drawn.with_items(batch, item_B)
    robust.drawn = lambda _: drawn  # type: ignore[assignment]
    robust.step(model, batch, output_B1=model(batch).output_BO, label_B=batch.label_B).backward()
    weight = 1 / batch.outcomes["propensity"]
    pairs = data.dataset.num_items * len(weight)

    def gradient(loss: Tensor, of: CtrModel) -> Tensor:
        return torch.autograd.grad(loss, of.fields.table.weight)[0]

    def bce(logit: Tensor, label: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(logit, label, reduction="none")

    logit, imputed = model(batch).logit_B, imputation(batch).logit_B
    guess = imputed.sigmoid().detach()
    loss = bce(model(drawn).logit_B, imputation(drawn).logit_B.sigmoid().detach()).mean()
    loss = loss + (weight * (bce(logit, batch.label_B) - bce(logit, guess))).sum() / pairs
    torch.testing.assert_close(model.fields.table.weight.grad, gradient(loss, model))
    apart = imputed.sigmoid() - batch.label_B  # (p - p̂) - (p - y), whose prediction cancels
    loss = (weight * apart.square()).sum() / pairs
    torch.testing.assert_close(imputation.fields.table.weight.grad, gradient(loss, imputation))


def test_places_are_learnt_beside_the_model_and_gone_when_it_serves(one_label: FitConfig) -> None:
    """Toy clicks fall with the place, and the place is no feature here."""
    config = training(
        one_label, position=PositionConfig(mode="seen", first_is_seen=True), max_epochs=6, lr=0.03
    )
    record = fit(config)
    seen = record["places"]["label"]
    assert seen[0] == 1.0
    assert np.mean(seen[1:3]) > np.mean(seen[-3:])
    saved = (config.out_dir / "model.safetensors").read_bytes()
    assert b"place_P" not in saved


def test_places_are_found_beside_a_model_with_a_slow_rate(
    one_label: FitConfig, data: CtrData
) -> None:
    """Items of the toy log are shown in random places, whose click rates are then the places'."""
    places = PositionConfig(mode="add", dropout=0.0)
    record = fit(training(one_label, position=places, max_epochs=6, patience=6))
    place_N, click_N = (
        one.numpy() for one in (data.train.outcomes["position"], data.train.label_N)
    )
    rate_P = np.bincount(place_N, weights=click_N) / np.bincount(place_N)
    log_odds_P = np.log(rate_P / (1 - rate_P))
    assert np.corrcoef(record["places"]["label"], log_odds_P)[0, 1] > 0.9
    assert np.ptp(record["places"]["label"]) > 0.5 * np.ptp(log_odds_P)
    report(ReportConfig(run_dir=one_label.out_dir, num_resamples=10))
    page = (one_label.out_dir / "report.html").read_text()
    assert f"<th>0</th><td>{record['places']['label'][0]:.3f}</td>" in page


def test_the_weights_of_a_debiased_loss_are_recorded_and_warned_of(
    one_label: FitConfig, data: CtrData, caplog: pytest.LogCaptureFixture
) -> None:
    cut = DebiasConfig(loss="clipped_ips", max_weight=1.5)
    record = fit(training(one_label, debias=cut, max_epochs=1))
    weight = 1 / data.train.outcomes["propensity"].double().numpy()
    assert record["debias"]["clipped_share"] == pytest.approx((weight > 1.5).mean())
    assert "100 % of the training impressions have an inverse propensity above" in caplog.text
    caplog.clear()
    found = weights_of(torch.tensor([1e-9, *[0.5] * 999]), max_weight=None)
    assert found["effective_rows"] == pytest.approx(1, rel=1e-3)
    assert found["clipped_share"] == 0
    assert "effective rows of 1000" in caplog.text
    caplog.clear()
    weights_of(torch.full((10,), 0.1), max_weight=None)
    assert not caplog.text


@pytest.mark.parametrize("mode", ["add", "seen"])
def test_every_binary_task_has_places_of_its_own(mode: str, rich_config: FitConfig) -> None:
    tasks = {"label": TaskConfig(), "seconds": TaskConfig(), "like": TaskConfig()}
    config = training(rich_config, position=PositionConfig(mode=mode))
    record = fit(dataclasses.replace(config, tasks=tasks))
    assert set(record["places"]) == {"mode", "label", "like"}
    assert record["places"]["label"] != record["places"]["like"]


def test_two_arms_learn_a_treatment_and_are_judged_by_its_uplift(rich_config: FitConfig) -> None:
    config = dataclasses.replace(
        rich_config,
        head=dataclasses.replace(rich_config.head, name="two_arms"),
        tasks={"came_back": TaskConfig()},
    )
    record = fit(config)
    table = pq.read_table(config.out_dir / "predictions.parquet")
    column = {name: table[name].to_numpy() for name in table.column_names[3:]}
    np.testing.assert_allclose(
        column["score_uplift"], column["score_treated"] - column["score_control"], atol=1e-6
    )
    treated = column["treatment"] > 0
    factual = np.where(treated, column["score_treated"], column["score_control"])
    np.testing.assert_array_equal(column["score"], factual)
    qini = qini_coefficient(
        column["label"],
        treated_N=treated.astype(np.int64),
        score_N=column["score_uplift"].astype(np.float64),
    )
    assert record["uplift"]["qini"] == pytest.approx(qini)
    effect = column["label"][treated].mean() - column["label"][~treated].mean()
    assert record["uplift"]["average_effect"] == pytest.approx(effect, rel=1e-5)
    assert effect > 0.05
    assert record["uplift"]["predicted_effect"] > 0
    assert record["valid"]["val/monitor"] == record["valid"]["val/uplift/qini"]


def test_arms_of_a_number_train_on_its_standard_scale(rich_config: FitConfig) -> None:
    config = dataclasses.replace(
        rich_config,
        head=dataclasses.replace(rich_config.head, name="two_arms"),
        tasks={"seconds": TaskConfig()},
    )
    record = fit(training(config, max_epochs=4))
    assert abs(record["uplift"]["predicted_effect"]) < 20
    assert record["test"]["rmse"] < 40


@pytest.mark.parametrize(
    ("changes", "head", "message"),
    [
        ({"debias": LOGGED}, "deepfm", "reads the impressions' propensity, but"),
        (
            {"position": PositionConfig(mode="add")},
            "deepfm",
            "impressions' position, but",
        ),
        ({}, "two_arms", "reads the impressions' treatment, but"),
    ],
)
def test_a_dataset_without_the_column_is_refused(
    changes: dict, head: str, message: str, fit_config: FitConfig
) -> None:
    config = dataclasses.replace(fit_config, head=dataclasses.replace(fit_config.head, name=head))
    with pytest.raises(ValueError, match=message):
        fit(training(config, **changes))


TWO = {"label": TaskConfig(), "like": TaskConfig()}
PLACES = PositionConfig(mode="add")
BAYES = DebiasConfig(loss="ips", propensity="naive_bayes", marginal=0.1)


@pytest.mark.parametrize(
    ("changes", "head", "tasks", "message"),
    [
        ({"debias": DebiasConfig(loss="dr")}, "mmoe", TWO, "train.debias.loss: found dr with"),
        ({"debias": DebiasConfig(loss="dr"), "position": PLACES}, "deepfm", {}, "found dr on the"),
        ({"debias": BAYES}, "mmoe", TWO, "train.debias.propensity: found naive_bayes with"),
        ({"position": PLACES}, "two_arms", {}, "head.name: found two_arms with a debiased"),
        ({"position": PLACES}, "deepfm", {"seconds": TaskConfig()}, "found add with the tasks"),
        (
            {"task_weights": "uncertainty"}, "mmoe",
            {"label": TaskConfig(), "bought": TaskConfig(loss="ziln")},
            "train.task_weights: found uncertainty with ziln",
        ),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_together_are_refused(
    changes: dict, head: str, tasks: dict, message: str, rich_config: FitConfig
) -> None:
    config = dataclasses.replace(
        rich_config, head=dataclasses.replace(rich_config.head, name=head), tasks=tasks
    )
    with pytest.raises(ValueError, match=message):
        fit(training(config, **changes))


def test_one_arm_alone_is_refused(rich_config: FitConfig) -> None:
    inputs = Inputs.open(rich_config)
    inputs.data.train.outcomes["treatment"].zero_()
    config = dataclasses.replace(
        rich_config, head=dataclasses.replace(rich_config.head, name="two_arms")
    )
    with pytest.raises(ValueError, match="found a share of 0 treated, expected both arms"):
        fit(config, inputs)


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        (DebiasConfig, {"max_weight": 0.5}),
        (DebiasConfig, {"l2": -1.0}),
        (DebiasConfig, {"pairs_per_impression": 0.0}),
        (DebiasConfig, {"marginal": 0.1}),
        (DebiasConfig, {"marginal": 1.5, "propensity": "naive_bayes"}),
        (PositionConfig, {"dropout": 1.0}),
        (TaskConfig, {"weight": 0.0}),
    ],
)
def test_settings_check_their_ranges(settings: type, changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        settings(**changes)
