"""One pass over a plan writes every output: each source row is read once and given to all of them.

Memory is bounded by the slab and the number of threads, never by a tensor or the model. What an output is
made of (its types) and how a row is encoded come in as arguments: this module knows neither.

Long because reading, encoding, resuming and stopping are one pass.
"""

import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from gguf.constants import GGMLQuantizationType

from ..formats.errors import CheckpointError, Interrupted, MoeGgufError, OutputError
from ..formats.floats import encode_float, first_nonfinite, widen
from .journal import only_run
from .partial import Check, Output, PartialOutput, check_outputs, check_space
from .plan import FLOAT_TYPES, Plan, PlannedTensor, Slab, cut_slabs, read_planned

SLAB_WEIGHTS = 2**20
SECONDS_BETWEEN_CHECKPOINTS = 5.0

# What first_nonfinite found, and what to do about it.
NONFINITE = ("NaN or infinity", "take a copy without, or merge again")
LOST_IN_F16 = ("NaN or infinity", "F16 holds nothing beyond 65504: if it was saved from another type, save it as BF16")
BEYOND_F32 = ("a number too large for F32", "its type holds more than any of GGUF's; scale or clip it")
BEYOND_F16 = ("a weight too large for F16", "use BF16")

Encode = Callable[[PlannedTensor, int, np.ndarray, GGMLQuantizationType], np.ndarray]
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Written:
    """A finished output: its files, and whether this run had anything left to do for it."""

    output: Output
    paths: tuple[Path, ...]
    resumed_at: int


def write(
    plan: Plan,
    outputs: Sequence[Output],
    encode: Encode | None = None,
    *,
    n_threads: int = 2,
    force: bool = False,
    allow_nonfinite: bool = False,
    advance: Advance | None = None,
    check: Check | None = None,
    begin: Callable[[], None] | None = None,
) -> list[Written]:
    """Write all outputs of a plan; an interrupted run of the same goes on where it stopped.

    `encode(tensor, row, rows, qtype)` makes the bytes of rows that are not only copied or rounded to a float
    type; `advance` is told the weights that are done; `check` reads back the finished files before they get
    their names; `begin` is called when nothing stands in the way, before the first byte. Raises OutputError (exists,
    is the input, no space, write failed), CheckpointError (NaN), and Interrupted when Ctrl-C came after that.
    """
    identity = dict(plan.source.identity())
    check_outputs(outputs, identity)
    identity["the tensors"] = _digest(plan)
    slabs = cut_slabs(plan, SLAB_WEIGHTS)
    with ExitStack() as held:
        for output in outputs:
            held.enter_context(only_run(output.path))
        partials = [PartialOutput(output, identity, force) for output in outputs]
        check_space(partials)
        if begin:
            begin()
        starts = [len(slabs) if partial.finished else partial.done for partial in partials]
        run = _Run(plan, slabs, partials, encode, allow_nonfinite, advance or (lambda _: None))
        try:
            _make_files(run, n_threads, check)
        except OSError as error:
            raise OutputError(_explain(error, outputs)) from error
    return [
        Written(partial.output, tuple(path for path, _ in partial.shards), start)
        for partial, start in zip(partials, starts, strict=True)
    ]


def _make_files(run: "_Run", n_threads: int, check: Check | None) -> None:
    """Make, check and name the files; what a failure leaves can be gone on with, unless the weights are to blame."""
    partials = run.partials
    try:
        _begin(partials)
        run.go(n_threads)
        _finish(partials, check)
    except CheckpointError:
        for partial in partials:
            partial.discard()
        raise
    finally:
        for partial in partials:
            partial.close()
    for partial in partials:
        partial.forget()


def _begin(partials: Sequence[PartialOutput]) -> None:
    """Create or open the files."""
    try:
        for partial in partials:
            partial.begin()
    except KeyboardInterrupt:
        raise _interrupted(partials) from None


