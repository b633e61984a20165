import dataclasses
import os
import resource
from functools import partial
from pathlib import Path

import pytest

from data_prep.settings import RunConfig, ShardConfig
from data_prep.shard import _run_tasks, shard_dataset


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_worker_that_dies_is_one_error() -> None:
    with pytest.raises(OSError, match="finished tars are kept"):
        _run_tasks([partial(os._exit, 1), partial(os.getpid)], num_workers=2)


def test_a_full_disk_leaves_no_half_a_file_and_the_next_run_ends_the_same(
    toy_dataset: Path, toy_config: ShardConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    shard_dataset(config, RunConfig(stage="tables"))
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to write beyond this, as it would on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            shard_dataset(config, RunConfig(stage="content"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    names = [path.name for path in (tmp_path / "dataset").rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".tmp", ".tar"))]
    shard_dataset(config)
    assert contents(tmp_path / "dataset") == contents(toy_dataset)


@pytest.mark.parametrize("table", ["items", "interactions"])
def test_an_input_that_cannot_be_read_is_one_error(
    toy_config: ShardConfig, tmp_path: Path, table: str
) -> None:
    """A folder in the place of a file, which root may read no more than others."""
    (tmp_path / f"{table}.parquet").mkdir()
    columns = dataclasses.replace(getattr(toy_config, table), path=str(tmp_path / "*.parquet"))
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "d"), **{table: columns})
    message = (
        rf"{table}\.parquet: cannot be read as parquet \(.*; correct the file or {table}\.path"
    )
    with pytest.raises(ValueError, match=message):
        shard_dataset(config)
