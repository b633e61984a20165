"""The ablation's pure parts: variants that the real command line takes, and its figures."""

import dataclasses
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import ablation
import pytest
import torch

from pretrain.cli import parse_run

ROOT = Path(__file__).parents[2]
CONFIG = Path("configs/quality_fashion/pretrain.yaml")
HALVES = torch.tensor([0.0, 1.0]).repeat(2000).double()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.chdir(ROOT)  # its configs are named from there
    return ablation


@cache
def settings_of(*words: str) -> dict[str, Any]:
    """What `pretrain fit` makes of the shipped recipe and these words."""
    given = ["--config", str(CONFIG), "--run.dir", "unused", "--run.wandb", "off", *words]
    cli = parse_run(given, command="fit")
    return {
        "loss": dataclasses.asdict(cli.model.loss_config),
        "encoders": dataclasses.asdict(cli.model.encoders),
        "data": dataclasses.asdict(cli.datamodule.config),
    }


def apart(found: Any, other: Any, name: str = "") -> dict[str, Any]:  # noqa: ANN401 - any setting
    """Settings that differ, by name → what `found` has."""
    if not (isinstance(found, dict) and isinstance(other, dict)):
        return {} if found == other else {name: found}
    return {
        below: value
        for key in found.keys() | other.keys()
        for below, value in apart(found.get(key), other.get(key), f"{name}.{key}").items()
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("no_item_item", {".loss.behaviour_weight": 0.0, ".data.item_pairs": 0}),
        ("no_content_content", {".loss.pair_weight": 0.0}),
        ("no_user_item", {".loss.user_item_weight": 0.0}),
        ("no_logq", {".loss.logq": 0.0}),
        ("whole_logq", {".loss.logq": 1.0}),
        ("no_own_history_mask", {".loss.own_history": "negative"}),
        ("no_same_content_mask", {".loss.same_content": "negative"}),
        ("no_modality_dropout", {".encoders.modality_dropout": 0.0}),
        ("no_ids", {".encoders.ids": "none"}),
        ("ids_in_history", {".encoders.ids": "history"}),
        ("no_picture", {".encoders.towers.image": None}),
        ("no_text_and_words", {".encoders.towers.text": None, ".encoders.towers.words": None}),
        ("users_as_mean", {}),
    ],
)
def test_a_variant_differs_from_the_full_recipe_in_what_its_name_says(
    name: str, expected: dict[str, Any], bench: ModuleType
) -> None:
    variant = bench.variants(CONFIG)[name]
    full = settings_of(*bench.words(bench.QUIET))
    found = settings_of(*bench.words(bench.QUIET | variant.settings))
    assert apart(found, full) == expected


def test_the_shipped_recipe_has_on_what_the_variants_take_away() -> None:
    shipped = settings_of()
    assert shipped["loss"]["behaviour_weight"] > 0
    assert shipped["loss"]["pair_weight"] > 0
    assert shipped["loss"]["logq"] > 0
    assert shipped["data"]["item_pairs"] > 0
    assert shipped["encoders"]["modality_dropout"] > 0
    assert shipped["encoders"]["ids"] == "both"


def test_an_interval_over_users_is_that_of_their_means_over_the_seeds(bench: ModuleType) -> None:
    same = bench.over_users([torch.full((50,), 0.25), torch.full((50,), 0.75)])
    assert same == {"mean": 0.5, "low": 0.5, "high": 0.5, "seeds": [0.25, 0.75]}
    # What one seed finds and the other does not cancels within each user.
    assert bench.over_users([HALVES, 1 - HALVES])["low"] == 0.5
    found = bench.over_users([HALVES, HALVES])
    half = 1.96 * 0.5 / len(HALVES) ** 0.5
    assert found["low"] == pytest.approx(0.5 - half, abs=0.002)
    assert found["high"] == pytest.approx(0.5 + half, abs=0.002)


def test_differences_are_paired_by_user_and_seed(bench: ModuleType) -> None:
    ours = [HALVES, 1 - HALVES]
    recalls = {
        "full": {"fashion-cold": ours, "fashion-all": ours},
        "no_logq": {"fashion-cold": [one - 0.125 for one in ours], "fashion-all": ours},
    }
    figures = bench.compared(recalls)
    apart_by = figures["no_logq"]["fashion-cold"]["difference"]
    assert apart_by == {"mean": -0.125, "low": -0.125, "high": -0.125, "seeds": [-0.125, -0.125]}
    last = bench.outcome(figures, seeds=[0, 1])
    assert json.loads(json.dumps(last)) == last
    assert last["ours"]["fashion-cold"]["mean"] == 0.5
    assert last["peers"].keys() == {"no_logq"}
    assert last["ratio"] == {"no_logq": {"fashion-cold": 1.333, "fashion-all": 1.0}}
    shown = bench.markdown(*bench.table(figures)).splitlines()
    assert shown[2] == "| full | 0.5000 |  |  | 0.5000 |  |  |"
    assert shown[3].startswith(
        "| no_logq | 0.3750 | -0.1250 [-0.1250, -0.1250] | -0.1250 -0.1250 | 0.5000 | +0.0000"
    )
