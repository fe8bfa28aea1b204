"""Sizes as people write them, to bytes: files count in thousands, as disks and the hub do, memory in 1024s.

In: "50G", "7.5GiB". Out: bytes, or one line that says how to write it and what its letters stand for.
"""

import math
import re
from typing import Literal

from .errors import PlanError

SCALE = {"file": 1000, "memory": 1024}
EXAMPLE = {"file": "write e.g. 50G or 500M (K, M, G, T count in 1000s)", "memory": "write e.g. 8G or 7.5G (in 1024s)"}
WHAT = {"file": "a size of a file", "memory": "an amount of memory"}
SIZE = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(?:([KMGT])(I)?)?(B)?", re.ASCII)
LARGEST = 2**63 - 1


def parse_size(text: str, of: Literal["file", "memory"]) -> int:
    """Return the bytes of a size such as "8G", "7.5GiB", "512M" or "1073741824".

    K, M, G and T count in 1000s for a file, as llama.cpp's gguf-split counts, in 1024s for memory; with an i (GiB)
    always in 1024s. Raises PlanError for anything else, and for a number with B alone, which is a byte here and
    10^9 to mergekit.
    """
    match = SIZE.fullmatch(text.strip().upper())
    if match is None:
        raise PlanError(f"{text!r} is not {WHAT[of]}; {EXAMPLE[of]}")
    number, letter, binary, byte = match.groups()
    if byte and not letter:
        raise PlanError(f"{text!r} could be bytes or billions of them; write {number}G for 10^9, {number} for bytes")
    scale = 1024 if binary else SCALE[of]
    size = float(number) * scale ** " KMGT".index(letter or " ")
    if not 1 <= size <= LARGEST:
        raise PlanError(f"{text!r} is not {WHAT[of]}; {EXAMPLE[of]}")
    return int(size)


def needed(n_bytes: float) -> str:
    """Return bytes that something needs, in GB rounded up: beside `granted` they never look as if they fit."""
    return f"{math.ceil(n_bytes / 1e7) / 100:.2f} GB"


def granted(n_bytes: float) -> str:
    """Return bytes that there are, in GB rounded down; see `needed`."""
    return f"{math.floor(n_bytes / 1e7) / 100:.2f} GB"