def _finish(partials: Sequence[PartialOutput], check: Check | None) -> None:
    """Check the files and give them their names."""
    try:
        for partial in partials:
            partial.seal(check)
        for partial in partials:
            partial.publish()
    except KeyboardInterrupt:
        raise Interrupted("interrupted while files are checked; run the same command again to finish them") from None


def _interrupted(partials: Sequence[PartialOutput]) -> Interrupted:
    """Return what to say after Ctrl-C: files that hold no weight yet are removed, the others can be gone on with."""
    begun = [partial for partial in partials if partial.done or partial.finished]
    for partial in partials:
        if partial not in begun:
            partial.discard()
    if not begun:
        return Interrupted("interrupted; nothing was written")
    return Interrupted("interrupted; run the same command again to go on where it stopped")


def _digest(plan: Plan) -> str:
    """Hash what is read for which tensor, so that a changed plan is not continued."""
    digest = blake2b(str(SLAB_WEIGHTS).encode(), digest_size=16)
    for tensor in plan.tensors:
        digest.update(repr(tensor).encode())
        if tensor.values is not None:
            digest.update(tensor.values.tobytes())
    return digest.hexdigest()


class _Run:
    """The slabs on their way through the threads."""

    def __init__(
        self,
        plan: Plan,
        slabs: list[Slab],
        partials: list[PartialOutput],
        encode: Encode | None,
        allow_nonfinite: bool,
        advance: Advance,
    ) -> None:
        self.plan, self.slabs, self.partials, self.encode = plan, slabs, partials, encode
        self.allow_nonfinite, self.advance = allow_nonfinite, advance
        active = [partial for partial in partials if not partial.finished]
        self.first = min((partial.done for partial in active), default=len(slabs))
        self.types = [{entry.name: entry.qtype for entry in partial.output.entries} for partial in partials]
        self.lock = threading.Lock()
        self.next, self.waterline = self.first, self.first
        self.ahead: set[int] = set()
        self.failure: BaseException | None = None
        self.stopping = False

    def go(self, n_threads: int) -> None:
        """Work through the slabs; note progress in the journals; stop cleanly on Ctrl-C or a failure."""
        for slab in self.slabs[: self.first]:
            self.advance(self._weights(slab))
        n_threads = max(1, min(n_threads, len(self.slabs) - self.first))
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(n_threads)]
        try:
            for thread in threads:
                thread.start()
            self._watch(threads)
        except KeyboardInterrupt:
            self._stop(threads)
            self._checkpoint()
            raise _interrupted(self.partials) from None
        finally:
            self._stop(threads)
        if self.failure is not None:
            if isinstance(self.failure, OSError):
                self._checkpoint_quietly()
            raise self.failure

    def _watch(self, threads: Sequence[threading.Thread]) -> None:
        """Note progress from time to time, until all slabs are made or one failed."""
        last = time.monotonic()
        while any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.05)
            if time.monotonic() - last > SECONDS_BETWEEN_CHECKPOINTS:
                self._checkpoint()
                last = time.monotonic()

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        """Wait for the threads: none may write once the files are closed."""
        self.stopping = True
        for thread in threads:
            if thread.ident is not None:
                thread.join()

    def _checkpoint(self) -> None:
        with self.lock:
            done = self.waterline
        for partial in self.partials:
            partial.checkpoint(done)

    def _checkpoint_quietly(self) -> None:
        """Note what is safe when the disk is full: the journal may be what no longer fits."""
        try:
            self._checkpoint()
        except OSError:
            return

    def _work(self) -> None:
        while True:
            with self.lock:
                number = self.next
                if self.stopping or self.failure or number >= len(self.slabs):
                    return
                self.next += 1
            try:
                self._make(number)
                with self.lock:
                    self._note(number)
            except BaseException as error:
                with self.lock:
                    self.failure = self.failure or error
                return

    def _note(self, number: int) -> None:
        self.ahead.add(number)
        while self.waterline in self.ahead:
            self.ahead.remove(self.waterline)
            self.waterline += 1
        self.advance(self._weights(self.slabs[number]))

    def _weights(self, slab: Slab) -> int:
        return (slab.stop - slab.start) * self.plan.tensors[slab.index].row_length

    def _make(self, number: int) -> None:
        """Read one slab, encode it once per type, and put it into every output that still lacks it."""
        slab = self.slabs[number]
        tensor = self.plan.tensors[slab.index]
        rows = read_planned(self.plan.source, tensor, slab.start, slab.stop)
        if rows.dtype != np.uint8:
            self._demand_finite(tensor, slab, rows, LOST_IN_F16 if rows.dtype == np.float16 else NONFINITE)
        if rows.dtype == np.float64:
            rows = widen(rows)
            self._demand_finite(tensor, slab, rows, BEYOND_F32)
        encoded: dict[GGMLQuantizationType, np.ndarray] = {}
        for partial, types in zip(self.partials, self.types, strict=True):
            if partial.finished or number < partial.done:
                continue
            qtype = types[tensor.name]
            if qtype not in encoded:
                encoded[qtype] = encode_rows(tensor, slab.start, rows, qtype, self.encode)
                if qtype is GGMLQuantizationType.F16 and rows.dtype != np.float16:
                    self._demand_finite(tensor, slab, encoded[qtype].view(np.float16), BEYOND_F16)
            partial.put(tensor.name, slab.start, encoded[qtype].data)

    def _demand_finite(
        self, tensor: PlannedTensor, slab: Slab, rows: np.ndarray, what: tuple[str, str] = NONFINITE
    ) -> None:
        bad = None if self.allow_nonfinite else first_nonfinite(rows)
        if bad is None:
            return
        row, column = slab.start + bad[0], bad[1]
        if tensor.permutation is not None and tensor.n_rows == 1:
            column = int(tensor.permutation.rows(column, column + 1, tensor.row_length)[0])
        name, source_row = locate(tensor, row)
        info = self.plan.source.tensors.get(name)
        where = info.where if info else "the plan"
        expert = f"expert {row // (tensor.n_rows // tensor.n_expert)}, " if tensor.n_expert else ""
        if info is not None and len(info.shape) == 3:
            source_row %= info.shape[1]
        raise CheckpointError(
            f"{what[0]} in {name} ({where}), {expert}row {source_row}, column {column}, for {tensor.name}; "
            f"{what[1]}, or go on with --allow-nonfinite"
        )


