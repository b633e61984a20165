"""`evaluate` on tables written here: each system's figures, and each bad table's error."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import pretrain.release
from pretrain.blend import blend
from pretrain.blend_samples import Question
from pretrain.evaluate import evaluate
from pretrain.mixed_retrieval import mixed_retrieval

ITEMS = [10, 20, 30, 40, 50]


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def vectors(values: list[list[float]]) -> pa.FixedSizeListArray:
    flat = pa.array(np.ravel(values).astype(np.float32))
    return pa.FixedSizeListArray.from_arrays(flat, len(values[0]))


@pytest.fixture
def train(tmp_path: Path) -> Path:
    """Items 10 and 20 go together, and so do 30 and 40; 50 is the most popular and alone."""
    users = [1, 1, 2, 2, 3, 3, 4, 5, 6, 7]
    items = [10, 20, 10, 20, 30, 40, 50, 50, 50, 50]
    return write(tmp_path / "train.parquet", user_id=users, item_id=items)


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    return write(
        tmp_path / "cases.parquet", user_id=[1, 2], history=[[10], [30]], targets=[[20], [40]]
    )


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """Unsorted, to show that ids and not places count; 20 is like 30, 10 is like 40."""
    return write(
        tmp_path / "items.parquet",
        item_id=[50, 40, 30, 20, 10],
        raw=vectors([[1, 1], [0, 1], [1, 0], [1, 0], [0, 1]]),
    )


def test_each_baseline_gets_its_figures(
    tmp_path: Path, train: Path, cases: Path, content: Path
) -> None:
    out = tmp_path / "runs" / "metrics.json"
    result = evaluate(cases, out, protocol="small", train=train, vectors=[content], k=1, note="!")
    written = json.loads(out.read_text())  # "slices" hold NaN: the error over one user
    assert {name: result[name] for name in ("small", "about")} == {
        name: written[name] for name in ("small", "about")
    }
    assert written["slices"]["small"].keys() == result["slices"]["small"].keys()
    recall = {name: values["recall@1"] for name, values in result["small"].items()}
    assert recall == {
        "popularity": 0,
        "item_knn": 1,
        "item_knn_shrunk": 1,
        "ease": 1,
        "content_knn_raw": 0,
    }
    assert result["small"]["ease"] == {
        "recall@1": 1, "ndcg@1": 1, "mrr": 1, "se": 0, "low": 1, "high": 1, "n_users": 2
    }  # fmt: skip
    about = result["about"]["small"]
    assert about["times"] == {
        "first_asked": None, "last_asked": None, "newest_event": {}, "look_ahead": []
    }  # fmt: skip
    assert about | {"times": None} == {
        "n_cases": 2, "n_candidates": 5, "note": "!", "times": None
    }  # fmt: skip


def test_only_candidates_are_ranked(tmp_path: Path, train: Path, cases: Path) -> None:
    candidates = write(tmp_path / "candidates.parquet", item_id=[40, 20])
    result = evaluate(cases, tmp_path / "m.json", train=train, candidates=candidates, k=2)
    assert result["catalogue"]["popularity"]["recall@2"] == 1
    assert result["about"]["catalogue"]["n_candidates"] == 2


def test_a_user_with_many_cases_counts_once(tmp_path: Path, train: Path) -> None:
    cases = write(
        tmp_path / "cases.parquet",
        user_id=["a", "a", "a", "b"],
        history=[[10], [10], [10], [30]],
        targets=[[20], [20], [30], [50]],
    )
    result = evaluate(cases, tmp_path / "m.json", train=train, baselines=["item_knn"], k=1)
    assert result["catalogue"]["item_knn"]["recall@1"] == pytest.approx((2 / 3 + 0) / 2)
    assert result["catalogue"]["item_knn"]["n_users"] == 2


def test_an_empty_history_is_a_case(tmp_path: Path, train: Path) -> None:
    cases = write(
        tmp_path / "cases.parquet",
        user_id=[1],
        history=pa.array([[]], pa.list_(pa.int64())),
        targets=[[50]],
    )
    result = evaluate(cases, tmp_path / "m.json", train=train, k=1)
    assert result["catalogue"]["popularity"]["recall@1"] == 1
    assert result["catalogue"]["item_knn"]["recall@1"] == 0  # nothing known: all items tie


def test_string_ids_work(tmp_path: Path) -> None:
    train = write(tmp_path / "t.parquet", user_id=["u", "u"], item_id=["x", "y"])
    cases = write(tmp_path / "c.parquet", user_id=["u"], history=[["x"]], targets=[["y"]])
    result = evaluate(cases, tmp_path / "m.json", train=train, k=1)
    assert result["catalogue"]["item_knn"]["recall@1"] == 1


def test_the_chunk_does_not_change_the_figures(tmp_path: Path, train: Path, content: Path) -> None:
    rng = np.random.default_rng(0)
    order = [rng.permutation(ITEMS).tolist() for _ in range(30)]
    cases = write(
        tmp_path / "cases.parquet",
        user_id=list(range(30)),
        history=[items[: 1 + n % 3] for n, items in enumerate(order)],
        targets=[items[3:] for items in order],
    )
    results = [
        evaluate(cases, tmp_path / "m.json", train=train, vectors=[content], chunk=chunk, k=2)
        for chunk in (1, 7, 100)
    ]
    assert results[0] == results[1] == results[2]


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A release whose user is the first event of the history."""

    def encode_histories(
        event: torch.Tensor, history: torch.Tensor, times: torch.Tensor, at: torch.Tensor,
        *, users: pa.Table | None = None,
    ) -> torch.Tensor:  # fmt: skip
        assert users is None
        assert (times < at[:, None]).all()
        return event[history[:, 0]]

    config = SimpleNamespace(user_columns=())
    fake = SimpleNamespace(
        fingerprint="abc", newest_event=5, config=config, encode_histories=encode_histories
    )
    monkeypatch.setattr(pretrain.release, "load_released", lambda path: fake)
    return fake


