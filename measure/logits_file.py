"""Log probabilities of a base model on disk: written a window at a time, gone on with, read back by window.

Two forms. llama.cpp's own (tools/perplexity/perplexity.cpp, --kl-divergence-base), little-endian:

    "_logits_"  u32 n_ctx  i32 n_vocab  i32 n_chunk  i32 tokens[n_chunk * n_ctx]
    per window: u16 rows[n_scored][4 + n_vocab rounded up to even]          (distributions.store)

and a compact one of half its size:

    "moelogit"  u32 n_ctx  i32 n_vocab  i32 n_chunk  u8 model[16]  i32 tokens[n_chunk * n_ctx]
    per window: f32 heads[n_scored][5]  u8 rows[n_scored][n_vocab]          (distributions.store_compact)
"""

import os
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..formats.errors import EngineError, OutputError
from ..formats.gguf_file import GgufFile
from . import distributions
from .windows import Windows

STOCK, COMPACT = b"_logits_", b"moelogit"
HEAD_BYTES = {STOCK: 20, COMPACT: 36}
N_HEAD = 5


@dataclass(frozen=True)
class Layout:
    """The sizes of a file: its form, tokens of a window, vocabulary, windows, and the digest of the model or b""."""

    magic: bytes
    n_ctx: int
    n_vocab: int
    n_chunk: int
    model: bytes = b""

    @property
    def n_scored(self) -> int:
        """Scored tokens of a window."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def start(self) -> int:
        """The byte at which the first window begins."""
        return HEAD_BYTES[self.magic] + 4 * self.n_chunk * self.n_ctx

    @property
    def row_length(self) -> int:
        """Numbers of a row: uint16, or uint8 in the compact form."""
        return self.n_vocab if self.magic == COMPACT else 2 * ((self.n_vocab + 1) // 2) + 4

    @property
    def window_bytes(self) -> int:
        """Bytes of a window."""
        each = self.n_vocab + 4 * N_HEAD if self.magic == COMPACT else 2 * self.row_length
        return self.n_scored * each

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole file."""
        return self.start + self.n_chunk * self.window_bytes

    def header(self, tokens: np.ndarray) -> bytes:
        """Return what stands before the first window."""
        numbers = np.array([self.n_ctx, self.n_vocab, self.n_chunk], "<i4").tobytes()
        return self.magic + numbers + self.model + np.ascontiguousarray(tokens, "<i4").tobytes()


def model_digest(file: GgufFile) -> bytes:
    """Return 16 bytes that tell a model's file from others: its metadata, each tensor's name, type and shape."""
    hashed = blake2b(digest_size=16)
    for key, field in file.fields.items():
        hashed.update(f"{key}={field.value!r}".encode("utf-8", "surrogateescape"))
    for tensor in file.tensors.values():
        hashed.update(f"{tensor.name} {tensor.shape} {tensor.qtype}".encode("utf-8", "surrogateescape"))
    return hashed.digest()


