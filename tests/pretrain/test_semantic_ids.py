"""Codes of items: nearest by a slow twin, finer with every level, balanced as reported."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from data_prep.dataset import open_dataset
from pretrain.residual_codes import (
    code_use,
    collision_numbers,
    decode_residual,
    encode_residual,
    kmeans,
    nearest_codes,
    residual_kmeans,
)
from pretrain.residual_quantiser import ResidualQuantiser, train_quantiser
from pretrain.semantic_ids import semantic_ids


def clouds(num: int = 5, each: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    centres = 10 * torch.randn(num, 6)
    label_n = torch.arange(num).repeat_interleave(each)
    return centres[label_n] + 0.1 * torch.randn(num * each, 6), label_n


def test_kmeans_finds_clouds_that_lie_apart() -> None:
    rows_nD, label_n = clouds()
    codes_KD = kmeans(rows_nD, num_codes=5, seed=3, iterations=20)
    code_n = nearest_codes(rows_nD, codes_KD)
    for label in range(5):
        own = code_n[label_n == label]
        assert len(own.unique()) == 1
        torch.testing.assert_close(codes_KD[own[0]], rows_nD[label_n == label].mean(0))
    assert len(code_n.unique()) == 5
    assert torch.equal(kmeans(rows_nD, num_codes=5, seed=3, iterations=20), codes_KD)


def test_rows_fewer_than_codes_are_codes_themselves() -> None:
    rows_nD = torch.randn(3, 4)
    codes_KD = kmeans(rows_nD, num_codes=8, seed=0, iterations=5)
    assert codes_KD.shape == (8, 4)
    torch.testing.assert_close(codes_KD[nearest_codes(rows_nD, codes_KD)], rows_nD)


def test_the_nearest_code_is_the_slow_twins() -> None:
    torch.manual_seed(1)
    rows_nD, codes_KD = torch.randn(50, 6), torch.randn(9, 6)
    expected = torch.cdist(rows_nD, codes_KD).argmin(1)
    assert torch.equal(nearest_codes(rows_nD, codes_KD), expected)


def test_every_level_leaves_less() -> None:
    rows_nD = torch.randn(600, 6, generator=torch.Generator().manual_seed(0))
    books = residual_kmeans(rows_nD, levels=4, num_codes=8, seed=0, iterations=15)
    codes_nV = encode_residual(rows_nD, books)
    errors = [
        float((rows_nD - decode_residual(codes_nV[:, :v], books[:v])).square().mean())
        for v in range(1, 5)
    ]
    assert all(after < 0.9 * before for before, after in itertools.pairwise(errors))


def test_balance_in_numbers_known_beforehand() -> None:
    even = code_use(torch.arange(8).repeat(3), num_codes=8)
    assert (even.used, even.largest_share) == (8, 1 / 8)
    assert math.isclose(even.perplexity, 8)
    one = code_use(torch.zeros(9, dtype=torch.int64), num_codes=8)
    assert (one.used, one.perplexity, one.largest_share) == (1, 1.0, 1.0)


def test_collisions_are_counted_in_the_order_of_rows() -> None:
    codes_nV = torch.tensor([[1, 2], [0, 0], [1, 2], [1, 3], [1, 2]])
    assert collision_numbers(codes_nV).tolist() == [0, 0, 1, 0, 2]


def test_the_quantiser_learns_and_every_parameter_gets_a_gradient() -> None:
    rows_nD, _ = clouds()
    rows_nD = (rows_nD - rows_nD.mean(0)) / rows_nD.std()
    made = ResidualQuantiser(6, hidden=4, levels=2, num_codes=3)
    made.start_from(rows_nD, seed=0)
    made(rows_nD).loss.backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0, name
    trained = train_quantiser(rows_nD, hidden=4, levels=2, num_codes=3, steps=300, seed=0)

    def error(one: ResidualQuantiser) -> float:
        return float((one.decode(one.encode(rows_nD)) - rows_nD).square().mean())

    assert error(trained) < 0.1 * error(made)
    again = train_quantiser(rows_nD, hidden=4, levels=2, num_codes=3, steps=300, seed=0)
    assert torch.equal(again.encode(rows_nD), trained.encode(rows_nD))


def test_unused_codes_are_revived() -> None:
    rows_nD, _ = clouds()
    made = ResidualQuantiser(6, hidden=4, levels=1, num_codes=5)
    with torch.no_grad():
        made.codebooks_VKD[0, 1:] = 1e4
    assert len(made.encode(rows_nD).unique()) == 1
    made.revive(rows_nD)
    assert len(made.encode(rows_nD).unique()) > 2


@pytest.fixture
def embeddings(toy_dataset: Path, tmp_path: Path) -> Path:
    items = open_dataset(toy_dataset).items
    vectors = np.random.default_rng(0).standard_normal((len(items), 8)).astype(np.float32)
    array = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
    folder = tmp_path / "embeddings"
    folder.mkdir()
    pq.write_table(
        items.select(["item_row", "item_id"]).append_column("aligned", array),
        folder / "items.parquet",
    )
    (folder / "embeddings.json").write_text('{"release_fingerprint": "abc", "newest_event": 5}')
    return folder


@pytest.mark.parametrize("method", ["residual_kmeans", "residual_quantiser"])
def test_ids_come_with_the_id_map_and_name_one_item_each(
    method: str, embeddings: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ids"
    semantic_ids(
        embeddings, toy_dataset, out, method=method, levels=2, num_codes=6, steps=100, hidden=4  # type: ignore[arg-type]
    )  # fmt: skip
    ids = pq.read_table(out / "ids.parquet")
    dataset = open_dataset(toy_dataset)
    assert ids["item_id"].equals(dataset.items["item_id"])
    codes, numbers = ids["codes"].to_pylist(), ids["collision"].to_pylist()
    names = {(*code, number) for code, number in zip(codes, numbers, strict=True)}
    assert len(names) == len(ids)
    about = json.loads((out / "semantic_ids.json").read_text())
    assert about["items"] == len(ids)
    assert len(about["use"]) == 2
    assert about["use"][0]["used"] == len({codes[0] for codes in ids["codes"].to_pylist()})
    assert 0 < about["error_seen"] < 1
    assert about["embeddings"]["release_fingerprint"] == "abc"
    assert about["newest_event"] == dataset.manifest.newest_train_event


def test_codes_have_seen_what_their_vectors_have_seen(
    embeddings: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    newest = open_dataset(toy_dataset).manifest.newest_train_event + 1
    (embeddings / "embeddings.json").write_text(json.dumps({"newest_event": newest}))
    semantic_ids(embeddings, toy_dataset, tmp_path / "ids", levels=1, num_codes=6)
    about = json.loads((tmp_path / "ids" / "semantic_ids.json").read_text())
    assert about["newest_event"] == newest


def test_unseen_items_do_not_shape_the_codes(
    embeddings: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    table = pq.read_table(embeddings / "items.parquet")
    unseen = open_dataset(toy_dataset).items["train_count"].to_numpy() == 0
    assert unseen.any()
    books = []
    for shift in (0.0, 50.0):
        rows = np.stack(table["aligned"].to_numpy()) + shift * unseen[:, None]
        array = pa.FixedSizeListArray.from_arrays(pa.array(rows.astype(np.float32).ravel()), 8)
        pq.write_table(table.set_column(2, "aligned", array), embeddings / "items.parquet")
        semantic_ids(embeddings, toy_dataset, tmp_path / "ids", levels=2, num_codes=6)
        books.append(load_file(tmp_path / "ids" / "codebooks.safetensors")["codebooks_VKD"])
    assert torch.equal(books[0], books[1])


def test_a_knock_out_is_refused(embeddings: Path, toy_dataset: Path, tmp_path: Path) -> None:
    about = {"newest_event": 5, "without": ["image"]}
    (embeddings / "embeddings.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="found a knock-out"):
        semantic_ids(embeddings, toy_dataset, tmp_path / "ids")


def test_vectors_of_another_catalogue_are_refused(
    embeddings: Path, toy_dataset: Path, tmp_path: Path
) -> None:
    table = pq.read_table(embeddings / "items.parquet").slice(1)
    pq.write_table(table, embeddings / "items.parquet")
    with pytest.raises(ValueError, match="are not those of"):
        semantic_ids(embeddings, toy_dataset, tmp_path / "ids")
