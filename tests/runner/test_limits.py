"""What the system grants a job: control groups of both versions, each group up to the root, and ulimit."""

import subprocess
import sys
from pathlib import Path

import pytest
from moe_gguf.runner.limits import Memory, job_limits, system_memory

GB = 10**9
# what lies below the root of a system, and the processors and bytes (limit, used) that it grants
SYSTEMS: dict[str, tuple[dict[str, str], float | None, list[tuple[int, int]]]] = {
    "no groups": ({}, None, []),
    "Slurm, version 1": (
        {
            "proc/self/cgroup": "7:memory:/slurm/uid_1/job_2/step_0\n3:cpu,cpuacct:/slurm/uid_1\n1:name=systemd:/\n",
            "sys/fs/cgroup/memory/slurm/uid_1/job_2/step_0/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/slurm/uid_1/job_2/step_0/memory.usage_in_bytes": "5",
            "sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.limit_in_bytes": f"{4 * GB}",
            "sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.usage_in_bytes": f"{3 * GB}",
            "sys/fs/cgroup/memory/slurm/uid_1/job_2/memory.stat": f"cache 7\ntotal_cache {2 * GB}\ntotal_shmem 0\n",
            "sys/fs/cgroup/cpu,cpuacct/slurm/uid_1/cpu.cfs_quota_us": "150000",
            "sys/fs/cgroup/cpu,cpuacct/slurm/uid_1/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu,cpuacct/slurm/cpu.cfs_period_us": "100000",
        },
        1.5,
        [(4 * GB, GB)],
    ),
    "systemd, version 2": (
        {
            "proc/self/cgroup": "0::/user.slice/run-1.scope\n",
            "sys/fs/cgroup/user.slice/run-1.scope/memory.max": "max",
            "sys/fs/cgroup/user.slice/run-1.scope/memory.high": f"{2 * GB}",
            "sys/fs/cgroup/user.slice/run-1.scope/memory.current": f"{GB}",
            "sys/fs/cgroup/user.slice/run-1.scope/memory.stat": "anon 1\nfile 500\nshmem 100\n",
            "sys/fs/cgroup/user.slice/cpu.max": "250000 100000",
            "sys/fs/cgroup/user.slice/run-1.scope/cpu.max": "max 100000",
        },
        2.5,
        [(2 * GB, GB - 400)],
    ),
    "a container that sees its own group as the root": (
        {
            "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu:/docker/abc\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GB}",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "100",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "50000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        0.5,
        [(GB, 100)],
    ),
    "nonsense": (
        {
            "proc/self/cgroup": "0::/\nnonsense\n",
            "sys/fs/cgroup/memory.max": "lots",
            "sys/fs/cgroup/memory.current": "5",
            "sys/fs/cgroup/cpu.max": "nonsense",
        },
        None,
        [],
    ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_groups_of_a_job(tmp_path: Path, name: str) -> None:
    files, cpus, memory = SYSTEMS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    limits = job_limits(tmp_path)
    assert limits.cpus == cpus
    assert [(each.limit, each.used) for each in limits.memory] == memory
    available, total = system_memory(tmp_path)
    for limit, used in memory:
        assert total <= limit and available <= limit - used


def test_this_process_has_limits_that_can_be_read() -> None:
    available, total = system_memory()
    assert 0 < available <= total
    assert all(isinstance(each, Memory) and each.used >= 0 for each in job_limits().memory)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no ulimit")
def test_an_address_space_limits_the_memory() -> None:
    script = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "from moe_gguf.runner.limits import job_limits, system_memory\n"
        "print(*system_memory(), *[each.whose for each in job_limits().memory])"
    )
    words = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert 0 < int(words[0]) < 3 << 30 and 0 < int(words[1]) < 3 << 30 and words[-2:] == ["ulimit", "-v"]
