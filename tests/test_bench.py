"""The benchmarks' own parts; the benchmarks themselves are run by `make bench`."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

SCRIPTS = (
    "shard_items",
    "load_items",
    "triples_bytes",
    "loss_memory",
    "dedup_step",
    "debias",
    "ctr_speed",
    "ctr_ladder",
    "ctr_parity",
    "video_ctr",
    "kuairand_multitask",
)
CASES = (
    "shard_cases",
    "load_cases",
    "load_sources",
    "shop_dataset",
    "loss_cases",
    "dedup_cases",
    "ctr_world",
    "ctr_speed_cases",
    "ctr_fuxictr",
)


@pytest.fixture
def workload() -> ModuleType:
    return importlib.import_module("workload")


@pytest.mark.parametrize("name", [*SCRIPTS, *CASES])
def test_a_script_is_imported_without_the_peers(name: str) -> None:
    assert callable(importlib.import_module(name).main)


def test_the_workload_is_a_function_of_its_seed(workload: ModuleType, tmp_path: Path) -> None:
    config = workload.WorkloadConfig(num_items=300, seed=3)
    first, second = (workload.prepare_workload(tmp_path / name, config) for name in "ab")
    names = sorted(path.name for path in first.dir.iterdir())
    for name in names:
        assert (first.dir / name).read_bytes() == (second.dir / name).read_bytes(), name
    other = workload.draw_picture(0, seed=4)
    assert other != workload.draw_picture(0, seed=3)
    # The texture is kept between pictures: neither order nor neighbours may matter.
    assert first.column("images").read_bytes().startswith(workload.draw_picture(0, seed=3))


def test_pictures_and_texts_are_of_the_size_of_a_photo_and_a_description(
    workload: ModuleType,
) -> None:
    pictures = [len(workload.draw_picture(item, seed=0)) for item in range(200)]
    texts = [len(workload.draw_text(item, seed=0)) for item in range(400)]
    assert np.mean(pictures) == pytest.approx(17_000, rel=0.05)
    assert np.mean(texts) == pytest.approx(265, rel=0.05)


def test_the_log_names_popular_items_by_zipfs_law(workload: ModuleType) -> None:
    config = workload.WorkloadConfig(num_items=2_000)
    log = workload.draw_interactions(config)
    counts = np.sort(np.bincount(log["item_id"].to_numpy(), minlength=2_000))[::-1]
    share = np.arange(1, 2_001) ** -0.9
    assert log.num_rows == counts.sum() == 100_000
    assert counts[:10].sum() / 100_000 == pytest.approx(share[:10].sum() / share.sum(), rel=0.03)


def test_an_outcome_is_one_line_with_ours_the_peers_and_their_ratios() -> None:
    interleaved = importlib.import_module("interleaved")

    def rounds(*cpu_us: float) -> list[dict[str, Any]]:
        common = {"wall_us": 50.0, "peak_bytes": 3_000_000, "samples": 10, "versions": {}}
        return [{"cpu_us": value, **common} for value in cpu_us]

    found = {
        "ours": rounds(10.0, 20.0, 12.0),
        "slow": rounds(100.0, 50.0, 120.0),
        "beside": rounds(1.0, 1.0, 1.0),
    }
    line = interleaved.outcome("shard_items", found, peers=["slow"], bytes={"ours": 7}).line()
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["name"], parsed["unit"]) == ("shard_items", "CPU us/sample")
    assert parsed["ours"] == 12.0
    assert parsed["peers"] == {"slow": 100.0}
    assert parsed["ratio"] == {"slow": 0.12}
    assert parsed["paired_ratio"] == {"slow": {"min": 0.1, "median": 0.1, "max": 0.4}}
    assert parsed["others"] == {"beside": 1.0}
    assert parsed["rounds"] == 3
    assert parsed["bytes"] == {"ours": 7}
    assert parsed["samples_per_second"]["ours"] == 20_000
    assert parsed["peak_mb"]["ours"] == 3.0


def test_the_bytes_of_triples_are_those_of_the_members_they_hold(
    workload: ModuleType, tmp_path: Path
) -> None:
    triples_bytes = importlib.import_module("triples_bytes")
    config = workload.WorkloadConfig(num_items=40, interactions_per_user=130)
    triples = triples_bytes.Triples(workload.prepare_workload(tmp_path, config))
    in_tar = [
        sum(512 + -(-len(payload) // 512) * 512 for _, payload in members)
        for _, members in triples.first(len(triples))
    ]
    assert triples.sample_bytes().tolist() == in_tar


def test_the_losses_of_the_benchmark_are_their_references() -> None:
    loss_cases = importlib.import_module("loss_cases")
    for name, reference in loss_cases.REFERENCES.items():
        apart = loss_cases.difference_from(name, reference, batch=96, width=16)
        assert apart["max_abs"] < 1e-5, name
        assert apart["max_relative"] < 1e-4, name


def test_a_fifth_of_the_coats_validates_and_no_rating_is_tested_twice(real_data: Path) -> None:
    coat_random = importlib.import_module("coat_random")
    if not (real_data / "coat").is_dir():
        pytest.skip(f"coat is not at $TRIPTYCH_DATA ({real_data})")
    coat = coat_random.read_coat(real_data / "coat")
    assert (len(coat.train), len(coat.test), coat.num_pairs) == (6960, 4640, 87_000)
    assert len(coat.valid) / len(coat.train) == pytest.approx(0.2, abs=0.01)
    assert len(coat.fit) + len(coat.valid) == len(coat.train)
    assert float(coat.given_UI.min()) > 0
    # The weighted mean of train that README.md beside the data gives.
    weight_B = 1 / coat.train.of(coat.given_UI)
    mean = float((weight_B * coat.train.rating_B).sum() / weight_B.sum())
    assert mean == pytest.approx(2.331, abs=5e-4)


def test_the_policies_of_the_banner_logs_are_distributions_at_every_position(
    real_data: Path,
) -> None:
    bandit_ope = importlib.import_module("bandit_ope")
    if not (real_data / "obd_bandit").is_dir():
        pytest.skip(f"obd_bandit is not at $TRIPTYCH_DATA ({real_data})")
    logs, num_items = bandit_ope.read_logs(real_data / "obd_bandit")
    assert num_items == {"men": 34, "women": 46}
    for (campaign, policy), log in logs.items():
        policy_PI = bandit_ope.policy_of_log(policy, log, num_items=num_items[campaign])
        assert policy_PI.shape == (3, num_items[campaign])
        np.testing.assert_allclose(policy_PI.sum(1), 1)
        if policy == "random":
            np.testing.assert_allclose(log.propensity_N, 1 / num_items[campaign], rtol=1e-6)


def test_a_row_does_not_predict_its_own_click() -> None:
    bandit_ope = importlib.import_module("bandit_ope")
    rows = np.arange(50)
    log = bandit_ope.Log(
        position_N=rows % 3,
        item_N=rows % 2,
        click_N=(rows == 7).astype(float),
        propensity_N=np.full(50, 0.5),
    )
    value_NI = bandit_ope.click_model(log, num_items=2)
    same_fold = rows % 5 == 7 % 5
    assert (value_NI[same_fold] == 0).all()
    prior = bandit_ope.PRIOR_ROWS
    # Of the other 40 rows one is the click, on item 1, which 20 of them showed.
    assert value_NI[0].tolist() == pytest.approx(
        [prior / 40 / (20 + prior), (1 + prior / 40) / (20 + prior)]
    )


def test_the_interval_of_a_rate_is_wilsons() -> None:
    found = importlib.import_module("bandit_ope").wilson_interval(46, 10_000)
    # The ends are the rates p that lie 1.96 of their own errors from the observed one.
    for end in (found.low, found.high):
        error = (end * (1 - end) / 10_000) ** 0.5
        assert abs(end - 0.0046) / error == pytest.approx(1.959964)


def test_every_debiased_loss_trains_on_a_part_and_on_the_whole() -> None:
    debias, coat_random = (importlib.import_module(name) for name in ("debias", "coat_random"))
    rng = np.random.default_rng(0)
    pair = torch.from_numpy(rng.permutation(12 * 10)[:60])
    ratings = coat_random.Ratings(
        user_B=pair // 10,
        item_B=pair % 10,
        rating_B=torch.from_numpy(rng.integers(1, 6, size=60)).float(),
    )
    coat = coat_random.Coat(
        train=ratings,
        valid_mask_B=torch.arange(60) < 12,
        test=ratings,
        given_UI=torch.full((12, 10), 0.5),
        feature_NF=torch.zeros(120, 1),
    )
    found = {}
    for loss in ("naive", "ips", "snips", "clipped_ips", "dr"):
        method = debias.Method(loss=loss, propensity_UI=coat.given_UI, chosen_by="naive")
        cap = 20.0 if loss == "clipped_ips" else None
        settings = debias.Settings(l2_factor=0.3, l2_bias=0.3, steps=100, max_weight=cap)
        part = debias.train(method, settings, coat, ratings=coat.fit, seed=0)
        assert [one.steps for one in part] == [50, 100]
        assert np.isfinite(debias.validation_error(part[-1], method, coat))
        found[loss] = debias.train(method, settings, coat, ratings=coat.train, seed=0)[-1].rating_UI
    # Half of all pairs, each with a propensity of a half: weighing changes nothing.
    for loss in ("ips", "snips", "clipped_ips"):
        torch.testing.assert_close(found[loss], found["naive"], atol=1e-4, rtol=0)


def test_the_ctr_world_is_a_function_of_its_seed_and_its_splits_differ() -> None:
    ctr_world = importlib.import_module("ctr_world")
    world = ctr_world.CtrWorld(num_rows=3_000, values=50, valid_rows=3_000)
    (value_nF, label_n), (again_nF, _) = (next(world.chunks("train")) for _ in range(2))
    assert (value_nF == again_nF).all()
    assert (value_nF != next(world.chunks("valid"))[0]).any()
    assert 0.1 < label_n.mean() < 0.5
    counts = np.bincount(value_nF.ravel(), minlength=50)
    assert counts[0] / counts[9] == pytest.approx(10, rel=0.2)  # Zipf's law


def test_a_folder_of_the_ctr_world_is_a_dataset_that_a_run_reads(tmp_path: Path) -> None:
    from data_prep.dataset import open_dataset
    from finetune.data import CtrData
    from finetune.settings import InputConfig

    ctr_world = importlib.import_module("ctr_world")
    world = ctr_world.CtrWorld(num_rows=500, values=30, valid_rows=100)
    ctr_world.write_dataset(world, tmp_path / "dataset")
    inputs = InputConfig(dataset_dir=tmp_path / "dataset", history_length=0, min_count=1)
    data = CtrData.learn(open_dataset(inputs.dataset_dir), inputs)
    value_nF, label_n = next(world.chunks("train"))
    assert data.train.ids_NF.shape == (500, ctr_world.NUM_FIELDS)
    assert data.train.label_N.tolist() == label_n.tolist()
    fields = data.vocabulary.categorical
    for column, field in enumerate(fields):
        place = ctr_world.FIELDS.index(field.name)
        known = [field.values[row - field.offset - 2] for row in data.train.ids_NF[:, column]]
        assert known == value_nF[:, place].tolist()
