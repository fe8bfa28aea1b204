"""How many threads llama.cpp should use: the physical cores that this process may run on, by affinity,
control group and kind of core.
"""

import math
import os
import platform
import subprocess
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")
PERFORMANCE_CORES = Path("/sys/devices/cpu_core/cpus")
CGROUPS = Path("/sys/fs/cgroup")


def best_thread_count() -> int:
    """Return the number of physical cores that may be used, at least 1.

    Hyper-threads of one core count once, and efficiency cores do not count where there are others: matrix
    products wait for the slowest thread.
    """
    cores = _mac_cores() if platform.system() == "Darwin" else _cores(allowed_cpus())
    quota = cpu_quota()
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def allowed_cpus() -> set[int]:
    """Return the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = CGROUPS) -> float | None:
    """Return the processors that a control group grants (2.5 for 250 ms in 100 ms), None without a limit."""
    try:
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return None
    quotas: list[float] = []
    for _, controllers, group in own:
        base = root if not controllers else root / controllers
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = base / group.lstrip("/")
        while True:
            quota = _quota_of(folder)
            if quota:
                quotas.append(quota)
            if folder == base or base not in folder.parents:
                break
            folder = folder.parent
    return min(quotas, default=None)


def _quota_of(folder: Path) -> float | None:
    """Return the limit of one group: cpu.max of version 2, cpu.cfs_* of version 1."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if quota.strip() != "max" and int(quota) > 0 else None
    except (OSError, ValueError):
        return None


def _cores(cpus: set[int]) -> int:
    """Count the physical cores among logical processors."""
    fast = cpus & _listed(PERFORMANCE_CORES)
    siblings = {
        min(_listed(CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"), default=-1) for cpu in fast or cpus
    }
    if -1 not in siblings:
        return len(siblings)
    import psutil

    return min(psutil.cpu_count(logical=False) or len(cpus), len(cpus))


def _listed(path: Path) -> set[int]:
    """Read a kernel list of processors such as "0-3,8"; empty when there is none."""
    try:
        ranges = [part.split("-") for part in path.read_text().strip().split(",") if part]
        return {cpu for part in ranges for cpu in range(int(part[0]), int(part[-1]) + 1)}
    except (OSError, ValueError):
        return set()


def _mac_cores() -> int:
    """Return the performance cores of a Mac, or all of an Intel one."""
    for name in ("hw.perflevel0.physicalcpu", "hw.physicalcpu"):
        answer = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
        if answer.returncode == 0 and answer.stdout.strip().isdigit():
            return int(answer.stdout)
    return os.cpu_count() or 1
