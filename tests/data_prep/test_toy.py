import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.dataset import open_dataset
from data_prep.toy import make_toy, roc_auc
from data_prep.toy_settings import ToyConfig

SIZES = {"num_users": 40, "num_items": 60, "num_events": 600, "num_impressions": 500}


def digests(folder: Path) -> list[str]:
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]


def test_the_world_follows_from_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_toy(ToyConfig(out_dir=tmp_path / name, seed=seed, **SIZES))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert all(
        one != other
        for one, other in zip(digests(tmp_path / "a"), digests(tmp_path / "c"), strict=True)
    )


def test_the_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 80).astype(float), rng.integers(0, 2, 80)
    above = score[label == 1][:, None] - score[label == 0]
    assert roc_auc(score, label) == pytest.approx(np.mean((above > 0) + 0.5 * (above == 0)))
    assert np.isnan(roc_auc(score, np.ones(80, int)))


def test_the_truth_is_the_auc_of_the_true_probability_and_cold_items_exist(
    toy_raw: Path, toy_dataset: Path
) -> None:
    truth = json.loads((toy_raw / "truth.json").read_text())
    shown = pq.read_table(toy_raw / "impressions.parquet")
    probability = pq.read_table(toy_raw / "truth_impressions.parquet")["true_probability"]
    test = shown["timestamp"].cast("int64").to_numpy() >= truth["test_start"]
    label, score = shown["click"].to_numpy()[test], probability.to_numpy()[test]
    assert truth["best_reachable_auc"] == roc_auc(score, label)
    dataset = open_dataset(toy_dataset)
    assert dataset.manifest.cutoffs.test_start == truth["test_start"]
    assert dataset.manifest.cutoffs.valid_start == truth["valid_start"]
    cold = dataset.items["train_count"].to_numpy() == 0
    share = cold[dataset.impressions("test")["item_row"].to_numpy()].mean()
    assert share == pytest.approx(truth["cold_share"])
    assert 0.1 < share < 0.35


def test_a_world_of_one_row_has_an_unknown_best(tmp_path: Path) -> None:
    sizes = {"num_users": 1, "num_items": 1, "num_events": 1, "num_impressions": 1}
    assert make_toy(ToyConfig(out_dir=tmp_path, **sizes)).best_reachable_auc is None


def test_no_score_of_ids_or_context_comes_near_the_best_reachable(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    best = dataset.manifest.extra["best_reachable_auc"]
    assert 0.75 < best < 0.9
    train, test = dataset.impressions("train"), dataset.impressions("test")
    label = test["label"].to_numpy().astype(int)
    scores = [-test["position"].to_numpy()]
    for column, size in (("item_row", dataset.num_items), ("user_row", dataset.num_users)):
        rows, clicks = train[column].to_numpy(), train["label"].to_numpy()
        shown = np.bincount(rows, minlength=size)
        rate = (np.bincount(rows, weights=clicks, minlength=size) + 3) / (shown + 10)
        scores.append(rate[test[column].to_numpy()])
    scores.append(dataset.items["train_count"].to_numpy()[test["item_row"].to_numpy()])
    assert max(roc_auc(score, label) for score in scores) < best - 0.1


def test_no_item_is_met_before_it_arrives(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    arrival = dataset.items["first_time"].to_numpy()
    log = dataset.events()
    assert (log.times >= arrival[log.item_rows]).all()
    for split in ("train", "valid", "test"):
        shown = dataset.impressions(split)
        assert (shown["time"].to_numpy() >= arrival[shown["item_row"].to_numpy()]).all()


def test_some_pictures_and_texts_are_missing_and_popularity_is_skewed(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    for name in ("has_image", "has_text"):
        share = 1 - np.mean(dataset.items[name].to_pylist())
        assert 0.02 < share < 0.2
    counts = np.sort(dataset.items["train_count"].to_numpy())[::-1]
    assert counts[: len(counts) // 10].sum() > 0.2 * counts.sum()


@pytest.mark.parametrize("change", [{"num_items": 0}, {"missing_image_share": 1.0}, {"seed": -1}])
def test_bad_settings_are_refused(tmp_path: Path, change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        ToyConfig(out_dir=tmp_path, **change)
