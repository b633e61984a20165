"""What the bench of several labels reads and compares, from runs written by hand."""

import importlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.metrics import auc

BENCH = Path(__file__).parents[1] / "bench"
N = 400


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def write_run(folder: Path, labels: tuple[str, ...], *, skill: float, seed: int) -> Path:
    """Predictions of some skill; labels and users are those of every run."""
    truth = np.random.default_rng(0)
    table = {"user_id": truth.integers(50, size=N)}
    noise = np.random.default_rng(seed)
    every = {name: (truth.random(N) < 0.4).astype(np.float32) for name in
             ("label", "is_like", "long_view")}  # fmt: skip
    for place, label in enumerate(labels):
        suffix = f"_{label}" if place else ""
        table[f"label{suffix}"] = every[label]
        table[f"score{suffix}"] = (skill * every[label] + noise.normal(size=N)).astype(np.float32)
    folder.mkdir(parents=True)
    pq.write_table(pa.table(table), folder / "predictions.parquet")
    return folder


def test_differences_are_those_of_the_seeds_means(tmp_path: Path) -> None:
    bench = importlib.import_module("kuairand_multitask")
    skills = {"mmoe": 2.0, "ple": 0.2}
    runs = {
        system.name: [
            write_run(tmp_path / system.name / str(seed), system.labels,
                      skill=skills.get(system.name, 1.0), seed=seed)
            for seed in (1, 2)
        ]
        for system in bench.SYSTEMS
    }  # fmt: skip
    chosen = dict.fromkeys(runs, bench.Settings(id_l2=0.1))
    validation = {name: skills.get(name, 1.0) for name in runs}
    found = bench.outcome(runs, chosen, validation)
    assert found.more["ours_is"] == "mmoe"
    single = [
        auc(*bench.read_scores(folder, ("is_like",))["is_like"])
        for folder in runs["single_is_like"]
    ]
    mmoe = [auc(*bench.read_scores(folder, bench.LABELS)["is_like"]) for folder in runs["mmoe"]]
    apart = found.more["minus_single"]["mmoe"]["is_like"]
    assert apart["value"] == pytest.approx(np.mean(mmoe) - np.mean(single))
    assert apart["low"] < apart["value"] < apart["high"]
    assert found.more["above_on"]["mmoe"] == list(bench.LABELS)
    assert found.more["not_below_on_any"] == {"mmoe": True, "ple": False}
    assert found.ratio["mmoe_minus_single_is_like"] == apart["value"]
