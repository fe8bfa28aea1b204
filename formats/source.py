"""Where weights come from: a checkpoint, a merge recipe or a GGUF file, all read through one protocol.

Headers only until `read_rows` is called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a source.

    `dtype` is the GGML name of how the rows are stored ("F32", "F16", "BF16", or a quantized type such as
    "Q4_1"); `shape` is in numpy order (slowest first), in weights; `where` says in words where it lies, for
    error messages ("model-00001-of-00002.safetensors at byte 4096").
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    where: str

    @property
    def n_rows(self) -> int:
        """Number of rows when every axis but the last is flattened; 1 for a vector."""
        return prod(self.shape[:-1])

    @property
    def row_length(self) -> int:
        """Weights per row (the last axis, GGUF's first)."""
        return self.shape[-1] if self.shape else 1


class TensorSource(Protocol):
    """Names to tensors, and rows on demand."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors by name, in the order in which they lie in the source."""
        ...

    def read_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        """Return rows [start, stop) of the flattened [n_rows, row_length] tensor as stored.

        float32 for "F32", float16 for "F16", uint16 bit patterns for "BF16": [stop - start, row_length];
        uint8 [stop - start, bytes per row] for quantized types. The array belongs to the caller, who may
        change it. Safe to call from several threads. Raises MoeGgufError when the file has become shorter.
        """
        ...

    def identity(self) -> Mapping[str, str]:
        """Return what must not change while an interrupted run waits to be continued.

        Absolute paths of all files that are read, each with its size, time of change and header hash; other
        keys (a seed, a scale) as they are.
        """
        ...


def file_identity(path: Path, header: bytes = b"") -> dict[str, str]:
    """Return the identity of one file: its absolute path to "size, time of change, hash of the header"."""
    from hashlib import blake2b

    state = path.stat()
    digest = blake2b(header, digest_size=8).hexdigest()
    return {str(path.resolve()): f"{state.st_size} bytes, changed at {state.st_mtime_ns} ns, header {digest}"}
