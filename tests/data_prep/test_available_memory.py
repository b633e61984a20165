from pathlib import Path

import pytest

from data_prep.available_memory import available_bytes

MEMINFO = "MemTotal:       16384 kB\nMemFree:         1024 kB\nMemAvailable:    8192 kB\n"


def machine(folder: Path, *, groups: str, **files: str) -> tuple[Path, Path]:
    """A /proc, and a /sys/fs/cgroup of these files; `__` stands for a slash."""
    proc, cgroups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text(groups)
    for name, content in files.items():
        path = cgroups / name.replace("__", "/").replace("memory_", "memory.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return proc, cgroups


def available(places: tuple[Path, Path]) -> int:
    return available_bytes(proc=places[0], cgroups=places[1])


def test_without_a_limit_it_is_what_the_machine_has(tmp_path: Path) -> None:
    assert available(machine(tmp_path, groups="0::/\n")) == 8 << 20
    assert 0 < available_bytes() < 1 << 60


def test_a_limit_counts_without_what_is_used_and_with_the_page_cache(tmp_path: Path) -> None:
    places = machine(
        tmp_path,
        groups="0::/job/step\n",
        job__memory_max="5000000\n",
        job__memory_current="4000000\n",
        job__memory_stat="anon 3000000\nactive_file 300000\ninactive_file 700000\n",
        job__step__memory_max="max\n",
    )
    assert available(places) == 2_000_000


@pytest.mark.parametrize("group", ["slurm__job__", ""])
def test_the_first_version_of_cgroups_is_read_also_where_the_path_is_the_hosts(
    tmp_path: Path, group: str
) -> None:
    files = {
        f"memory__{group}memory_limit_in_bytes": "6000000\n",
        f"memory__{group}memory_usage_in_bytes": "3000000\n",
        f"memory__{group}memory_stat": "total_active_file 1\ntotal_inactive_file 999999\n",
    }
    places = machine(tmp_path, groups="8:pids:/x\n4:cpuset,memory:/slurm/job\n0::/\n", **files)
    assert available(places) == 4_000_000


def test_a_system_that_does_not_say_has_none(tmp_path: Path) -> None:
    assert available_bytes(proc=tmp_path, cgroups=tmp_path) == 0
