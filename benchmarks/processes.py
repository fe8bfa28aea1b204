"""Runs a command as a process of its own and says what it took: wall time, processor time, peak memory, disk.

Peak memory is the largest resident size of the process or any process it started, mapped pages counted.
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds, bytes at the peak, and bytes of disk at the peak beyond what was there."""

    wall: float
    cpu: float
    memory: int
    disk: int

    def __add__(self, other: "Cost") -> "Cost":
        """Return the cost of one after the other, when what the first wrote stays."""
        return Cost(
            self.wall + other.wall,
            self.cpu + other.cpu,
            max(self.memory, other.memory),
            self.disk + other.disk,
        )


def run(command: Sequence[str | Path], folder: Path, environment: dict[str, str] | None = None) -> Cost:
    """Run a command to its end and then let the disk take everything; `folder` is where its disk use is watched.

    Raises SystemExit with the command's last words when it fails.
    """
    free = shutil.disk_usage(folder).free
    lowest = [free]
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            lowest[0] = min(lowest[0], shutil.disk_usage(folder).free)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    stderr = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    os.sync()
    wall = time.monotonic() - started
    stop.set()
    watcher.join()
    lowest[0] = min(lowest[0], shutil.disk_usage(folder).free)
    if process.returncode:
        sys.exit(f"{command[0]} failed: {stderr.decode('utf-8', 'replace')[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit, max(0, free - lowest[0]))


def moe_gguf(*arguments: str | Path) -> list[str | Path]:
    """Return the command line of our own program."""
    return [sys.executable, "-c", "from moe_gguf.cli import main; main()", *arguments]


def forget(*paths: Path) -> None:
    """Drop files from the page cache, so that the next command reads them from the disk."""
    for path in paths:
        for file in (path,) if path.is_file() else path.rglob("*"):
            if file.is_file() and hasattr(os, "posix_fadvise"):
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(descriptor)
