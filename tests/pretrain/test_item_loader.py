import dataclasses
import gc
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import simplejpeg
import torch

from data_prep.dataset import Dataset, open_dataset
from data_prep.settings import ShardConfig, TokenConfig
from data_prep.shard import shard_dataset
from pretrain.buffers import BufferPool
from pretrain.item_loader import ItemLoader, preprocessors_of
from pretrain.preprocess import PicturePreprocessor, build_preprocessors, prepare_records
from pretrain.towers import TowerConfig

TOWERS = {
    "image": TowerConfig(library="open_clip", name="x", image_size=64),
    "text": TowerConfig(library="open_clip", name="x", max_tokens=12),
}
ROWS = [200, 3, 3, 64, 239, 0]


def loader(dataset: Dataset, *, cache_mb: int = 0, threads: int = 1) -> ItemLoader:
    made = preprocessors_of(dataset, TOWERS, threads=threads)
    return ItemLoader(dataset, preprocessors=made, cache_mb=cache_mb)


@pytest.fixture(scope="module")
def with_ids(toy_config: ShardConfig, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("ids") / "dataset"
    tokens = TokenConfig(tokenizer="open_clip", max_tokens=12)
    shard_dataset(dataclasses.replace(toy_config, dataset_dir=str(folder), tokens=tokens))
    return open_dataset(folder)


def test_a_batch_is_what_its_records_give_one_by_one(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    made = build_preprocessors(TOWERS, text_fields=("title", "description"), vector_widths={})
    expected = prepare_records([dataset.content().read(row) for row in ROWS], made)
    for options in ({}, {"cache_mb": 1}, {"threads": 2}):
        load = loader(dataset, **options)
        for _ in range(2):  # the second time from memory
            batch = load.load(ROWS)
            assert batch.rows_n.tolist() == ROWS
            for name, inputs in expected.inputs.items():
                assert torch.equal(batch.presence[name], expected.presence[name])
                for key, tensor in inputs.items():
                    assert torch.equal(batch.inputs[name][key], tensor)


def test_pixels_are_those_of_the_decoder(toy_dataset: Path) -> None:
    dataset = open_dataset(toy_dataset)
    rows = [row for row in range(20) if dataset.content().image(row) is not None]
    pixels = loader(dataset).load(rows).inputs["image"]["pixels"]
    for row, picture in zip(rows, pixels, strict=True):
        decoded = simplejpeg.decode_jpeg(bytes(dataset.content().image(row)), "RGB")
        np.testing.assert_array_equal(picture.permute(1, 2, 0), decoded)


@pytest.mark.parametrize(
    ("tower", "library", "reads_one"),
    [("image", simplejpeg, "decode_jpeg_header"), ("text", json, "loads")],
)
def test_a_disk_is_asked_for_the_batch_in_its_order_before_any_item_is_decoded(
    toy_dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    tower: str,
    library: ModuleType,
    reads_one: str,
) -> None:
    monkeypatch.setattr("data_prep.dataset.reads_of", lambda _: "spans")
    dataset = open_dataset(toy_dataset)
    has = np.flatnonzero(dataset.items[f"has_{tower}"].to_numpy())
    rows = has[has < 64][::5]  # of the first tar
    made = preprocessors_of(dataset, {tower: TOWERS[tower]})
    load = ItemLoader(dataset, preprocessors=made)
    load.load(rows[:1])  # opens the tar
    asked: list[int] = []
    asked_when_decoded: list[int] = []
    monkeypatch.setattr("data_prep.mapped_file._madvise", lambda *call: asked.append(call[0]))
    one = getattr(library, reads_one)

    def note(payload: object) -> object:
        asked_when_decoded.append(len(asked))
        return one(payload)

    monkeypatch.setattr(library, reads_one, note)
    load.load(rows)
    assert asked == sorted(asked)
    assert len(asked) == len(rows)
    assert asked_when_decoded == [len(rows)] * len(rows)


def test_stored_ids_are_used_and_are_those_of_the_tower(
    toy_dataset: Path, with_ids: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loader(open_dataset(toy_dataset)).load(range(240)).inputs["text"]
    load = loader(with_ids)
    monkeypatch.setattr("pretrain.preprocess.encode_texts", None)
    found = load.load(range(240)).inputs["text"]
    assert torch.equal(found["tokens"], expected["tokens"])
    assert torch.equal(found["attention"], expected["attention"])


def test_ids_of_another_tokenizer_are_refused(
    with_ids: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "pretrain.preprocess.encode_texts", lambda texts, _: [[1, 2] for _ in texts]
    )
    with pytest.raises(ValueError, match="token ids made at shard time differ"):
        loader(with_ids)


def test_other_settings_of_tokens_are_said_and_texts_are_tokenised(
    toy_config: ShardConfig, with_ids: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    towers = {"text": dataclasses.replace(TOWERS["text"], max_tokens=20)}
    made = preprocessors_of(with_ids, towers)
    assert (
        ItemLoader(with_ids, preprocessors=made).load([0]).inputs["text"]["tokens"].shape[1] == 20
    )
    assert "texts are tokenised while training" in caplog.text


def test_a_buffer_is_used_again_only_when_no_tensor_sees_it() -> None:
    pool = BufferPool()
    first = torch.from_numpy(pool.take((4, 3))).permute(1, 0)
    address = first.data_ptr()
    second = torch.from_numpy(pool.take((4, 3)))
    assert second.data_ptr() != address
    view = first[1:]
    del first
    gc.collect()
    assert torch.from_numpy(pool.take((4, 3))).data_ptr() != address
    del view
    gc.collect()
    assert torch.from_numpy(pool.take((2, 3))).data_ptr() == address


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("size", [(48, 48), (60, 48), (48, 300), (500, 400)])
def test_a_picture_of_another_size_is_near_pillows(fit: str, size: tuple[int, int]) -> None:
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    jpeg = simplejpeg.encode_jpeg(np.asarray(picture), quality=95)
    config = TowerConfig(library="open_clip", name="x", image_size=48, fit=fit)  # type: ignore[arg-type]
    found = PicturePreprocessor(config).batch([jpeg])[0]["pixels"][0].permute(1, 2, 0).numpy()
    side, (height, width) = min(size), size
    left, top = (width - side) // 2, (height - side) // 2
    box = (left, top, left + side, top + side) if fit == "crop" else None
    decoded = Image.fromarray(simplejpeg.decode_jpeg(jpeg, "RGB"))
    expected = np.asarray(decoded.resize((48, 48), Image.Resampling.BICUBIC, box=box))
    assert np.abs(found.astype(int) - expected).mean() < 2