class LogitsWriter:
    """Writes a file window by window, under a temporary name until `finish`; what is there already is gone on with.

    `done` is how many windows are there when it is opened.
    """

    def __init__(self, path: Path, layout: Layout, windows: Windows) -> None:
        """Open or go on with `path`.partial. Raises OutputError when the folder is missing or has no room."""
        self.path, self.layout = path, layout
        self.partial = path.with_name(path.name + ".partial")
        header = layout.header(windows.tokens)
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path.parent}: no such folder; create it first")
        try:
            mode = "r+b" if self.partial.exists() else "w+b"
            self._file: BinaryIO = open(self.partial, mode)  # noqa: SIM115 (close closes it)
        except OSError as error:
            raise OutputError(f"{self.partial}: {error.strerror}") from None
        found = self._file.read(len(header))
        self.done = 0
        if found == header:
            size = os.fstat(self._file.fileno()).st_size
            self.done = min((size - layout.start) // layout.window_bytes, layout.n_chunk)
        else:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(header)
        self._file.truncate(layout.start + self.done * layout.window_bytes)
        self._rows = np.zeros((layout.n_scored, layout.row_length), np.uint8 if layout.magic == COMPACT else np.uint16)
        self._heads = np.zeros((layout.n_scored, N_HEAD), np.float32)

    def add(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Append the next window's logits, float32 [n_scored, n_vocab]; return its losses, float64 [n_scored].

        Raises OutputError when the disk is full.
        """
        losses = np.empty(len(targets))
        if self.layout.magic == COMPACT:
            distributions.in_threads(distributions.store_compact, logits, targets, self._rows, self._heads, losses)
            parts = (self._heads, self._rows)
        else:
            distributions.in_threads(distributions.store, logits, targets, self._rows, losses)
            parts = (self._rows,)
        try:
            self._file.seek(self.layout.start + self.done * self.layout.window_bytes)
            for part in parts:
                self._file.write(part.data)
        except OSError as error:
            raise OutputError(f"{self.partial}: {error.strerror}; what is there is gone on with next time") from None
        self.done += 1
        return losses

    def last(self, targets: np.ndarray) -> np.ndarray:
        """Return the window that was just added as it is stored: log probabilities, float32 [n_scored, n_vocab]."""
        out = np.empty((self.layout.n_scored, self.layout.n_vocab), np.float32)
        if self.layout.magic == COMPACT:
            distributions.in_threads(distributions.load_compact, self._rows, self._heads, targets, out)
        else:
            distributions.in_threads(distributions.load, self._rows, out)
        return out

    def finish(self) -> None:
        """Give the complete file its name."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.partial.replace(self.path)

    def close(self) -> None:
        """Leave the file to be gone on with."""
        if not self._file.closed:
            self._file.close()
        if not self.done:
            self.partial.unlink(missing_ok=True)


class StoredLogits:
    """A finished file of either form, mapped into memory."""

    def __init__(self, path: Path) -> None:
        """Read the header. Raises EngineError for what is no such file, or not all of it."""
        self.path = path
        self.layout = read_layout(path)
        data = np.memmap(path, np.uint8, "r")
        if len(data) < self.layout.n_bytes:
            raise EngineError(
                f"{path}: is cut off, {len(data):,} of {self.layout.n_bytes:,} bytes are there; save the logits again"
            )
        self._data = data
        at = HEAD_BYTES[self.layout.magic]
        tokens = data[at : self.layout.start].view("<i4")
        self.tokens: np.ndarray = np.array(tokens, np.int32).reshape(self.layout.n_chunk, self.layout.n_ctx)
        if self.tokens.size and not 0 <= self.tokens.min() <= self.tokens.max() < self.layout.n_vocab:
            raise EngineError(f"{path}: broken, it names tokens outside of its vocabulary; save the logits again")

    def window(self, chunk: int, out: np.ndarray) -> np.ndarray:
        """Put the log probabilities of a window into `out`, float32 [n_scored, n_vocab], and return it."""
        layout = self.layout
        start = layout.start + chunk * layout.window_bytes
        data = np.asarray(self._data[start : start + layout.window_bytes])
        if layout.magic == COMPACT:
            split = layout.n_scored * N_HEAD * 4
            heads = data[:split].copy().view(np.float32).reshape(-1, N_HEAD)
            targets = self.tokens[chunk, layout.n_ctx // 2 + 1 :]
            distributions.in_threads(
                distributions.load_compact, data[split:].reshape(layout.n_scored, -1), heads, targets, out
            )
        else:
            distributions.in_threads(distributions.load, data.copy().view(np.uint16).reshape(layout.n_scored, -1), out)
        return out


def read_layout(path: Path) -> Layout:
    """Read the sizes that a file of logits states. Raises EngineError for another file."""
    try:
        with open(path, "rb") as file:
            head = file.read(max(HEAD_BYTES.values()))
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}") from None
    magic = head[:8]
    if magic not in HEAD_BYTES or len(head) < HEAD_BYTES[magic]:
        raise EngineError(f"{path}: is no file of stored logits (llama-perplexity's --kl-divergence-base, or ours)")
    n_ctx, n_vocab, n_chunk = (int(number) for number in np.frombuffer(head, "<i4", 3, 8))
    if not (0 < n_ctx < 2**24 and 0 < n_vocab < 2**24 and 0 < n_chunk < 2**24):
        raise EngineError(f"{path}: broken, it states windows of {n_ctx} tokens and a vocabulary of {n_vocab}")
    return Layout(magic, n_ctx, n_vocab, n_chunk, head[20:36] if magic == COMPACT else b"")
