"""Measures against closed forms; the alarm names the modality that is ignored."""

import csv
import logging
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.gate_balance import gate_balance
from pretrain.health import (
    alignment,
    effective_rank,
    knock_out_effect,
    modality_gap,
    uniformity,
)
from pretrain.health_monitor import HealthConfig, HealthMonitor, IgnoredModalities, measure
from pretrain.item_encoder import Fusion
from pretrain.modality_dropout import dropped_modalities


def unit(*shape: int) -> Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_measures_of_points_that_can_be_counted_by_hand() -> None:
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    torch.testing.assert_close(modality_gap(east, north), torch.tensor(math.sqrt(2)))
    torch.testing.assert_close(alignment(east, north), torch.tensor(2.0))
    assert alignment(east, -east) == 4
    torch.testing.assert_close(uniformity(torch.cat([east, north])), torch.tensor(-4.0))
    assert uniformity(east.expand(5, 2)) == 0
    torch.testing.assert_close(effective_rank(torch.eye(6)), torch.tensor(6.0))
    torch.testing.assert_close(effective_rank(unit(1, 4).expand(7, 4)), torch.tensor(1.0))
    two_to_one = torch.diag(torch.tensor([2.0, 1.0]))
    entropy = math.log(3) - 2 / 3 * math.log(2)
    torch.testing.assert_close(effective_rank(two_to_one), torch.tensor(math.exp(entropy)))
    assert effective_rank(torch.tensor([[1.0, math.nan], [0.0, 1.0]])).isnan()
    torch.testing.assert_close(knock_out_effect(east, north), torch.tensor(1.0))
    assert knock_out_effect(east, 3 * east) == 0


def test_uniformity_is_its_slow_twin() -> None:
    rows_nD = unit(9, 4)
    pairs = [
        math.exp(-2 * float((rows_nD[i] - rows_nD[j]).square().sum()))
        for i in range(9)
        for j in range(9)
        if i != j
    ]
    torch.testing.assert_close(
        float(uniformity(rows_nD)), math.log(sum(pairs) / len(pairs)), rtol=1e-5, atol=0
    )


NAMES = ["image", "text", "sound"]


def test_a_modality_with_a_shut_gate_has_no_effect_and_raises_the_alarm() -> None:
    torch.manual_seed(0)
    fusion = Fusion(NAMES, width=8)
    with torch.no_grad():
        fusion.bias_2M[:, 2] = -30.0
    presence_nM = torch.rand(40, 3) > 0.3
    found = measure(fusion, NAMES, tokens_nMD=torch.randn(40, 3, 8), presence_nM=presence_nM)
    values = {name: float(value) for name, value in found.items()}
    assert values["knock_out_sound"] < 1e-6 < 0.01 < values["knock_out_image"]
    alarm = IgnoredModalities(HealthConfig(checks=2))
    assert alarm.update(values, NAMES) == []
    assert alarm.update(values, NAMES) == ["sound"]
    assert alarm.update(values, NAMES) == []  # said once
    healthy = values | {"gate_sound": 0.3, "knock_out_sound": 0.2}
    alarm.update(healthy, NAMES)
    assert [alarm.update(values, NAMES) for _ in range(2)] == [[], ["sound"]]


def test_what_a_batch_lacks_is_not_measured() -> None:
    presence_nM = torch.tensor([[True, False, False], [True, True, False], [True, True, False]])
    found = measure(
        Fusion(NAMES, width=8), NAMES, tokens_nMD=torch.randn(3, 3, 8), presence_nM=presence_nM
    )
    assert {"gap_image_text", "knock_out_text", "uniformity_text"} <= found.keys()
    assert not any("sound" in name for name in found)
    assert IgnoredModalities(HealthConfig(checks=1)).update({}, NAMES) == []


def test_a_resumed_run_goes_on_counting() -> None:
    before, after = (HealthMonitor(HealthConfig(checks=3)) for _ in range(2))
    before.ignored.counts["text"] = 2
    after.load_state_dict(before.state_dict())
    values = {"gate_text": 0.0, "knock_out_text": 0.5}
    assert after.ignored.update(values, ["text"]) == ["text"]


