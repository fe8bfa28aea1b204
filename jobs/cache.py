"""What moe-gguf keeps in its cache: GGUF files of recipes' bases, which gates were computed with, bounded in size.

Only what has a name that we give is ever listed or removed: MOE_GGUF_CACHE may name a folder with other things in it.
"""

import os
import re
import shutil
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from ..formats.errors import OutputError
from ..formats.sizes import parse_size
from .working_files import cache_folder

LIMIT_VARIABLE, LIMIT = "MOE_GGUF_CACHE_LIMIT", "20G"
# NAME-DIGEST-TYPE.gguf, and what an unfinished one leaves; folders of a process that calibrates.
BASE = re.compile(r"(?P<gguf>.+-[0-9a-f]{16}-(?:f32|bf16|q8_0)\.gguf)(?:\.(?:partial|journal|lock))?", re.IGNORECASE)
FOLDER = re.compile(r"moe-gguf-(?P<process>\d+)-\w+")
# What quantize measured on the way, for a run that was interrupted to go on.
LEARNED = re.compile(r"moe-gguf-quantize-[0-9a-f]{16}")


@dataclass(frozen=True)
class Entry:
    """One GGUF with what belongs to it, or a folder: its files, their bytes on the disk, when it was used last."""

    name: str
    paths: tuple[Path, ...]
    n_bytes: int
    used: float
    in_use: bool

    def as_json(self) -> dict[str, Any]:
        """Return the entry's part of `cache --json`."""
        return {"name": self.name, "bytes": self.n_bytes, "used": round(self.used), "in_use": self.in_use}


@dataclass(frozen=True)
class Report:
    """The cache's folder, the bytes that it may hold, and the entries that are there or were removed."""

    folder: Path
    limit: int
    entries: tuple[Entry, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of all entries."""
        return sum(entry.n_bytes for entry in self.entries)

    def as_json(self) -> dict[str, Any]:
        """Return what `cache --json` prints."""
        entries = [entry.as_json() for entry in self.entries]
        return {"folder": str(self.folder), "limit": self.limit, "bytes": self.n_bytes, "entries": entries}


def list_cache() -> Report:
    """Return what is in the cache, the last used first."""
    folder = cache_folder()
    groups: dict[str, list[Path]] = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := BASE.fullmatch(path.name):
            groups.setdefault(match["gguf"], []).append(path)
        elif (FOLDER.fullmatch(path.name) or LEARNED.fullmatch(path.name)) and path.is_dir():
            groups[path.name] = [path]
    found = [_entry(folder, name, paths) for name, paths in groups.items()]
    return Report(folder, cache_limit(), tuple(sorted(found, key=lambda entry: -entry.used)))


def clear_cache() -> Report:
    """Remove what no run uses, and return it."""
    before = list_cache()
    return Report(before.folder, before.limit, tuple(_remove(entry for entry in before.entries if not entry.in_use)))


def bound_cache() -> tuple[Entry, ...]:
    """Remove what was used longest ago until the rest is within the limit; return what was removed."""
    report = list_cache()
    kept, removed = 0, []
    for entry in report.entries:
        if kept + entry.n_bytes > report.limit and not entry.in_use:
            removed.append(entry)
        else:
            kept += entry.n_bytes
    return tuple(_remove(removed))


def cache_limit() -> int:
    """Return how many bytes may stay in the cache: MOE_GGUF_CACHE_LIMIT, else 20 GB; 0 keeps nothing.

    Raises PlanError for a limit that is no size.
    """
    text = os.environ.get(LIMIT_VARIABLE) or LIMIT
    return 0 if text.strip() == "0" else parse_size(text, "file")


def _entry(folder: Path, name: str, paths: list[Path]) -> Entry:
    states = []
    for path in [*paths, *(path for top in paths if top.is_dir() for path in top.rglob("*"))]:
        try:
            states.append(path.stat())
        except FileNotFoundError:  # a run that ends beside us
            continue
    n_bytes = sum(_bytes_on_disk(state) for state in states if S_ISREG(state.st_mode))
    used = max((state.st_mtime for state in states), default=0.0)
    return Entry(name, tuple(paths), n_bytes, used, _in_use(folder, name))


def _bytes_on_disk(state: os.stat_result) -> int:
    """Return the bytes that a file takes: an unfinished one has holes."""
    return min(state.st_size, getattr(state, "st_blocks", state.st_size) * 512)


def _in_use(folder: Path, name: str) -> bool:
    """Tell whether a run writes this GGUF, or the process of this folder lives."""
    import psutil

    from ..writer.journal import only_run

    if match := FOLDER.fullmatch(name):
        return psutil.pid_exists(int(match["process"]))
    if not (folder / f"{name}.lock").exists():
        return False
    with ExitStack() as held:
        try:
            held.enter_context(only_run(folder / name))
        except OutputError:
            return True
    return False


def _remove(entries: Iterable[Entry]) -> list[Entry]:
    """Remove entries; return those that are gone. What another process has open stays on Windows."""
    removed = []
    for entry in entries:
        try:
            for path in entry.paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except PermissionError:
            continue
        removed.append(entry)
    return removed
