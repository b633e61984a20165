import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pytest
import torch

from data_prep.dataset import Dataset
from finetune.content import open_content
from finetune.data import CtrData
from finetune.fit import fit
from finetune.groups import group_masks
from finetune.metrics import auc
from finetune.report import write_report
from finetune.robustness import disturbances, noisy, without
from finetune.run_folder import read_config
from finetune.settings import FitConfig
from finetune.trust import exposure, gini, group_figures
from finetune.trust_settings import TrustConfig


def test_gini_is_half_the_mean_difference_over_the_mean() -> None:
    counts = np.array([0, 3, 1, 7, 2, 2])
    differences = np.abs(counts[:, None] - counts[None])
    assert gini(counts) == pytest.approx(differences.mean() / 2 / counts.mean())
    assert gini(np.array([4, 4, 4])) == 0
    assert gini(np.array([0, 0, 0, 9])) == pytest.approx(3 / 4)
    assert np.isnan(gini(np.array([0, 0])))


def test_groups_are_calibrated_and_ranked_by_themselves() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(4000)
    label = (rng.random(4000) < score).astype(np.float32)
    group = np.arange(4000) < 1000
    label[group] = rng.random(1000) < 0.5 * score[group]
    found = group_figures(
        label, score, masks={"half": group, "rest": ~group, "empty": np.zeros(4000, bool)}
    )
    assert list(found) == ["half", "rest"]
    assert found["half"]["calibration"] == pytest.approx(2, abs=0.1)
    assert found["half"]["ece"] == pytest.approx(0.25, abs=0.03)
    assert found["rest"]["calibration"] == pytest.approx(1, abs=0.05)
    assert found["rest"]["ece"] < 0.04
    for name, mask in (("half", group), ("rest", ~group)):
        assert found[name]["auc"] == pytest.approx(auc(label[mask], score[mask]))
        gap = auc(label[mask], score[mask]) - auc(label, score)
        assert found[name]["auc_gap"] == pytest.approx(gap)
        assert found[name]["impressions"] == mask.sum()
        assert found[name]["clicks"] == label[mask].sum()


def test_a_group_of_one_class_has_no_auc_and_keeps_its_calibration() -> None:
    label, score = np.array([1, 0, 1.0]), np.array([0.5, 0.5, 0.5])
    found = group_figures(label, score, masks={"clicks": label == 1, "none": label == 0})
    assert np.isnan(found["clicks"]["auc"])
    assert np.isnan(found["clicks"]["auc_gap"])
    assert found["clicks"]["calibration"] == 0.5
    assert np.isnan(found["none"]["calibration"])
    assert found["none"]["ece"] == 0.5


def test_exposure_counts_the_first_k_of_users_with_more_than_k() -> None:
    user = np.array([1, 1, 1, 2, 2, 2, 2, 3, 3])
    item = np.array([10, 11, 12, 10, 11, 12, 13, 13, 13])
    score = np.array([0.1, 0.9, 0.5, 0.2, 0.8, 0.8, 0.1, 0.9, 0.8])
    found = exposure(user, item, score_N=score, new_N=item >= 12, k=2)
    assert (found.k, found.users) == (2, 2)
    # User 1 is shown 11 and 12, user 2 11 and 12; user 3 has no more than k.
    assert found.gini == pytest.approx(gini(np.array([0, 2, 2, 0])))
    assert found.gini_of_candidates == pytest.approx(gini(np.array([2, 2, 2, 1])))
    assert found.new_item_share == pytest.approx(2 / 4)
    assert found.new_item_share_of_candidates == pytest.approx(3 / 7)


def test_exposure_breaks_ties_by_the_given_order() -> None:
    item = np.array([5, 6, 7])
    found = exposure(np.zeros(3, int), item, score_N=np.full(3, 0.5), new_N=item == 5, k=1)
    assert found.new_item_share == 1


