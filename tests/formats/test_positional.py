"""Reads and writes at given places, from several threads, with the system's calls for it and without."""

import os
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from moe_gguf.formats import positional
from moe_gguf.formats.errors import MoeGgufError


@pytest.fixture(params=["with pread", "without"])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module as it is here, and as it is on systems without preadv and pwrite."""
    if request.param == "with pread":
        return positional
    for name in ("preadv", "pwrite"):
        monkeypatch.delattr(os, name, raising=False)
    source = Path(str(positional.__file__))
    without = ModuleType(positional.__name__)
    without.__package__ = positional.__package__
    exec(compile(source.read_text(), str(source), "exec"), vars(without))
    return without


def test_threads_do_not_disturb_each_other(module: ModuleType, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).integers(0, 256, (64, 5000), np.uint8)
    read = np.zeros_like(rows)
    with module.PositionalFile(tmp_path / "x", os.O_RDWR | os.O_CREAT) as file:

        def work(first: int) -> None:
            for row in range(first, 64, 8):
                file.write(row * 5000, rows[row])
            for row in range(first, 64, 8):
                file.read_into(row * 5000, read[row])

        threads = [threading.Thread(target=work, args=(first,)) for first in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        file.sync()
        assert file.size() == rows.size
    assert (read == rows).all() and (tmp_path / "x").read_bytes() == rows.tobytes()


def test_all_kinds_of_buffers_are_read_and_written(module: ModuleType, tmp_path: Path) -> None:
    with module.PositionalFile(tmp_path / "x", os.O_RDWR | os.O_CREAT) as file:
        for buffer in (b"abcd", memoryview(b"efgh"), np.array([[1, 2]], np.float16), b"", np.empty((0, 7))):
            file.write(file.size(), buffer)
        assert file.size() == 12
        target = np.zeros((1, 2), np.float16)
        file.read_into(8, target)
        assert target.tolist() == [[1, 2]]
        file.read_into(99, np.empty((0, 3)))


def test_a_file_that_ends_too_early_is_named_with_the_byte(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    with module.PositionalFile(tmp_path / "x") as file, pytest.raises(MoeGgufError, match=r"x: ends at byte 5, "):
        file.read_into(2, np.zeros(9, np.uint8))


def test_errors_of_the_system_name_the_file(module: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    with module.PositionalFile(tmp_path / "x") as file:
        with pytest.raises(OSError) as caught:
            file.write(0, b"read-only")
        assert caught.value.filename == str(tmp_path / "x")
    with pytest.raises(OSError):
        file.read_into(0, np.zeros(1, np.uint8))
    file.close()
