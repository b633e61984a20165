"""The parts of the benchmark user_tower that are its own: how it ranks and what it says."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import user_tower as bench

from pretrain.cases import read_cases


def test_a_target_is_ranked_in_the_catalogue_and_among_what_was_drawn(tmp_path: Path) -> None:
    cases = {"user_id": [1, 2], "history": [[10], [30, 40]], "targets": [[20], [50]]}
    pq.write_table(pa.table(cases), tmp_path / "cases.parquet")
    train = {"user_id": [1, 2, 2], "item_id": [10, 30, 40]}
    pq.write_table(pa.table(train), tmp_path / "train.parquet")
    catalogue = pa.array([10, 20, 30, 40, 50])
    given = bench.Inputs(
        run_dir=tmp_path,
        dataset_dir=tmp_path,
        train=tmp_path / "train.parquet",
        cases=tmp_path / "cases.parquet",
        catalogue=catalogue,
        asked=read_cases(tmp_path / "cases.parquet", catalogue=catalogue),
        negatives_BC=torch.tensor([[2], [1]]),
    )
    scores = torch.tensor([[9.0, 5.0, 4.0, 7.0, 6.0], [1.0, 2.0, 8.0, 9.0, 2.0]])
    ranks = bench.target_ranks(lambda rows: scores[rows], given, chunk=1)
    # User 1: 40 and 50 stand above 20, the drawn 30 below. User 2: the drawn 20 ties with 50.
    assert ranks["catalogue"].tolist() == [[2], [1]]
    assert ranks["sampled"].tolist() == [[0], [1]]
    assert [row.tolist() for row in bench.sequences(given)] == [[0], [2, 3]]


def test_the_last_line_compares_ours_with_every_peer() -> None:
    def runs(*ranks: list[int]) -> list[dict[str, torch.Tensor]]:
        return [dict.fromkeys(("catalogue", "sampled"), torch.tensor(r)[:, None]) for r in ranks]

    chosen = f"ours_{bench.CHOSEN}"
    found = {
        chosen: runs([0, 99], [0, 0]),
        "popularity": runs([0, 99]),
        "sasrec_paper": runs([99, 0], [99, 0]),
        "sasrec_softmax": runs([0, 0], [0, 0]),
    }
    line = json.loads(bench.outcome(found, more={"stage": "test"}).line())
    assert (line["name"], line["ours"], line["stage"]) == ("user_tower", 0.75, "test")
    assert line["peers"] == {"popularity": 0.5, "sasrec_paper": 0.5, "sasrec_softmax": 1.0}
    assert line["ratio"]["sasrec_softmax"] == 0.75
    assert line["figures"][chosen]["whole_catalogue"]["hr@10"]["seeds"] == [0.5, 1.0]
    apart = line["ours_minus"]["sasrec_paper"]["hr@10"]
    assert apart["mean"] == pytest.approx(np.mean([1.0, 0.5]) - 0.5)
    assert apart["low"] <= apart["mean"] <= apart["high"]