def test_exposure_without_a_choice_does_not_exist() -> None:
    user = np.array([1, 2])
    found = exposure(user, user, score_N=np.array([0.1, 0.2]), new_N=user == 1, k=1)
    assert found.users == 0
    assert np.isnan([found.gini, found.new_item_share]).all()


def test_groups_of_a_feature_partition_the_impressions(dataset: Dataset) -> None:
    shown = dataset.impressions("test")
    config = TrustConfig(group_features=("age_group", "device", "category"), max_groups=2)
    masks = group_masks(config, dataset, shown, slices={})
    for name in config.group_features:
        own = [mask for group, mask in masks.items() if group.startswith(f"{name}=")]
        assert (np.sum(own, axis=0) == 1).all()
        assert len(own) >= 2
    category = dataset.items["category"].to_numpy(zero_copy_only=False)
    group = next(one for one in masks if one.startswith("category=") and "others" not in one)
    of_rows = category[shown["item_row"].to_numpy()]
    assert (masks[group] == (of_rows == group.removeprefix("category="))).all()
    sizes = [mask.sum() for one, mask in masks.items() if one.startswith("device=")]
    assert sizes[0] >= sizes[1]


def test_a_missing_value_is_a_group(dataset: Dataset) -> None:
    shown = dataset.impressions("test")
    place = shown.column_names.index("device")
    holes = [None, *shown["device"].to_pylist()[1:]]
    shown = shown.set_column(place, "device", pa.array(holes))
    config = TrustConfig(group_features=("device",))
    masks = group_masks(config, dataset, shown, slices={})
    assert masks["device=missing"].sum() == 1
    assert masks["device=missing"][0]


@pytest.mark.parametrize("name", ["price", "colour"])
def test_a_feature_that_makes_no_groups_is_refused_before_training(
    name: str, fit_config: FitConfig
) -> None:
    config = dataclasses.replace(fit_config, trust=TrustConfig(group_features=(name,)))
    with pytest.raises(ValueError, match=rf"group_features: found '{name}', expected categorical"):
        fit(config)
    assert not fit_config.out_dir.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"exposure_k": 0},
        {"max_groups": 0},
        {"noise_levels": (0.0,)},
        {"missing_shares": (1.5,)},
        {"group_features": ("device", "device")},
    ],
)
def test_settings_check_their_ranges(changes: dict) -> None:
    with pytest.raises(ValueError, match=f"trust.{next(iter(changes))}"):
        TrustConfig(**changes)


def test_noise_turns_vectors_by_its_level_and_leaves_missing_ones(
    dataset: Dataset, fit_config: FitConfig
) -> None:
    content = open_content("raw", fit_config, dataset=dataset, seed=0)
    assert content is not None
    wide = torch.nn.functional.normalize(torch.randn(500, 256), dim=1)
    wide[::7] = 0
    content = dataclasses.replace(content, item_IW=wide)
    found = noisy(content, 1.0).item_IW
    missing = (wide == 0).all(1)
    assert (found[missing] == 0).all()
    cosine = (found * wide).sum(1)[~missing]
    assert cosine.mean().item() == pytest.approx(0.5**0.5, abs=0.01)
    torch.testing.assert_close(found[~missing].norm(dim=1), torch.ones(int((~missing).sum())))
    assert (noisy(content, 0.1).item_IW * wide).sum(1)[~missing].min() > 0.98
    assert torch.equal(found, noisy(content, 1.0).item_IW)


def test_a_share_of_the_items_loses_its_content_and_more_lose_more(
    dataset: Dataset, fit_config: FitConfig, fake_release: object
) -> None:
    content = open_content("aligned", fit_config, dataset=dataset, seed=0)
    assert content is not None
    assert content.event_ID is not None
    half, whole = without(content, 0.5), without(content, 1.0)
    lost = (half.item_IW == 0).all(1)
    assert int(lost[:-1].sum()) == dataset.num_items // 2
    assert torch.equal(half.item_IW[~lost], content.item_IW[~lost])
    assert half.event_ID is not None
    assert (half.event_ID[lost] == 0).all()
    assert (whole.item_IW == 0).all()
    assert (without(content, 0.25).item_IW == 0).all(1)[~lost].sum() == 0