def test_dropout_hides_a_share_and_never_the_last() -> None:
    rows_n = torch.arange(20_000)
    presence_nM = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    dropped_nM = dropped_modalities(rows_n, presence_nM, step=7, share=0.3)
    assert not (dropped_nM & ~presence_nM).any()
    left_n = (presence_nM & ~dropped_nM).sum(1)
    assert bool((left_n[presence_nM.any(1)] > 0).all())
    full = presence_nM.all(1)
    # All three drop with probability 0.027, and then one of them stays: a third of it each.
    expected = 0.3 - 0.3**3 / 3
    for m in range(3):
        assert abs(float(dropped_nM[full, m].float().mean()) - expected) < 0.02
    assert not dropped_nM[presence_nM.sum(1) == 1].any()
    assert not dropped_modalities(rows_n, presence_nM, step=7, share=0.0).any()


def test_dropout_is_a_function_of_row_and_step() -> None:
    rows_n, presence_nM = torch.arange(50), torch.ones(50, 2, dtype=torch.bool)
    whole = dropped_modalities(rows_n, presence_nM, step=3, share=0.5)
    order = torch.randperm(50)[:20]
    part = dropped_modalities(rows_n[order], presence_nM[order], step=3, share=0.5)
    assert torch.equal(part, whole[order])
    assert not torch.equal(dropped_modalities(rows_n, presence_nM, step=4, share=0.5), whole)
    assert not torch.equal(whole[:, 0], whole[:, 1])


def test_gate_balance_is_a_divergence_of_means() -> None:
    seen_nM = torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]], dtype=torch.bool)
    rows_n = torch.tensor([5, 6, 7, 5])  # the last is the first again
    gate_nM = torch.tensor([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2], [0.1, 0.9]])
    expected = 0.5 * math.log(0.5 / 0.7) + 0.5 * math.log(0.5 / 0.3)
    torch.testing.assert_close(
        gate_balance(gate_nM, seen_nM, rows_n=rows_n), torch.tensor(expected)
    )
    even = torch.tensor([[0.9, 0.1], [0.1, 0.9], [1.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(gate_balance(even, seen_nM, rows_n=rows_n), torch.tensor(0.0))
    none_seen = torch.zeros_like(seen_nM)
    assert gate_balance(gate_nM, none_seen, rows_n=rows_n) == 0


def test_gate_balance_opens_a_shut_gate() -> None:
    torch.manual_seed(0)
    fusion = Fusion(NAMES, width=8)
    with torch.no_grad():
        fusion.bias_2M[:, 2] = -8.0
    tokens_nMD, seen_nM = torch.randn(30, 3, 8), torch.ones(30, 3, dtype=torch.bool)
    optimizer = torch.optim.Adam(fusion.parameters(), lr=0.1)
    for _ in range(150):
        _, gate_nM = fusion(tokens_nMD, seen_nM)
        loss = gate_balance(gate_nM, seen_nM, rows_n=torch.arange(30))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (gate_nM.mean(0) - 1 / 3).abs().max() < 0.02


def test_a_training_logs_its_health_and_warns(
    tmp_path: Path,
    toy_dataset: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pretrain.cli import parse_run

    words = f"""--config configs/toy/pretrain.yaml --run.wandb off --run.progress_bar false
    --run.dir {tmp_path} --data.config.dataset_dir {toy_dataset} --run.health.every_steps 2
    --run.health.checks 2 --run.health.least_gate 0.9 --model.encoders.modality_dropout 0.3
    --model.loss.gate_balance_weight 0.1 --trainer.max_steps 4 --trainer.accelerator cpu
    --trainer.limit_val_batches 0 --run.monitor null"""
    cli = parse_run(words.split(), command="fit")
    with caplog.at_level(logging.WARNING):
        cli.trainer.fit(cli.model, datamodule=cli.datamodule)
    assert "modality image is ignored" in caplog.text
    with (tmp_path / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get("health/gap_image_text")]
    assert [int(row["step"]) for row in rows] == [1, 3]
    for name in ("image", "text"):
        assert float(rows[0][f"health/gradient_{name}"]) > 0
        assert 0 <= float(rows[0][f"health/knock_out_{name}"]) <= 2
        assert 1 <= float(rows[0][f"health/effective_rank_{name}"]) <= 64