@pytest.fixture
def embedded(tmp_path: Path) -> Path:
    """As events, 10 points at 20 and 30 at 40."""
    (tmp_path / "embeddings").mkdir()
    eye = np.eye(5).tolist()
    return write(
        tmp_path / "embeddings" / "items.parquet",
        item_id=ITEMS,
        aligned=vectors(eye),
        event=vectors([eye[1], eye[0], eye[3], eye[2], eye[4]]),
        raw=vectors(eye),
    )


def test_ours_is_the_releases_user_against_its_items(
    tmp_path: Path, cases: Path, embedded: Path, release: SimpleNamespace
) -> None:
    about = embedded.parent / "embeddings.json"
    about.write_text(json.dumps({"release_fingerprint": release.fingerprint}))
    result = evaluate(cases, tmp_path / "m.json", vectors=[embedded], released=tmp_path, k=1)
    assert result["catalogue"]["ours"]["recall@1"] == 1
    assert "content_knn_raw" in result["catalogue"]


def test_vectors_of_another_release_are_an_error(
    tmp_path: Path, cases: Path, embedded: Path, release: SimpleNamespace
) -> None:
    (embedded.parent / "embeddings.json").write_text(json.dumps({"release_fingerprint": "xyz"}))
    with pytest.raises(ValueError, match="found vectors of the release xyz, expected those of"):
        evaluate(cases, tmp_path / "m.json", vectors=[embedded], released=tmp_path)


@pytest.fixture
def blind(tmp_path: Path) -> Path:
    """`embed --without image`: as events, 10 points nowhere any more."""
    folder = tmp_path / "blind"
    folder.mkdir()
    eye = np.eye(5).tolist()
    events = vectors([[0, 0, 0, 0, 0], eye[0], eye[3], eye[2], eye[4]])
    write(folder / "items.parquet", item_id=ITEMS, aligned=vectors(eye), event=events)
    about = {"release_fingerprint": "abc", "without": ["image"]}
    (folder / "embeddings.json").write_text(json.dumps(about))
    return folder


def test_knock_outs_are_ranked_beside_the_release_under_their_own_names(
    tmp_path: Path, cases: Path, embedded: Path, blind: Path, release: SimpleNamespace
) -> None:
    inputs: dict[str, Any] = {"released": tmp_path, "content": [], "k": 1}
    out = tmp_path / "m.json"
    found = evaluate(cases, out, vectors=[embedded], knock_outs=[blind], **inputs)["catalogue"]
    recall = {name: values["recall@1"] for name, values in found.items()}
    assert recall == {"ours": 1, "ours_without_image": 0.5}
    alone = evaluate(cases, out, vectors=[blind / "items.parquet"], **inputs)["catalogue"]
    assert alone == {"ours_without_image": found["ours_without_image"]}


