"""How many threads llama.cpp should use: the physical cores that this process may run on, by affinity,
control group and kind of core.
"""

import math
import os
import platform
import subprocess
from pathlib import Path

from .limits import job_limits

CPUS = Path("/sys/devices/system/cpu")
PERFORMANCE_CORES = Path("/sys/devices/cpu_core/cpus")


def best_thread_count() -> int:
    """Return the number of physical cores that may be used, at least 1.

    Hyper-threads of one core count once, and efficiency cores do not count where there are others: matrix
    products wait for the slowest thread.
    """
    cores = _mac_cores() if platform.system() == "Darwin" else _cores(allowed_cpus())
    quota = job_limits().cpus
    return max(1, min(cores, math.ceil(quota)) if quota else cores)


def allowed_cpus() -> set[int]:
    """Return the logical processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


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
