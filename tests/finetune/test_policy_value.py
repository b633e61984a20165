"""A run as a policy on a log with propensities, and reports on several labels and on uplift."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from data_prep.dataset import open_dataset
from finetune.cli import main
from finetune.command_settings import OffPolicyConfig
from finetune.fit import fit
from finetune.ladder import ladder
from finetune.policy_value import policy_value
from finetune.report import report
from finetune.settings import FitConfig, HeadConfig, LadderConfig, ReportConfig
from finetune.task_settings import TaskConfig

DEEPFM = HeadConfig(name="deepfm", embedding_width=4, hidden=(8,))


@pytest.fixture
def run(rich_config: FitConfig) -> FitConfig:
    config = dataclasses.replace(rich_config, head=DEEPFM)
    fit(config)
    return config


def test_an_even_policy_earns_the_inverse_propensity_mean(run: FitConfig) -> None:
    found = policy_value(OffPolicyConfig(run_dir=run.out_dir, temperatures=(1e9,)))
    dataset = open_dataset(run.dataset_dir)
    test = dataset.impressions("test")
    click, chance = test["label"].to_numpy(), test["propensity"].to_numpy().astype(np.float64)
    trained = set(dataset.impressions("train")["item_row"].to_pylist())
    assert found["items"] == len(trained)
    known = np.isin(test["item_row"].to_numpy(), list(trained))
    weight = known / len(trained) / chance
    ips, snips = (found["policies"]["1e+09"][name]["reward"] for name in ("ips", "snips"))
    assert ips["value"] == pytest.approx((weight * click).mean(), rel=1e-5)
    assert snips["value"] == pytest.approx((weight * click).sum() / weight.sum(), rel=1e-5)
    assert found["logged"]["value"] == pytest.approx(click.mean())
    assert json.loads((run.out_dir / "off_policy.json").read_text())["task"] == "label"


def test_the_best_item_by_the_model_is_worth_more_to_the_model(run: FitConfig) -> None:
    config = OffPolicyConfig(run_dir=run.out_dir, temperatures=(0.0, 1.0, 1e9))
    values = [one["direct"]["reward"]["value"] for one in policy_value(config)["policies"].values()]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[2]


def test_the_command_prints_and_refuses(
    run: FitConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["off_policy", "--run_dir", str(run.out_dir), "--out", str(tmp_path / "found.json")]
    assert main(words) == 0
    assert "temperature 0, dr:" in capsys.readouterr().out
    assert (tmp_path / "found.json").is_file()
    assert main([*words, "--task", "likes"]) == 2
    assert "found task likes, expected null or one of ['label']" in capsys.readouterr().err
    assert main([*words, "--max_weight", "0"]) == 2


def test_a_log_without_propensities_is_refused(run: FitConfig, toy_dataset: Path) -> None:
    config = OffPolicyConfig(run_dir=run.out_dir, dataset_dir=toy_dataset)
    with pytest.raises(ValueError, match=r"found propensity of the impressions none"):
        policy_value(config)


def page_of(config: FitConfig) -> str:
    report(ReportConfig(run_dir=config.out_dir, num_resamples=10))
    return (config.out_dir / "report.html").read_text()


def test_the_report_of_several_labels_shows_each(rich_config: FitConfig) -> None:
    tasks = {"label": TaskConfig(), "like": TaskConfig(), "seconds": TaskConfig()}
    config = dataclasses.replace(rich_config, tasks=tasks)
    record = fit(config)
    page = page_of(config)
    for text in ("Every task", "like, none", "seconds, none", "normalised Gini", "RMSE"):
        assert text in page
    assert f"{record['tasks']['like']['auc']:.4f}" in page
    assert f"{record['tasks']['seconds']['rmse']:.4f}" in page


def test_the_report_of_two_arms_shows_qini(rich_config: FitConfig) -> None:
    head = dataclasses.replace(rich_config.head, name="two_arms")
    config = dataclasses.replace(rich_config, head=head, tasks={"came_back": TaskConfig()})
    record = fit(config)
    page = page_of(config)
    assert "Qini coefficient" in page
    assert f"{record['uplift']['qini']:.4f}" in page


def test_the_report_of_the_click_alone_has_no_such_part(run: FitConfig) -> None:
    assert "Every task" not in page_of(run)


def test_a_number_first_cannot_be_reported(rich_config: FitConfig) -> None:
    config = dataclasses.replace(rich_config, tasks={"seconds": TaskConfig()})
    fit(config)
    with pytest.raises(ValueError, match="whose first task is a number"):
        page_of(config)


def test_a_ladder_climbs_for_several_labels_and_refuses_a_number_first(
    rich_config: FitConfig, tmp_path: Path
) -> None:
    shared = {
        name: getattr(rich_config, name) for name in ("dataset_dir", "head", "train", "trainer")
    }
    config = LadderConfig(
        **shared, out_dir=tmp_path / "ladder", rungs=("none",), seeds=(0, 1), num_resamples=10,
        tasks={"label": TaskConfig(), "like": TaskConfig()},
    )  # fmt: skip
    console = Console(file=io.StringIO())
    ladder(config, console=console)
    page = (config.out_dir / "report.html").read_text()
    assert "like, none" in page
    with pytest.raises(ValueError, match="'seconds' first, which is a number"):
        ladder(dataclasses.replace(config, tasks={"seconds": TaskConfig()}), console=console)


def test_chunks_of_contexts_change_nothing(run: FitConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OffPolicyConfig(run_dir=run.out_dir, temperatures=(0.0, 1.0))
    whole = policy_value(config)["policies"]
    monkeypatch.setattr("finetune.policy_value._CHUNK_PAIRS", 1)
    in_chunks = policy_value(config)["policies"]
    for temperature, estimates in whole.items():
        for name, one in estimates.items():
            again = in_chunks[temperature][name]["reward"]["value"]
            assert again == pytest.approx(one["reward"]["value"], rel=1e-4, nan_ok=True)
