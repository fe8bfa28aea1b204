"""Second moments of what matrices are multiplied by: inputs of a running model in, H = sum of w² x xᵀ per matrix out.

Calibrated rounding reads them (formats/moments.py). Several passes over groups of layers are planned where the memory
does not suffice for one.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ..formats.errors import EngineError
from ..formats.gguf_file import GgufFile, GgufTensor
from ..formats.moments import Entry, Moment, is_exact, model_digest
from ..models.tensor_roles import reason_to_keep
from ..runner.products import Input

# Widths of diagonal blocks, the widest first, for inputs of which the whole H does not fit: no block format's rows are
# cut by them. The narrowest is never gone below: several passes are made instead.
WIDTHS = (8192, 4096, 2048, 1024)
# Work is handed to the threads in portions: products of one matrix alone would leave some of them idle.
PORTION = 1 << 31
KEPT_EVERY = 64


@dataclass(frozen=True)
class Source:
    """An input as a survey of the graph found it: the matrices that take it, its length, and the experts (or 0)."""

    weights: tuple[str, ...]
    row_length: int
    n_expert: int


@dataclass(frozen=True)
class Pass:
    """The inputs whose moments are summed in one pass over the text."""

    entries: tuple[Entry, ...]


def entries_of(sources: Iterable[Source], file: GgufFile, width: int | None = None) -> tuple[Entry, ...]:
    """Return an entry for each input that a matrix takes whose type a quantization changes.

    H of rows longer than `width` is kept in diagonal blocks.
    """
    entries = []
    for source in sources:
        tensors = [file.tensors[name] for name in source.weights if name in file.tensors]
        weights = tuple(each.name for each in tensors if reason_to_keep(each, file.architecture) is None)
        if weights and (source.n_expert or all(len(each.shape) < 3 or each.shape[2] == 1 for each in tensors)):
            n = source.row_length
            entries.append(Entry(weights[0], weights, n, max(source.n_expert, 1), min(n, width or n)))
    return tuple(entries)


def n_bytes(entry: Entry) -> int:
    """Return the memory that an entry takes while it is summed."""
    return 4 * entry.n_expert * sum((stop - start) ** 2 for start, stop in entry.blocks)


def plan(sources: Sequence[Source], file: GgufFile, memory: int) -> tuple[Entry, ...]:
    """Return the entries with the widest blocks of which all fit into `memory` bytes at once, else the narrowest."""
    plans = (entries_of(sources, file, width) for width in (None, *WIDTHS))
    return next(
        (entries for entries in plans if sum(map(n_bytes, entries)) <= memory), entries_of(sources, file, WIDTHS[-1])
    )


def passes(entries: Sequence[Entry], memory: int) -> list[Pass]:
    """Cut entries, in their order, into passes of at most `memory` bytes. Raises EngineError when one does not fit."""
    groups: list[list[Entry]] = [[]]
    filled = 0
    for entry in entries:
        size = n_bytes(entry)
        if size > memory:
            raise EngineError(
                f"the moments of {entry.name} alone take {size / 2**30:.1f} GiB, and {memory / 2**30:.1f} are there; "
                "give more by --moments-memory"
            )
        if filled + size > memory:
            groups.append([])
            filled = 0
        groups[-1].append(entry)
        filled += size
    return [Pass(tuple(group)) for group in groups if group]


class Moments:
    """Sums the moments of a pass's entries; use as a context manager, `add` inputs, `flush`, and take `moments`."""

    def __init__(self, entries: Sequence[Entry], n_threads: int) -> None:
        self._by_weight = {weight: entry for entry in entries for weight in entry.weights}
        self._sums = {entry.name: _Sum(entry) for entry in entries}
        ssyrk()  # before anyone limits the threads of libraries of BLAS: ours are threads enough
        self._pool = ThreadPoolExecutor(n_threads)
        self._waiting: list[tuple[np.ndarray, list[tuple[int, int, np.ndarray]]]] = []
        self._work = 0

    def __enter__(self) -> "Moments":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def names(self) -> frozenset[str]:
        """The matrices whose inputs are summed."""
        return frozenset(self._by_weight)

    def add(self, given: Input, names: Iterable[str]) -> None:
        """Add an input that the matrices `names` take; one that is in no entry is passed over."""
        entry = next((self._by_weight[name] for name in names if name in self._by_weight), None)
        if entry is None:
            return
        total = self._sums[entry.name]
        if given.experts is None:
            self._add(total, 0, given.x.reshape(-1, given.x.shape[-1]), None)
            return
        assert given.router is not None
        for expert in range(given.n_expert):
            token, slot = np.nonzero(given.experts == expert)
            if len(token):
                rows = given.x[token, slot if given.x.shape[1] > 1 else 0]
                self._add(total, expert, rows, given.router[token, slot])

    def _add(self, total: "_Sum", expert: int, rows: np.ndarray, router: np.ndarray | None) -> None:
        kept = total.choose(expert, len(rows))
        weighted = rows.copy() if router is None else rows * router[:, None]
        if len(kept):
            total.samples[expert].extend(weighted[kept])
            weighted = np.delete(weighted, kept, 0)
            router = None if router is None else np.delete(router, kept)
        total.n_tokens[expert] += len(weighted)
        total.weight[expert] += len(weighted) if router is None else float(np.square(router, dtype=np.float64).sum())
        if len(weighted):
            blocks = [(*bounds, h) for bounds, h in zip(total.entry.blocks, total.blocks[expert], strict=True)]
            self._waiting.append((np.ascontiguousarray(weighted), blocks))
            self._work += len(weighted) * sum((stop - start) ** 2 for start, stop, _ in blocks)
            if self._work > PORTION:
                self.flush()

    def flush(self) -> None:
        """Do the work that waits."""
        jobs = [(rows, *block) for rows, blocks in self._waiting for block in blocks]
        self._waiting, self._work = [], 0
        # The longest first; no two of a portion may add to the same block at once.
        by_block: dict[int, list[tuple[np.ndarray, int, int, np.ndarray]]] = {}
        for job in jobs:
            by_block.setdefault(id(job[3]), []).append(job)
        ordered = sorted(by_block.values(), key=lambda same: -sum(job[0].shape[0] * job[3].size for job in same))
        for _ in self._pool.map(_add_all, ordered):
            pass

    def each(self, take: Callable[[Entry, list[Moment]], None]) -> None:
        """Hand over the moments of all entries, several at a time; `flush` must have been called."""
        for _ in self._pool.map(lambda total: take(total.entry, self.moments(total.entry)), self._sums.values()):
            pass

    def moments(self, entry: Entry) -> list[Moment]:
        """Return the moments of an entry's experts; `flush` must have been called."""
        total = self._sums[entry.name]
        return [
            Moment(
                tuple(total.blocks[expert]),
                int(total.n_tokens[expert]),
                float(total.weight[expert]),
                np.array(total.samples[expert], np.float32).reshape(-1, entry.row_length),
            )
            for expert in range(entry.n_expert)
        ]


