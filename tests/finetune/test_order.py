import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from data_prep.dataset import Dataset
from finetune.batches import CtrTable, TrainBatches
from finetune.data import CtrData
from finetune.fit import fit
from finetune.metrics import log_loss
from finetune.model import CtrModel
from finetune.order import (
    BLOCK_ROWS,
    NegativeSampling,
    corrected_logit_shift,
    epoch_order,
    epoch_windows,
)
from finetune.settings import FitConfig

N = 5 * BLOCK_ROWS + 123


def windows(epoch: int = 0, **changes: object) -> list[np.ndarray]:
    made = epoch_windows(N, seed=3, epoch=epoch, shuffle_rows=2 * BLOCK_ROWS, **changes)
    return [window.rows for window in made]


def test_a_small_split_is_permuted_whole() -> None:
    (window,) = epoch_windows(1_000, seed=0, epoch=1)
    assert sorted(window.rows) == list(range(1_000))
    assert (window.rows == epoch_order(1_000, seed=0, epoch=1)).all()


def test_a_large_split_is_seen_once_in_windows_of_whole_blocks() -> None:
    found = windows()
    assert sorted(np.concatenate(found)) == list(range(N))
    for rows in found:
        assert len(rows) <= 2 * BLOCK_ROWS
        blocks = set(rows // BLOCK_ROWS)
        assert len(blocks) <= 2
        assert not (np.diff(rows) == 1).mean() > 0.01  # mixed inside


def test_windows_are_a_pure_function_of_seed_and_epoch() -> None:
    for one, other in zip(windows(1), windows(1), strict=True):
        assert (one == other).all()
    assert any(
        (one[:99] != other[:99]).any() for one, other in zip(windows(1), windows(2), strict=True)
    )


def test_sampling_keeps_every_positive_and_another_share_of_negatives_each_epoch() -> None:
    label_N = (np.random.default_rng(0).random(N) < 0.1).astype(np.float32)
    sampling = NegativeSampling.of(label_N, 0.25)
    seen = [np.concatenate(windows(epoch, sampling=sampling)) for epoch in (0, 1, 1)]
    positives = np.flatnonzero(label_N)
    for rows in seen:
        assert len(rows) == len(set(rows)) == sampling.num_kept
        assert set(positives) <= set(rows)
        assert len(rows) - len(positives) == round(0.25 * (N - len(positives)))
    assert (seen[1] == seen[2]).all()
    shared = len(set(seen[0]) & set(seen[1])) - len(positives)
    assert shared / (len(seen[0]) - len(positives)) == pytest.approx(0.25, abs=0.03)


def test_the_corrected_probability_is_that_of_the_paper() -> None:
    p, w = 0.3, 0.2
    logit = np.log(p / (1 - p)) + corrected_logit_shift(w)
    assert 1 / (1 + np.exp(-logit)) == pytest.approx(p / (p + (1 - p) / w))


def test_rates_learnt_from_a_share_of_the_negatives_are_calibrated_once_corrected() -> None:
    rng, num, w = np.random.default_rng(0), 400_000, 0.1
    group_N = rng.integers(3, size=num)
    label_N = (rng.random(num) < np.array([0.01, 0.05, 0.3])[group_N]).astype(np.float32)
    made = epoch_windows(num, seed=0, epoch=0, sampling=NegativeSampling.of(label_N, w))
    rows = np.concatenate([window.rows for window in made])
    for group in range(3):  # a model of one weight a group learns the group's rate
        p = label_N[rows][group_N[rows] == group].mean()
        q = 1 / (1 + np.exp(-(np.log(p / (1 - p)) + corrected_logit_shift(w))))
        assert q == pytest.approx(label_N[group_N == group].mean(), rel=0.03)
        assert p > 2 * q


def test_a_run_predicts_corrected_probabilities(fit_config: FitConfig, dataset: Dataset) -> None:
    train = dataclasses.replace(fit_config.train, negative_rate=0.25)
    config = dataclasses.replace(fit_config, train=train)
    record = fit(config)
    score = pq.read_table(config.out_dir / "predictions.parquet")["score"].to_numpy()
    data = CtrData.learn(dataset, config)
    model = CtrModel(config.head, data=data, content=None)  # as if all negatives had been seen
    model.load_state_dict(load_file(config.out_dir / "model.safetensors"))
    p = model.predict(CtrTable(data.open_test(), data.users, data.items, None)).numpy()
    np.testing.assert_allclose(score, p / (p + (1 - p) / 0.25), rtol=1e-4)
    valid = model.predict(CtrTable(data.valid, data.users, data.items, None)).numpy()
    corrected = valid / (valid + (1 - valid) / 0.25)
    expected = log_loss(data.valid.label_N.numpy(), corrected)
    assert record["valid"]["val/logloss"] == pytest.approx(expected, rel=1e-4)


def test_a_split_in_files_gives_the_batches_of_one_in_memory(
    dataset: Dataset, fit_config: FitConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetune.order.BLOCK_ROWS", 64)
    monkeypatch.setattr("finetune.batches.BLOCK_ROWS", 64)
    cache_dir = fit_config.out_dir / "cache"
    in_memory = CtrData.learn(dataset, fit_config)
    in_files = CtrData.learn(dataset, fit_config)
    in_files.memory_mb, in_files.cache_dir = 0, cache_dir
    assert in_memory.train.mapped is None
    assert in_files.train.mapped is not None
    again = CtrData.learn(dataset, fit_config)
    again.memory_mb, again.cache_dir = 0, cache_dir
    written = {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.npy")}

    def batches(data: CtrData) -> list:
        table = CtrTable(data.train, data.users, data.items, None, shuffle_rows=256)
        return list(TrainBatches(table, batch_size=100, seed=1, epoch=lambda: 2))

    expected = batches(in_memory)
    assert len(expected) == len(in_memory.train) // 100
    for data in (in_files, again):
        for one, other in zip(expected, batches(data), strict=True):
            for name in ("ids_BF", "numeric_BK", "item_B", "history_BL", "label_B"):
                a, b = getattr(one, name), getattr(other, name)
                assert torch.equal(a.nan_to_num(99), b.nan_to_num(99)), name
    assert {path: path.stat().st_mtime_ns for path in cache_dir.rglob("*.npy")} == written
    assert not list(cache_dir.glob("*.tmp"))


def test_a_run_from_files_finds_what_one_in_memory_finds(fit_config: FitConfig) -> None:
    other = dataclasses.replace(
        fit_config,
        out_dir=fit_config.out_dir.parent / "other",
        memory_mb=1,
        cache_dir=fit_config.out_dir.parent / "cache",
    )
    # The toy splits are below a megabyte, so the limit is lowered by hand.
    expected = fit(fit_config)["test"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CtrData, "_memory_bytes", lambda data: 0.0)
        assert fit(other)["test"] == expected
    assert len(list((fit_config.out_dir.parent / "cache").iterdir())) == 3
