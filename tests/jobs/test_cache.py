"""The GGUF files of bases: kept only while they may be needed, bounded, listed and removed; nobody else's file is."""

import json
import os
from pathlib import Path

import pytest
from moe_gguf.jobs.cache import bound_cache, clear_cache, list_cache
from moe_gguf.writer.journal import only_run

from ..command import moe_gguf
from ..merge.cases import CASES, write_case


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an empty cache, with something in it that is not ours."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache"
    monkeypatch.setenv("MOE_GGUF_CACHE", str(folder))
    (folder / "mine").mkdir(parents=True)
    (folder / "mine-q8_0.gguf").write_bytes(b"mine")
    return folder


def base(cache: Path, name: str, used: int, n_bytes: int = 1_000_000) -> str:
    """Make a file that looks like a base's GGUF, used last at a time; return its name."""
    path = cache / f"{name}-0123456789abcdef-bf16.gguf"
    path.write_bytes(bytes(n_bytes))
    os.utime(path, (used, used))
    return path.name


def test_a_base_stays_until_its_gates_are_saved(cache: Path) -> None:
    recipe = write_case(cache.parent, CASES["mixtral-mistral"])
    assert moe_gguf("merge", recipe, "-o", "one").status == 0
    (kept,) = list_cache().entries
    assert kept.n_bytes > 10_000 and not kept.in_use and kept.paths[0].parent == cache
    used = kept.paths[0].stat().st_mtime_ns
    assert "is used again" in moe_gguf("merge", recipe, "-o", "two", "-v").stderr
    assert kept.paths[0].stat().st_mtime_ns > used
    assert moe_gguf("merge", recipe, "-o", "three", "--gates", "gates").status == 0
    assert not list_cache().entries and {path.name for path in cache.iterdir()} == {"mine", "mine-q8_0.gguf"}


def test_the_cache_is_bounded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [base(cache, name, used) for used, name in enumerate("abc", 1000)]
    monkeypatch.setenv("MOE_GGUF_CACHE_LIMIT", "2M")
    assert [entry.name for entry in list_cache().entries] == names[::-1]
    assert [entry.name for entry in bound_cache()] == [names[0]]
    monkeypatch.setenv("MOE_GGUF_CACHE_LIMIT", "0")
    recipe = write_case(cache.parent, CASES["mixtral-mistral"])
    assert moe_gguf("merge", recipe, "-o", "one").status == 0
    assert {path.name for path in cache.iterdir()} == {"mine", "mine-q8_0.gguf"}
    monkeypatch.setenv("MOE_GGUF_CACHE_LIMIT", "1B")
    assert "write 1G for 10^9" in moe_gguf("cache", "list").stderr


def test_what_is_listed_and_cleared(cache: Path) -> None:
    name = base(cache, "Base", 1000)
    (cache / f"{name}.partial").write_bytes(bytes(4096))
    dead, alive = cache / "moe-gguf-999999999-abc", cache / f"moe-gguf-{os.getpid()}-abc"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "merged.gguf").write_bytes(bytes(8192))
    listed = json.loads(moe_gguf("cache", "list", "--json").stdout)
    assert {entry["name"]: entry["in_use"] for entry in listed["entries"]} == {
        name: False,
        dead.name: False,
        alive.name: True,
    }
    assert listed["bytes"] == 1_000_000 + 4096 + 2 * 8192 and listed["limit"] == 20 * 10**9
    text = moe_gguf("cache", "list").stdout
    assert f"{name}" in text and "1.02 MB in 3 files, at most 20.00 GB are kept" in text
    with only_run(cache / name):
        assert [entry.name for entry in clear_cache().entries] == [dead.name]
    assert "1.00 MB in 1 file removed" in moe_gguf("cache", "clear").stdout
    assert {path.name for path in cache.iterdir()} == {"mine", "mine-q8_0.gguf", alive.name}
    assert moe_gguf("cache", "sweep").status == 2
