"""Second moments of what weight matrices are multiplied by: the file that calibrated rounding reads.

    H = sum over tokens of w^2 x x^T    x: the input of a matrix, float32 [row_length]
                                        w: the router's weight of the token for the expert, 1 without experts

(of attn_v x is an average over tokens, by the weights of attention)

It is a safetensors file. Matrices that take the same input (q and k; gate and up) share one entry; an entry holds H
in diagonal blocks of `width` columns, as its diagonal and the correlations below it, and a few inputs that were *not*
summed, by which rounding finds out whether it helped:

    NAME.tokens       I64 [n_expert]               tokens that were summed
    NAME.weight       F64 [n_expert]               sum of w^2
    NAME.diagonal     F32 [n_expert, row_length]   H_ii
    NAME.correlation  I16 [n_expert, n_packed]     32767 H_ij / sqrt(H_ii H_jj), i > j: block by block, row by row
    NAME.sample       F32 [n_expert, n_sample, row_length]   w x of tokens that were left out of H; zeros if too few
    ...
    finished          U8  [n_entries]              1 once an entry is whole

    block 0: c10 | c20 c21 | c30 c31 c32 | ...     block 1: the same for columns width .. 2 width - 1     ...

`__metadata__` has format, version, model (digest of `model_digest`), text (digest), source (what the user called the
text), n_ctx, and `entries`, JSON. Where all experts share one H, n_expert is 1.

Long because the layout, its strict reader and its resumable writer hold each other true.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from .errors import CheckpointError, MomentsError
from .positional import PositionalFile
from .safetensors import SafetensorsFile, pack_header, stored_bytes
from .source import TensorInfo

FORMAT, VERSION = "moe-gguf moments", "1"
FINISHED = "finished"
FULL_SCALE = 32767
PACKED_ROWS = 32
COMMITTED_EVERY = 1 << 28


@dataclass(frozen=True)
class Entry:
    """One input: the weight matrices that take it, its length, how much of H is kept, and how many inputs."""

    name: str
    weights: tuple[str, ...]
    row_length: int
    n_expert: int
    width: int
    n_sample: int = 32

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The diagonal blocks as columns [start, stop)."""
        return [(start, min(start + self.width, self.row_length)) for start in range(0, self.row_length, self.width)]

    @property
    def n_packed(self) -> int:
        """Correlations per expert."""
        return sum((stop - start) * (stop - start - 1) // 2 for start, stop in self.blocks)

    def tensors(self) -> tuple[TensorInfo, ...]:
        """What the file holds of it."""
        n = self.n_expert
        return (
            TensorInfo(f"{self.name}.tokens", "I64", (n,), ""),
            TensorInfo(f"{self.name}.weight", "F64", (n,), ""),
            TensorInfo(f"{self.name}.diagonal", "F32", (n, self.row_length), ""),
            TensorInfo(f"{self.name}.correlation", "I16", (n, self.n_packed), ""),
            TensorInfo(f"{self.name}.sample", "F32", (n, self.n_sample, self.row_length), ""),
        )


@dataclass(frozen=True)
class MomentsInfo:
    """What a file of moments is about; an interrupted run goes on only where all of it is the same."""

    model: str
    text: str
    source: str
    n_ctx: int
    entries: tuple[Entry, ...]

    def header(self) -> bytes:
        """Return the first bytes of the file."""
        tensors = [tensor for entry in self.entries for tensor in entry.tensors()]
        tensors.append(TensorInfo(FINISHED, "U8", (len(self.entries),), ""))
        entries = json.dumps([asdict(entry) for entry in self.entries])
        metadata = {"format": FORMAT, "version": VERSION, "model": self.model, "text": self.text}
        metadata |= {"source": self.source, "n_ctx": str(self.n_ctx), "entries": entries}
        return pack_header(tensors, metadata)

    @property
    def n_bytes(self) -> int:
        """The size of the file."""
        tensors = [tensor for entry in self.entries for tensor in entry.tensors()]
        return len(self.header()) + sum(map(stored_bytes, tensors)) + len(self.entries)


@dataclass(frozen=True)
class Moment:
    """H of one expert's input: float32 diagonal blocks [width, width], the tokens, and the sum of w^2.

    `sample` holds at most n_sample inputs that are not in H, float32 [., row_length].
    """

    blocks: tuple[np.ndarray, ...]
    n_tokens: int
    weight: float
    sample: np.ndarray

    @property
    def diagonal(self) -> np.ndarray:
        """H_ii, float32 [row_length]."""
        return np.concatenate([block.diagonal() for block in self.blocks])


def model_digest(architecture: str, shapes: Iterable[tuple[str, Sequence[int]]], exact: Iterable[Any]) -> str:
    """Hash what a model and its quantized files have in common.

    `shapes` are all tensors' names and shapes in GGUF order; `exact` are (name, float32 array) of the tensors that
    `is_exact` names: norms and routers, which no quantization changes.
    """
    digest = blake2b(architecture.encode(), digest_size=16)
    for name, shape in sorted((name, tuple(shape)) for name, shape in shapes):
        digest.update(f"{name}{list(shape)}".encode())
    for name, values in sorted(exact, key=lambda item: item[0]):
        digest.update(name.encode() + np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()


def is_exact(name: str, shape: Sequence[int]) -> bool:
    """Tell whether a tensor has the same values in every quantization of a model, and is part of its digest."""
    return (name.endswith("_norm.weight") and sum(n > 1 for n in shape) <= 1) or name.endswith("ffn_gate_inp.weight")


class MomentsFile:
    """A file of moments, read one matrix at a time. Raises MomentsError for what is broken or unfinished."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            self._file = SafetensorsFile(self.path)
        except CheckpointError as error:
            raise MomentsError(str(error)) from None
        self.info = _read_info(self._file)
        unfinished = int((self._rows(FINISHED, 0, 1) != 1).sum())
        if unfinished:
            raise MomentsError(
                f"{path}: unfinished, {unfinished} of {len(self.info.entries)} inputs are missing; "
                "run the command that makes it again, and it goes on"
            )
        self._by_weight = {weight: entry for entry in self.info.entries for weight in entry.weights}

    @cached_property
    def n_tokens(self) -> int:
        """The most tokens that any input has seen: those of the text."""
        return max((int(self._rows(f"{e.name}.tokens", 0, 1).max()) for e in self.info.entries), default=0)

    @property
    def names(self) -> frozenset[str]:
        """The weight matrices of which moments are known."""
        return frozenset(self._by_weight)

    def entry(self, name: str, shape: Sequence[int]) -> Entry | None:
        """Return the entry of a weight matrix of this shape (GGUF order), None when unknown.

        Raises MomentsError when the sizes differ.
        """
        entry = self._by_weight.get(name)
        n_expert = shape[2] if len(shape) > 2 else 1
        if entry is not None and (entry.row_length != shape[0] or entry.n_expert not in (1, n_expert)):
            raise MomentsError(
                f"{self.path}: {entry.n_expert} x {entry.row_length} moments for {name}, which has "
                f"{n_expert} x {shape[0]}; they were made for another model"
            )
        return entry

    def read(self, entry: Entry, expert: int) -> Moment:
        """Return H of one expert of an entry. Raises MomentsError when it is not finite."""
        expert = min(expert, entry.n_expert - 1)
        diagonal = self._rows(f"{entry.name}.diagonal", expert, expert + 1)[0]
        packed = self._rows(f"{entry.name}.correlation", expert, expert + 1)[0]
        n_tokens = int(self._rows(f"{entry.name}.tokens", 0, 1)[0, expert])
        weight = float(self._rows(f"{entry.name}.weight", 0, 1)[0, expert])
        n = entry.n_sample
        sample = self._rows(f"{entry.name}.sample", expert * n, expert * n + n)
        whole = (
            np.isfinite(sample).all()
            and np.isfinite(diagonal).all()
            and np.isfinite(packed).all()
            and np.isfinite(weight)
        )
        if not whole or (diagonal < 0).any() or n_tokens < 0:
            raise MomentsError(
                f"{self.path}: the moments of {entry.name}, expert {expert}, are not finite; make it again"
            )
        blocks, at = [], 0
        for start, stop in entry.blocks:
            n = stop - start
            blocks.append(_unpack(packed[at : at + n * (n - 1) // 2], diagonal[start:stop]))
            at += n * (n - 1) // 2
        return Moment(tuple(blocks), n_tokens, weight, sample)

    def tokens(self, entry: Entry) -> list[int]:
        """Return the tokens that each expert of an entry has seen."""
        return self._rows(f"{entry.name}.tokens", 0, 1).reshape(-1).tolist()

    def check_finite(self) -> None:
        """Raise MomentsError where a number that is kept as a float is not finite, before anything is written by it."""
        for entry in self.info.entries:
            n = entry.n_expert
            parts = {"diagonal": n, "sample": n * entry.n_sample, "weight": 1}
            if not all(np.isfinite(self._rows(f"{entry.name}.{part}", 0, rows)).all() for part, rows in parts.items()):
                raise MomentsError(f"{self.path}: the moments of {entry.name} are not finite; make it again")

    def check_model(self, digest: str) -> None:
        """Raise MomentsError when the moments are those of another model."""
        if self.info.model != digest:
            raise MomentsError(
                f"{self.path}: made from another model: its tensors, norms or routers differ; "
                "make moments of this one by moe-gguf imatrix --moments"
            )

    def _rows(self, name: str, start: int, stop: int) -> np.ndarray:
        return self._file.read_rows(name, start, stop)


class MomentsWriter:
    """Writes a file of moments entry by entry under a temporary name; an interrupted run goes on.

    Use as a context manager; `finish` gives the file its name once every entry is there. `put` may be called from
    several threads at once.
    """

    def __init__(self, path: Path, info: MomentsInfo) -> None:
        """Begin, or go on with what an interrupted run of the same left. Raises OSError."""
        self.path, self.info = Path(path), info
        self.partial = self.path.with_name(self.path.name + ".partial")
        header = info.header()
        self.resumed = _starts_with(self.partial, header, info.n_bytes)
        if not self.resumed:
            with open(self.partial, "wb") as file:
                file.write(header)
                file.truncate(info.n_bytes)
        self._layout = SafetensorsFile(self.partial)
        self._file = PositionalFile(self.partial, os.O_RDWR)
        self._lock = Lock()
        self._written: list[Entry] = []
        self._n_unsynced = 0

    def __enter__(self) -> "MomentsWriter":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._commit()
        finally:
            self._file.close()

    @property
    def missing(self) -> list[Entry]:
        """The entries that are not there yet, in order."""
        flags = np.empty(len(self.info.entries), np.uint8)
        self._file.read_into(self._layout.offset(FINISHED), flags)
        return [entry for entry, flag in zip(self.info.entries, flags, strict=True) if flag != 1]

    def put(self, entry: Entry, moments: Sequence[Moment]) -> None:
        """Write an entry, a moment per expert; it counts as there once it has reached the disk, soon after."""
        if len(moments) != entry.n_expert:
            raise ValueError(f"{len(moments)} moments for the {entry.n_expert} experts of {entry.name}")
        diagonals = np.stack([moment.diagonal for moment in moments]).astype(np.float32)
        at = self._layout.offset(f"{entry.name}.correlation")
        for moment in moments:
            if [block.shape for block in moment.blocks] != [(stop - start,) * 2 for start, stop in entry.blocks]:
                raise ValueError(f"the moments of {entry.name} are not in blocks of {entry.width}")
            for block in moment.blocks:
                packed = _pack(block)
                self._file.write(at, packed)
                at += packed.nbytes
        self._file.write(self._layout.offset(f"{entry.name}.diagonal"), diagonals)
        samples = np.zeros((entry.n_expert, entry.n_sample, entry.row_length), "<f4")
        for sample, moment in zip(samples, moments, strict=True):
            sample[: len(moment.sample)] = moment.sample
        self._file.write(self._layout.offset(f"{entry.name}.sample"), samples)
        tokens = np.array([moment.n_tokens for moment in moments], "<i8")
        self._file.write(self._layout.offset(f"{entry.name}.tokens"), tokens)
        self._file.write(self._layout.offset(f"{entry.name}.weight"), np.array([m.weight for m in moments], "<f8"))
        with self._lock:
            self._written.append(entry)
            self._n_unsynced += sum(map(stored_bytes, entry.tensors()))
            if self._n_unsynced > COMMITTED_EVERY:
                self._commit()

    def _commit(self) -> None:
        """Let the entries that were written reach the disk, then say that they are there."""
        if self._written:
            self._file.sync()
            for entry in self._written:
                self._file.write(self._layout.offset(FINISHED) + self.info.entries.index(entry), b"\1")
            self._written, self._n_unsynced = [], 0

    def finish(self) -> None:
        """Give the file its name. Raises MomentsError when an entry is missing."""
        self._commit()
        if missing := self.missing:
            raise MomentsError(f"{self.path}: no moments of {missing[0].name} came; nothing is written")
        self._file.sync()
        self._file.close()
        os.replace(self.partial, self.path)


def _pack(block: np.ndarray) -> np.ndarray:
    """Return the correlations below a block's diagonal as 16-bit integers, row by row.

    Float16 would be coarser where it matters: correlations next to 1, of which the factor takes differences.
    """
    scale = np.sqrt(block.diagonal().astype(np.float64))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    inverse *= FULL_SCALE
    packed, at = np.empty(len(block) * (len(block) - 1) // 2, "<i2"), 0
    for start in range(0, len(block), PACKED_ROWS):
        stop = min(start + PACKED_ROWS, len(block))
        band = inverse[start:stop, None] / FULL_SCALE * inverse[:stop]
        band *= block[start:stop, :stop]
        np.rint(np.clip(band, -FULL_SCALE, FULL_SCALE, out=band), out=band)
        for i, row in enumerate(band.astype("<i2"), start):
            packed[at : at + i] = row[:i]
            at += i
    return packed


def _unpack(packed: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Return the float32 block of these correlations and this diagonal."""
    n = len(diagonal)
    scale = np.sqrt(diagonal)
    block = np.empty((n, n), np.float32)
    at = 0
    for i in range(n):
        row = packed[at : at + i].astype(np.float32)
        row *= scale[i] / np.float32(FULL_SCALE)
        row *= scale[:i]
        block[i, :i] = row
        block[:i, i] = row
        block[i, i] = diagonal[i]
        at += i
    return block


def _read_info(file: SafetensorsFile) -> MomentsInfo:
    given = file.metadata
    if given.get("format") != FORMAT:
        raise MomentsError(f"{file.path}: no file of moments; moe-gguf imatrix --moments makes one")
    if given.get("version") != VERSION:
        raise MomentsError(f"{file.path}: moments of version {given.get('version')}, not {VERSION}; make it again")
    try:
        entries = tuple(
            Entry(**{**entry, "weights": tuple(map(str, entry["weights"]))}) for entry in json.loads(given["entries"])
        )
        info = MomentsInfo(given["model"], given["text"], given["source"], int(given["n_ctx"]), entries)
        wanted = [tensor for entry in entries for tensor in entry.tensors()]
        whole = all(type(n) is int and n > 0 for e in entries for n in (e.row_length, e.n_expert, e.width, e.n_sample))
    except (KeyError, TypeError, ValueError):
        raise MomentsError(f"{file.path}: broken: its entries cannot be read; make it again") from None
    wanted.append(TensorInfo(FINISHED, "U8", (len(entries),), ""))
    for tensor in wanted:
        found = file.tensors.get(tensor.name)
        if not whole or found is None or (found.dtype, found.shape) != (tensor.dtype, tensor.shape):
            raise MomentsError(f"{file.path}: broken: {tensor.name} is missing or has another size; make it again")
    return info


def _starts_with(path: Path, header: bytes, n_bytes: int) -> bool:
    """Tell whether a file of this size begins with these bytes."""
    try:
        with open(path, "rb") as file:
            return os.fstat(file.fileno()).st_size == n_bytes and file.read(len(header)) == header
    except OSError:
        return False
