"""Demands that a reader refuses what it cannot read in one line, without much memory."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

from moe_gguf.formats.errors import MoeGgufError
from moe_gguf.formats.gguf_file import read_gguf

MEMORY = 48 * 2**20


def refusal(path: Path, read: Callable[[Path], object] = read_gguf) -> str:
    """Return the one line that a file is refused with, or nothing; demand that it took little memory."""
    tracemalloc.start()
    try:
        read(path)
        line = ""
    except MoeGgufError as error:
        line = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY and "\n" not in line and len(line) < 1500 + len(str(path)), (peak, line)
    return line