def encode_rows(
    tensor: PlannedTensor, row: int, rows: np.ndarray, qtype: GGMLQuantizationType, encode: Encode | None
) -> np.ndarray:
    """Return rows [row, row + n) of a tensor, as read from its source, as the bytes that its output has of them.

    Rows of the same type are copied, float types rounded here, everything else is `encode`'s. Raises MoeGgufError.
    """
    if tensor.source_type == qtype.name:
        return np.ascontiguousarray(rows)
    if qtype in FLOAT_TYPES.values() and rows.dtype != np.uint8:
        return encode_float(rows, qtype)
    if encode is None:
        raise MoeGgufError(f"{tensor.name}: nothing encodes {tensor.source_type} as {qtype.name}")
    return encode(tensor, row, rows, qtype)


def locate(tensor: PlannedTensor, row: int) -> tuple[str, int]:
    """Return the source tensor and its row that an output row comes from."""
    if tensor.permutation is not None and tensor.n_rows > 1:
        row = int(tensor.permutation.rows(row, row + 1, tensor.n_rows)[0])
    for piece in tensor.pieces:
        if row < piece.stop - piece.start:
            return piece.name, piece.start + row
        row -= piece.stop - piece.start
    return tensor.name, row


def _explain(error: OSError, outputs: Sequence[Output]) -> str:
    names = ", ".join(str(output.path) for output in outputs)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full while writing {names}; free some space and run the same command again to go on"
    if error.errno == errno.EFBIG:
        return f"{names}: larger than this disk's file system allows; write shards with --split-max-size"
    place = error.filename or names
    return f"{place}: {error.strerror or error}; run the same command again to go on"
