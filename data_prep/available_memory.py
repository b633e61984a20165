"""How much memory is to be had: the machine's, or the container's or job's where that is less."""

from collections.abc import Iterator
from pathlib import Path

# By version of cgroups: folder below the mount, files of limit and usage, prefix in memory.stat.
_FILES = {
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("", "memory.max", "memory.current", ""),
}


def available_bytes(*, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """What could be used now, the page cache counted as free; 0 where the system does not say."""
    meminfo = proc / "meminfo"
    if not meminfo.is_file():  # not Linux
        return 0
    return min([_numbers(meminfo)["MemAvailable:"] << 10, *_left_by_limits(proc, cgroups)])


def _left_by_limits(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of each control group that this process is in; a group's limit holds for those inside it."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        number, controllers, group = line.split(":", 2)
        if number != "0" and "memory" not in controllers.split(","):
            continue
        below, limit, usage, prefix = _FILES[2 if number == "0" else 1]
        folder = cgroups / below
        # In a container the path may be that on the host; the container's own lies at the root.
        for name in ("", *Path(group.lstrip("/")).parts):
            folder = folder / name
            most = (folder / limit).read_text().strip() if (folder / limit).is_file() else "max"
            if most != "max":
                stat = _numbers(folder / "memory.stat")
                cached = stat[f"{prefix}active_file"] + stat[f"{prefix}inactive_file"]
                yield int(most) - int((folder / usage).read_text()) + cached


def _numbers(file: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines}