def test_a_disturbed_model_reads_the_disturbed_vectors_and_is_itself_again(
    dataset: Dataset, fit_config: FitConfig
) -> None:
    from finetune.model import CtrModel

    content = open_content("raw", fit_config, dataset=dataset, seed=0)
    data = CtrData.learn(dataset, fit_config)
    assert content is not None
    content.fit(data)
    model = CtrModel(fit_config.head, data=data, content=content)
    assert model.fields.content is not None
    before = model.fields.content.items.item_IW
    seen = []
    for kind, level, disturbed in disturbances(TrustConfig(), model, content=content):
        assert torch.equal(model.fields.content.items.item_IW, disturbed.item_IW)
        assert not torch.equal(disturbed.item_IW, before)
        seen.append((kind, level))
    assert seen == [("noise", 0.5), ("noise", 1.0), ("noise", 2.0),
                    ("missing", 0.25), ("missing", 0.5), ("missing", 1.0)]  # fmt: skip
    assert model.fields.content.items.item_IW is before


def test_users_and_similarities_are_of_the_disturbed_vectors(
    dataset: Dataset, fit_config: FitConfig
) -> None:
    content = open_content("raw", fit_config, dataset=dataset, seed=0)
    data = CtrData.learn(dataset, fit_config)
    assert content is not None
    content.fit(data)
    whole = content.features(data, data.valid)  # kept, as the judging of whole content does
    assert (whole.user_UW != 0).any()
    gone = without(content, 1.0).features(data, data.valid)
    assert (gone.user_UW == 0).all()
    assert gone.similarity_NS.isnan().all()
    turned = noisy(content, 1.0).features(data, data.valid)
    assert not torch.equal(turned.user_UW, whole.user_UW)
    assert torch.equal(content.features(data, data.valid).user_UW, whole.user_UW)


def test_a_run_and_its_report_hold_groups_exposure_and_robustness(
    fit_config: FitConfig, dataset: Dataset
) -> None:
    trust = TrustConfig(group_features=("device",), exposure_k=2, noise_levels=(1.0,))
    config = dataclasses.replace(fit_config, trust=trust)
    out_dir = fit_config.out_dir.parent / "report"
    runs = []
    for rung in ("none", "raw"):
        runs.append(out_dir / rung)
        record = fit(dataclasses.replace(config, rung=rung, out_dir=runs[-1]))
        assert read_config(runs[-1]).trust == trust
        groups = record["trust"]["groups"]
        assert {"cold", "new_users"} <= set(groups)
        assert any(name.startswith("device=") for name in groups)
        assert groups["warm"]["auc"] == record["test"]["auc_warm"]
        assert record["trust"]["exposure"]["k"] == 2
        asked = record["trust"]["robustness"]
        if rung == "none":
            assert asked == {}
        else:
            assert {kind: list(levels) for kind, levels in asked.items()} == {
                "noise": ["1"], "missing": ["0.25", "0.5", "1"]
            }  # fmt: skip
            assert asked["missing"]["1"]["auc"] != record["test"]["auc"]
    write_report(out_dir, run_dirs=runs, pretrain_metrics=None, num_resamples=10)
    written = json.loads((out_dir / "metrics.json").read_text())["trust"]
    record = json.loads((runs[1] / "metrics.json").read_text())
    found = written["raw"]["robustness"]["missing"]["1"]["auc"]
    assert found == {
        "mean": record["trust"]["robustness"]["missing"]["1"]["auc"],
        "std": 0.0,
        "values": [record["trust"]["robustness"]["missing"]["1"]["auc"]],
    }
    page = (out_dir / "report.html").read_text()
    headings = re.findall("<h2>(.*?)</h2>", page)
    assert headings[-4:-1] == [
        "Groups: calibration and AUC gaps",
        "Exposure: what the top 2 shows",
        "Robustness: noisy and missing content",
    ]
