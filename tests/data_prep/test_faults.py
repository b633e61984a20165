import dataclasses
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
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
        with pytest.raises(OSError, match=r"items-000000\.tar: cannot be written .*File too large"):
            shard_dataset(config, RunConfig(stage="content"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    found = (tmp_path / "dataset").rglob("*")
    assert not [path for path in found if path.suffix in (".tmp", ".tar")]
    shard_dataset(config)
    assert contents(tmp_path / "dataset") == contents(toy_dataset)


def test_users_parquet_is_whole_or_not_there(
    toy_config: ShardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[:500])
        raise OSError(errno.ENOSPC, "No space left on device")

    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    monkeypatch.setattr("shutil.copyfile", half)
    with pytest.raises(OSError, match=r"users\.parquet: cannot be written .*make room"):
        shard_dataset(config)
    assert not list((tmp_path / "dataset").glob("users.parquet*"))


def test_a_tar_that_was_cut_is_not_vouched_for_and_is_made_anew(
    toy_dataset: Path, toy_config: ShardConfig, tmp_path: Path
) -> None:
    config = dataclasses.replace(toy_config, dataset_dir=str(tmp_path / "dataset"))
    for stage in ("tables", "content"):
        shard_dataset(config, RunConfig(stage=stage))
    tar = tmp_path / "dataset/items/items-000002.tar"
    tar.write_bytes(tar.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=r"of their size, missing items-000002; run"):
        shard_dataset(config, RunConfig(stage="manifest"))
    for stage in ("content", "manifest"):
        shard_dataset(config, RunConfig(stage=stage))
    assert contents(tmp_path / "dataset") == contents(toy_dataset)


@pytest.mark.slow
def test_killed_runs_leave_no_trace() -> None:
    bench = Path(__file__).parents[1] / "bench/shard_kills.py"
    done = subprocess.run(
        [sys.executable, str(bench), "--quick"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["ours"] == outcome["peers"]["kills"] == 8


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