class _Sum:
    """What is summed of one entry: the lower triangles of its blocks, per expert."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.blocks = [
            [np.zeros((stop - start, stop - start), np.float32) for start, stop in entry.blocks]
            for _ in range(entry.n_expert)
        ]
        self.n_tokens = np.zeros(entry.n_expert, np.int64)
        self.weight = np.zeros(entry.n_expert)
        self.samples: list[list[np.ndarray]] = [[] for _ in range(entry.n_expert)]

    def choose(self, expert: int, n_rows: int) -> np.ndarray:
        """Return which of new rows are kept for the sample instead of summed: one in 64, until there are enough."""
        room = self.entry.n_sample - len(self.samples[expert])
        n = min(room, n_rows // KEPT_EVERY)
        return np.linspace(0, n_rows - 1, n).astype(np.int64) if n else np.empty(0, np.int64)


def _add_all(jobs: Sequence[tuple[np.ndarray, int, int, np.ndarray]]) -> None:
    for rows, start, stop, h in jobs:
        add_products(rows, start, stop, h)


def add_products(rows: np.ndarray, start: int, stop: int, h: np.ndarray) -> None:
    """Add rows[:, start:stop]ᵀ rows[:, start:stop] to the lower triangle of h, float32 in C order, without the GIL."""
    n, k, ld, one = ctypes.c_int(stop - start), ctypes.c_int(len(rows)), ctypes.c_int(rows.shape[1]), ctypes.c_float(1)
    pointer = ctypes.byref
    # In BLAS's order of columns, rows are the columns of a matrix, and h's lower triangle is the upper one.
    at = rows.ctypes.data + start * rows.itemsize
    ssyrk()(b"U", b"N", pointer(n), pointer(k), pointer(one), at, pointer(ld), pointer(one), h.ctypes.data, pointer(n))


@cache
def ssyrk() -> Any:
    """Return BLAS's function of that name; scipy's own wrapper keeps the GIL, and numpy's adds to nothing in place."""
    import importlib

    capsule = importlib.import_module("scipy.linalg.cython_blas").__pyx_capi__["ssyrk"]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, *[ctypes.c_void_p] * 8)(address)


def digest_of(file: GgufFile) -> str:
    """Return the digest of a GGUF model that its moments carry."""
    shapes = [(tensor.name, tensor.shape) for tensor in file.tensors.values()]
    exact = [(name, _values(tensor)) for name, tensor in file.tensors.items() if is_exact(name, tensor.shape)]
    return model_digest(file.architecture, shapes, exact)


def _values(tensor: GgufTensor) -> np.ndarray:
    """Return a small tensor's values as float32, whatever its type."""
    from gguf.quants import dequantize

    data = np.fromfile(tensor.path, np.uint8, tensor.n_bytes, offset=tensor.offset)
    return dequantize(data, tensor.qtype).ravel()
