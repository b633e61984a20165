"""The benchmarks' own parts; the benchmarks themselves are run by `make bench`."""

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parent / "bench"
SCRIPTS = ("shard_items", "load_items", "triples_bytes", "loss_memory", "dedup_step")
CASES = ("shard_cases", "load_cases", "load_sources", "shop_dataset", "loss_cases", "dedup_cases")


@pytest.fixture(autouse=True)
def bench_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/bench is a folder of scripts, not a package."""
    monkeypatch.syspath_prepend(str(BENCH))


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
