import dataclasses
import os
import resource
import shutil
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read any file")
def test_an_input_that_may_not_be_read_is_one_error(
    toy_config: ShardConfig, toy_raw: Path, tmp_path: Path
) -> None:
    items = Path(shutil.copy(toy_raw / "items.parquet", tmp_path))
    items.chmod(0)
    columns = dataclasses.replace(toy_config.items, path=str(items))
    with pytest.raises((OSError, ValueError), match=r"items\.parquet"):
        shard_dataset(
            dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "d"), items=columns)
        )
