"""Reading and writing at given places of a file from several threads, on systems with and without pread."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np

from .errors import MoeGgufError

BINARY: int = getattr(os, "O_BINARY", 0)  # Windows translates line ends without it


class PositionalFile:
    """An open file without a position: safe to use from several threads. Closed at the latest when nobody has it."""

    descriptor = -1

    def __init__(self, path: Path, flags: int = os.O_RDONLY) -> None:
        self.path = path
        self.descriptor = os.open(path, flags | BINARY, 0o666)
        self._lock = threading.Lock()

    def read_into(self, offset: int, target: memoryview | np.ndarray) -> None:
        """Fill `target` with the bytes at `offset`. Raises MoeGgufError when the file ends before."""
        view = _bytes_of(target)
        done = 0
        while done < len(view):
            with self._named():
                count = self._read(offset + done, view[done:])
            if count == 0:
                raise MoeGgufError(f"{self.path}: ends at byte {offset + done}, where data should follow; is it whole?")
            done += count

    def write(self, offset: int, source: memoryview | bytes | np.ndarray) -> None:
        """Write all of `source` at `offset`."""
        view = _bytes_of(source)
        done = 0
        with self._named():
            while done < len(view):
                done += self._write(offset + done, view[done:])

    def size(self) -> int:
        """Return the file's size in bytes."""
        return os.fstat(self.descriptor).st_size

    def sync(self) -> None:
        """Return when everything written has reached the disk."""
        with self._named():
            os.fsync(self.descriptor)

    def close(self) -> None:
        """Close the file."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __enter__(self) -> "PositionalFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in errors of the system, which knows its number only."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or str(self.path)
            raise

    if hasattr(os, "preadv"):

        def _read(self, offset: int, view: memoryview) -> int:
            return os.preadv(self.descriptor, [view], offset)

    else:

        def _read(self, offset: int, view: memoryview) -> int:
            with self._lock:
                os.lseek(self.descriptor, offset, os.SEEK_SET)
                data = os.read(self.descriptor, len(view))
            view[: len(data)] = data
            return len(data)

    if hasattr(os, "pwrite"):

        def _write(self, offset: int, view: memoryview) -> int:
            return os.pwrite(self.descriptor, view, offset)

    else:

        def _write(self, offset: int, view: memoryview) -> int:
            with self._lock:
                os.lseek(self.descriptor, offset, os.SEEK_SET)
                return os.write(self.descriptor, view)


def _bytes_of(buffer: memoryview | bytes | np.ndarray) -> memoryview:
    view = memoryview(cast(Any, buffer))
    return view.cast("B") if view.nbytes else memoryview(b"")
