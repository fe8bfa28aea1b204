"""Experts with the same weights: a mixture's tensors come in, groups of experts that are equal throughout go out.

A hash over a few rows of each tensor finds candidates; what it finds is compared in full, slab by slab, so that
nothing is claimed that is not so.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b

import numpy as np

from ..formats.safetensors import stored_bytes
from ..formats.source import TensorInfo, TensorSource

SAMPLED_ROWS = 4
SLAB_BYTES = 32 * 2**20
NEGATIVE_ZERO_BF16 = 0x8000

Advance = Callable[[int], object]
# Shows progress over so many bytes; what it gives is told the bytes that are done.
Watch = Callable[[int], AbstractContextManager[Advance]]


def unwatched(n_bytes: int) -> AbstractContextManager[Advance]:
    """Show no progress."""
    return nullcontext(lambda done: None)


def same_weights(source: TensorSource, made_of: Sequence[Hashable], watch: Watch = unwatched) -> list[list[int]]:
    """Return the groups of two or more experts whose weights are equal as they will be written.

    `source` has the experts' tensors by name (`.experts.N.`); experts whose `made_of` are equal are the same for
    certain, and not read. A zero is a zero whatever its sign.
    """
    twins: dict[Hashable, list[int]] = {}
    for index, key in enumerate(made_of):
        twins.setdefault(key, []).append(index)
    by_digest: dict[bytes, list[list[int]]] = {}
    if len(twins) > 1:
        for group in twins.values():
            by_digest.setdefault(_digest(source, group[0]), []).append(group)
    else:
        by_digest[b""] = list(twins.values())
    candidates = [groups for groups in by_digest.values() if len(groups) > 1]
    alone = [groups[0] for groups in by_digest.values() if len(groups) == 1]
    n_bytes = sum(
        stored_bytes(info) for groups in candidates for group in groups[1:] for info in _tensors(source, group[0])
    )
    if n_bytes:
        with watch(n_bytes) as advance:
            for groups in candidates:
                alone += _joined(source, groups, advance)
    return sorted(sorted(group) for group in alone if len(group) > 1)


def _joined(source: TensorSource, groups: Iterable[list[int]], advance: Advance) -> list[list[int]]:
    """Join groups whose first experts are equal in every row."""
    joined: list[list[int]] = []
    for group in groups:
        same = next((known for known in joined if _equal(source, known[0], group[0], advance)), None)
        if same is None:
            joined.append(list(group))
        else:
            same += group
    return joined


def _equal(source: TensorSource, one: int, other: int, advance: Advance) -> bool:
    """Compare two experts throughout; stop at the first difference."""
    for mine, theirs in zip(_tensors(source, one), _tensors(source, other), strict=True):
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return False
        rows = max(1, SLAB_BYTES * mine.n_rows // max(1, stored_bytes(mine)))
        for start in range(0, mine.n_rows, rows):
            stop = min(start + rows, mine.n_rows)
            slab = _bits(source.read_rows(mine.name, start, stop))
            if not np.array_equal(slab, _bits(source.read_rows(theirs.name, start, stop))):
                return False
            advance(slab.nbytes)
    return True


def _digest(source: TensorSource, expert: int) -> bytes:
    """Hash a few rows of each tensor of an expert: training leaves no tensor as it was."""
    digest = blake2b(digest_size=16)
    for info in _tensors(source, expert):
        for start in {0, max(0, info.n_rows // 2 - 1), max(0, info.n_rows - SAMPLED_ROWS)}:
            rows = source.read_rows(info.name, start, min(start + SAMPLED_ROWS, info.n_rows))
            digest.update(_bits(rows).tobytes())
    return digest.digest()


def _tensors(source: TensorSource, expert: int) -> list[TensorInfo]:
    return [info for name, info in source.tensors.items() if f".experts.{expert}." in name]


def _bits(rows: np.ndarray) -> np.ndarray:
    """Return rows as their bits, every zero a positive one; adding an adapter's zeros changes the sign of some."""
    if rows.dtype == np.uint16:
        return np.where(rows == NEGATIVE_ZERO_BF16, np.uint16(0), rows)
    return np.ascontiguousarray(rows + rows.dtype.type(0)).view(np.uint8)
