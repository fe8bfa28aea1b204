"""What the system grants this process: processors and memory, by control group (versions 1 and 2) and by ulimit.

Slurm, systemd and containers put a job into control groups; each group up to the root can limit it.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
CGROUPS = "sys/fs/cgroup"
UNLIMITED = 2**60


@dataclass(frozen=True)
class Memory:
    """One limit of memory in bytes, how much of it is in use (file cache apart), and whose limit it is."""

    limit: int
    used: int
    whose: str


@dataclass(frozen=True)
class Limits:
    """Processors (2.5 for 250 ms in 100 ms; None without a limit), and every limit of memory."""

    cpus: float | None
    memory: tuple[Memory, ...]


def job_limits(root: Path = ROOT) -> Limits:
    """Return the limits of this process, as the system below `root` tells them."""
    quotas = [quota for _, folder in groups(root, "cpu") if (quota := cpu_quota(folder))]
    memory = [limit for version, folder in groups(root, "memory") for limit in group_memory(version, folder)]
    return Limits(min(quotas, default=None), (*memory, *address_space(root)))


def system_memory(root: Path = ROOT) -> tuple[int, int]:
    """Return (available, total) bytes of memory for this process: the machine's, capped by the limits."""
    import psutil

    machine = psutil.virtual_memory()
    available, total = machine.available, machine.total
    for memory in job_limits(root).memory:
        available = min(available, max(memory.limit - memory.used, 0))
        # all that is mapped counts as address space, weights too: what is used of it is gone
        total = min(total, max(memory.limit - memory.used, 0) if memory.whose == "ulimit -v" else memory.limit)
    return available, total


def groups(root: Path, controller: str) -> Iterator[tuple[int, Path]]:
    """Yield (version, folder) of this process's control groups with a controller, each with all above it.

    A container often sees only its own part of the tree, but reads the path of the whole: what is not there is skipped.
    """
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        version = 2 if number == "0" and not controllers else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        bases = (
            [root / CGROUPS, root / CGROUPS / "unified"] if version == 2 else mounts_of(root, controllers, controller)
        )
        for base in bases:
            folder = base / group.lstrip("/")
            while folder != base and base in folder.parents:
                yield version, folder
                folder = folder.parent
            yield version, base


def mounts_of(root: Path, controllers: str, controller: str) -> list[Path]:
    """Return where a hierarchy of version 1 may be mounted: under all its names, or under one (both are one place)."""
    names = dict.fromkeys((controllers, ",".join(reversed(controllers.split(","))), controller))
    return [path for name in names if (path := root / CGROUPS / name).is_dir()][:1]


def cpu_quota(folder: Path) -> float | None:
    """Return the processors that one group grants: cpu.max of version 2, cpu.cfs_* of version 1."""
    words = _read(folder / "cpu.max").split()
    if not words:
        words = [_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")]
    quota, period = map(_number, words) if len(words) == 2 else (None, None)
    return quota / period if quota and period and quota > 0 else None


def group_memory(version: int, folder: Path) -> Iterator[Memory]:
    """Yield the limits of one group: memory.max and memory.high of version 2, memory.limit_in_bytes of version 1."""
    names = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    used = _number(_read(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")))
    for name in names:
        limit = _number(_read(folder / name))
        if limit is not None and used is not None and limit < UNLIMITED:
            yield Memory(
                limit, max(used - file_cache(_read(folder / "memory.stat")), 0), f"{folder.name or '/'}/{name}"
            )


def file_cache(stat: str) -> int:
    """Return the bytes of memory.stat that the system can drop: cached files, without those that are only in memory."""
    values = {line.split()[0]: int(line.split()[1]) for line in stat.splitlines() if line.count(" ") == 1}
    prefix = "total_" if "total_cache" in values else ""
    cached = values.get("file", values.get(f"{prefix}cache", 0))
    return max(cached - values.get(f"{prefix}shmem", values.get("shmem", 0)), 0)


def address_space(root: Path = ROOT) -> Iterator[Memory]:
    """Yield the limits of `ulimit -v` and `ulimit -d`."""
    if sys.platform == "win32":
        return
    import resource

    sizes = {line.partition(":")[0]: line.split() for line in _read(root / "proc/self/status").splitlines()}
    for limit, line, whose in (
        (resource.RLIMIT_AS, "VmSize", "ulimit -v"),
        (resource.RLIMIT_DATA, "VmData", "ulimit -d"),
    ):
        most, used = resource.getrlimit(limit)[0], sizes.get(line, ())
        if 0 <= most < UNLIMITED and len(used) == 3:
            yield Memory(most, int(used[1]) * 1024, whose)


def _number(text: str) -> int | None:
    """Return a whole number of a kernel's file; None for "max" and everything else."""
    try:
        return int(text)
    except ValueError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
