import dataclasses
import io
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
import webdataset as wds

from data_prep.dataset import open_dataset
from data_prep.item_shards import ItemShard, _raw_rows
from data_prep.parquet_files import write_parquet
from data_prep.settings import PictureConfig, SoundConfig
from data_prep.verify import find_damage
from data_prep.work import WorkFiles

if TYPE_CHECKING:
    from tests.data_prep.conftest import SmallWorld


def clip(pitch: float) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(2000) * pitch), 8000, format="FLAC")
    return buffer.getvalue()


@pytest.fixture
def rich(small: "SmallWorld", make_jpeg: object, tmp_path: Path) -> Path:
    """Items with frames in cells, sound in files, and pictures of which two are the same."""
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds/a.flac").write_bytes(clip(0.1))
    (tmp_path / "sounds/b.flac").write_bytes(b"noise")
    frames = [make_jpeg(20 + number, 20) for number in range(9)]  # type: ignore[operator]
    small.items["frames"] = pa.array(
        [frames, [], None, [frames[0], b"broken"], frames[:2], None], pa.list_(pa.binary())
    )
    small.items["sound"] = ["a.flac", None, "b.flac", "none.flac", "../a.flac", None]
    columns = dataclasses.replace(
        small.config().items, frames="frames", sound="sound", sound_dir=str(tmp_path / "sounds")
    )
    return small.shard(
        items=columns, pictures=PictureConfig(max_frames=3), sounds=SoundConfig(max_seconds=2)
    )


def test_frames_and_sound_are_members_and_what_fails_is_counted(rich: Path) -> None:
    dataset = open_dataset(rich)
    record = dataset.content().read(5)  # item 105, the first of the raw table
    from PIL import Image

    widths = [Image.open(io.BytesIO(frame)).width for frame in record.frames]
    assert widths == [20, 24, 28]  # the first, the middle and the last of nine
    assert record.sound == clip(0.1)
    assert record.sound_suffix == "flac"
    assert len(dataset.content().read(2).frames) == 1
    assert dataset.manifest.quarantine == {
        "frames/not_decodable": 1,
        "sounds/file_missing": 1,
        "sounds/not_decodable": 1,
        "sounds/outside_folder": 1,
    }
    assert dataset.items["has_frames"].to_pylist() == [False, True, True, False, False, True]
    assert dataset.items["has_sound"].to_pylist() == [False] * 5 + [True]
    assert dataset.manifest.modalities["sound"] == {"max_seconds": 2}
    assert list(find_damage(rich)) == []


def test_webdataset_groups_every_member_of_an_item(rich: Path) -> None:
    samples = {
        sample["__key__"]: set(sample)
        for tar in sorted(rich.glob("items/*.tar"))
        for sample in wds.WebDataset(str(tar), shardshuffle=False)
    }
    assert len(samples) == 6
    frames = {f"frame{number:02d}.jpg" for number in range(3)}
    assert samples["0000000005"] >= {"jpg", "json", "sound.flac"} | frames


def test_equal_content_has_equal_hashes_and_none_where_there_is_none(rich: Path) -> None:
    items = open_dataset(rich).items
    assert items["hash_image"].null_count == 2
    present = items.filter(pc.is_valid(items["hash_image"]))
    assert pc.count_distinct(present["hash_image"]).as_py() == 1  # all red squares
    assert pc.count_distinct(present["phash_image"]).as_py() == 1
    texts = items["hash_text"].drop_null()
    assert len(texts) == pc.count_distinct(texts).as_py() == 5


def test_a_column_of_numbers_is_no_picture(small: "SmallWorld") -> None:
    small.items["frames"] = [[1], [2], None, None, None, None]
    items = dataclasses.replace(small.config().items, frames="frames")
    with pytest.raises(ValueError, match=r"expected lists of bytes, paths or URLs"):
        small.shard(items=items)


@pytest.mark.parametrize("num_bytes", [1000, 400_000])
def test_a_row_group_of_large_pictures_is_not_held_in_memory(
    tmp_path: Path, num_bytes: int
) -> None:
    rows = 200  # of 80 MB, or of 200 kB
    cells = [number.to_bytes(2, "little") * (num_bytes // 2) for number in range(rows)]
    table = pa.table({"item_row": pa.array(range(rows), pa.int32()), "image": cells})
    work = WorkFiles(tmp_path)
    write_parquet([table], work.content, schema=table.schema, is_raw=True)
    del table
    shard = ItemShard(0, 50, 100, tmp_path, content=None, tokens=None)  # type: ignore[arg-type]
    before, most = pa.total_allocated_bytes(), 0
    tracemalloc.start()  # Arrow counts its own memory, and this the rows'
    for place, row in enumerate(_raw_rows(work, shard), start=50):
        assert (row["item_row"], row["image"]) == (place, cells[place])
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert place == 149
    assert most + peak < 8_000_000