def test_knock_outs_that_are_none_or_of_something_else_are_an_error(
    tmp_path: Path, cases: Path, embedded: Path, blind: Path, release: SimpleNamespace
) -> None:
    inputs: dict[str, Any] = {"vectors": [embedded], "released": tmp_path}
    out = tmp_path / "m.json"
    with pytest.raises(ValueError, match="embeddings without nothing, expected folders of"):
        evaluate(cases, out, knock_outs=[embedded.parent], **inputs)
    with pytest.raises(ValueError, match=r"blind without \['image'\], expected .* something else"):
        evaluate(cases, out, knock_outs=[blind, blind], **inputs)
    with pytest.raises(ValueError, match="found no released"):
        evaluate(cases, out, vectors=[embedded], knock_outs=[blind])
    table = pq.read_table(blind / "items.parquet")
    pq.write_table(table.slice(1), blind / "items.parquet")
    with pytest.raises(ValueError, match="found other items in"):
        evaluate(cases, out, knock_outs=[blind], **inputs)
    pq.write_table(table, blind / "items.parquet")
    about = {"release_fingerprint": "xyz", "without": ["image"]}
    (blind / "embeddings.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="found vectors of the release xyz"):
        evaluate(cases, out, knock_outs=[blind], **inputs)


def test_nothing_is_learnt_or_compared_on_a_knock_out(tmp_path: Path, blind: Path) -> None:
    question, out = Question(cases=tmp_path / "c", train=tmp_path / "t"), tmp_path / "o.json"
    with pytest.raises(ValueError, match="found a knock-out"):
        blend([question], out, vectors=[blind / "items.parquet"])
    with pytest.raises(ValueError, match="found a knock-out"):
        mixed_retrieval(tmp_path / "c", out, tmp_path, blind, tmp_path, blind)


def test_a_release_without_its_vectors_is_an_error(
    tmp_path: Path, cases: Path, content: Path
) -> None:
    with pytest.raises(ValueError, match=r"found the columns \['aligned', 'event'\] in none"):
        evaluate(cases, tmp_path / "m.json", vectors=[content], released=tmp_path)


def test_nothing_to_rank_with_is_an_error(tmp_path: Path, cases: Path) -> None:
    with pytest.raises(ValueError, match="nothing to rank with"):
        evaluate(cases, tmp_path / "m.json")


def test_a_missing_file_is_an_error(tmp_path: Path, cases: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.parquet: no such file"):
        evaluate(cases, tmp_path / "m.json", train=tmp_path / "nowhere.parquet")


def test_a_missing_column_is_an_error(tmp_path: Path, train: Path) -> None:
    cases = write(tmp_path / "cases.parquet", user_id=[1], history=[[10]])
    with pytest.raises(ValueError, match=r"expected \['targets'\] too"):
        evaluate(cases, tmp_path / "m.json", train=train)


def test_unknown_items_are_counted_and_shown(tmp_path: Path, train: Path) -> None:
    cases = write(
        tmp_path / "cases.parquet", user_id=[1, 2], history=[[10, 77], [88]], targets=[[20], [40]]
    )
    with pytest.raises(ValueError, match=r"found 2 values of history .* the first is 77"):
        evaluate(cases, tmp_path / "m.json", train=train)


def test_a_target_outside_the_candidates_is_an_error(
    tmp_path: Path, train: Path, cases: Path
) -> None:
    candidates = write(tmp_path / "candidates.parquet", item_id=[40])
    with pytest.raises(ValueError, match="outside the candidates"):
        evaluate(cases, tmp_path / "m.json", train=train, candidates=candidates)


@pytest.mark.parametrize(
    ("targets", "message"),
    [([[20, 20]], "1 repeated targets"), ([[10]], "1 targets inside their history")],
)
def test_targets_that_cannot_be_found_are_an_error(
    tmp_path: Path, train: Path, targets: list[list[int]], message: str
) -> None:
    cases = write(tmp_path / "cases.parquet", user_id=[1], history=[[10]], targets=targets)
    with pytest.raises(ValueError, match=message):
        evaluate(cases, tmp_path / "m.json", train=train)


def test_ids_of_another_type_are_an_error(tmp_path: Path, train: Path) -> None:
    cases = write(tmp_path / "cases.parquet", user_id=[1], history=[["ten"]], targets=[["20"]])
    with pytest.raises(ValueError, match="found history of type string"):
        evaluate(cases, tmp_path / "m.json", train=train)


def test_ids_instead_of_lists_are_an_error(tmp_path: Path, train: Path) -> None:
    cases = write(tmp_path / "cases.parquet", user_id=[1], history=[10], targets=[[20]])
    with pytest.raises(ValueError, match="expected lists of item ids"):
        evaluate(cases, tmp_path / "m.json", train=train)


def test_vectors_of_other_items_are_an_error(tmp_path: Path, cases: Path, content: Path) -> None:
    more = write(tmp_path / "more.parquet", item_id=[10, 20], noise=vectors([[1], [2]]))
    with pytest.raises(ValueError, match=r"more\.parquet: found 2 rows of 2 items"):
        evaluate(cases, tmp_path / "m.json", vectors=[content, more], content=["raw", "noise"])


def test_no_case_is_an_error(tmp_path: Path, train: Path) -> None:
    lists = pa.array([], pa.list_(pa.int64()))
    cases = write(
        tmp_path / "c.parquet", user_id=pa.array([], pa.int64()), history=lists, targets=lists
    )
    with pytest.raises(ValueError, match="found no case"):
        evaluate(cases, tmp_path / "m.json", train=train)


def test_slices_count_their_own_targets(tmp_path: Path, train: Path, content: Path) -> None:
    items = [10, 20, 30, 40, 50, 60]
    catalogue = write(tmp_path / "has.parquet", item_id=items, has_text=[True] * 3 + [False] * 3)
    cases = write(
        tmp_path / "c.parquet", user_id=[1, 2], history=[[10], [30]], targets=[[20], [40, 60]]
    )
    everything = write(tmp_path / "candidates.parquet", item_id=items)
    out = tmp_path / "out.json"
    found = evaluate(
        cases, out, train=train, candidates=everything, baselines=["ease"], k=1, items=catalogue
    )["slices"]["catalogue"]
    assert found["warm"]["ease"]["recall@1"] == 1
    assert found["cold"]["ease"]["recall@1"] == 0
    assert found["cold"]["ease"]["n_users"] == 1
    assert found["without_text"]["ease"]["recall@1"] == 0.5


def test_what_a_case_masks_instead_of_its_history_is_not_proposed(
    tmp_path: Path, train: Path
) -> None:
    columns = {"user_id": [1], "history": [[10]], "targets": [[40]]}
    cases = write(tmp_path / "c.parquet", **columns, masked=[[50, 20, 30]])
    out = tmp_path / "out.json"
    found = evaluate(cases, out, train=train, baselines=["popularity"], k=2)["catalogue"]
    # 10 is not masked and was chosen more often than 40.
    assert found["popularity"]["mrr"] == 0.5


@pytest.mark.parametrize("ids", [int, str])
def test_what_the_user_chose_in_training_is_not_proposed_but_for_targets(
    tmp_path: Path, ids: type
) -> None:
    users = [1, 1, 1, 2, 2, 3, 4, 4, 5]
    items = [10, 30, 50, 30, 50, 30, 40, 20, 50]
    train = write(tmp_path / "train.parquet", user_id=users, item_id=items)
    # 1 has taken 30 and 50, more popular than the targets, and takes 50 again; 9 is not known.
    columns = {"history": [[10], [10], [10]], "targets": [[40], [50], [40]]}
    cases = write(tmp_path / "c.parquet", user_id=[ids(1), ids(1), ids(9)], **columns)
    found = evaluate(cases, tmp_path / "m.json", train=train, baselines=["popularity"], k=1)
    # Of 20 and 40, which tie, 40 comes second, and 50 is alone; for user 9, 30 and 50 come first.
    by_user = [(1 / 2 + 1) / 2, 1 / 4]
    assert found["catalogue"]["popularity"]["mrr"] == pytest.approx(sum(by_user) / 2)


def test_times_without_a_moment_are_refused(tmp_path: Path, train: Path) -> None:
    cases = write(
        tmp_path / "c.parquet", user_id=[1], history=[[10]], targets=[[40]], history_times=[[5]]
    )
    with pytest.raises(ValueError, match="history_times and at_time together"):
        evaluate(cases, tmp_path / "out.json", train=train, baselines=["popularity"])
