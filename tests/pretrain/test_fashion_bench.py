"""The parts of `make fashion` that are its own: its page and its cut of raw vectors."""

import json
from pathlib import Path

import fashion as bench
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def test_raw_vectors_are_cut_by_modality(tmp_path: Path) -> None:
    (tmp_path / "released").mkdir()
    (tmp_path / "embeddings").mkdir()
    config = {
        "model": {"towers": {"text": {}, "image": {}}},
        "feature_widths": {"image": 3, "text": 2},
    }
    (tmp_path / "released" / "config.json").write_text(json.dumps(config))
    raw = pa.array(np.arange(10, dtype=np.float32))
    items = {"item_id": [7, 8], "raw": pa.FixedSizeListArray.from_arrays(raw, 5)}
    pq.write_table(pa.table(items), tmp_path / "embeddings" / "items.parquet")
    parts = pq.read_table(bench.write_raw_parts(tmp_path)).to_pydict()
    assert parts == {
        "item_id": [7, 8],
        "raw_text": [[0, 1], [5, 6]],
        "raw_image": [[2, 3, 4], [7, 8, 9]],
    }


def test_a_run_of_other_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, zero = tmp_path / "pretrain.yaml", tmp_path / "zero2.yaml"
    monkeypatch.setattr(bench, "ZERO", zero)
    zero.write_text("stage: 2")
    config.write_text("lr: 1")
    bench.check_same_settings(config, run_dir=tmp_path)
    bench.check_same_settings(config, run_dir=tmp_path)
    with pytest.raises(SystemExit, match="found a run of other settings"):
        bench.check_same_settings(config, run_dir=tmp_path, more=["--lr", "2"])
    config.write_text("lr: 2")
    with pytest.raises(SystemExit, match="found a run of other settings"):
        bench.check_same_settings(config, run_dir=tmp_path)


def test_the_page_shows_every_system_its_reference_and_the_caveat() -> None:
    systems = {
        "ease": {"recall@20": 0.2, "ndcg@20": 0.1, "se": 0.003, "n_users": 9},
        "ours": {"recall@20": 0.25, "ndcg@20": 0.13, "se": 0.003, "n_users": 9},
    }
    about = {"n_cases": 9, "n_candidates": 1234, "note": "not free of <look-ahead>"}
    html = bench.page({"fashion-all": systems, "about": {"fashion-all": about}})
    for shown in ("0.2000 ± 0.0030", "0.2136", "0.2500", "1,234", "not free of &lt;look-ahead"):
        assert shown in html
    assert html.index("ease") < html.index("<td>ours")
